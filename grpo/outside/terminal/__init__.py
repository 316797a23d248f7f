"""The way of text to a terminal.

`console` lets no foreign text act on it, and `streams` alone writes to standard output and standard
error. What is shown of a run: `grpo/rundir/log.py`, `grpo/commands/show.py`.
"""
