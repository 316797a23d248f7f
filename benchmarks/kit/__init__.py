"""What a machine with a GPU and without network lacks, in pieces; see `pack.py`, `run.sh`."""
