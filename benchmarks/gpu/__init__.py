"""What only a GPU can say, in sections that survive losing the machine; see `bench_gpu.py`."""
