"""Shared by all tests: threads of a process (one), no hub, no surprise from the surroundings."""

from __future__ import annotations

import os
import signal
import sys

# Before torch is imported anywhere: pytest-xdist runs one process per core, and two processes with
# two threads each on two cores run several times slower than one thread each.
os.environ["OMP_NUM_THREADS"] = os.environ.get("GRPO_TEST_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("PYTHONWARNINGS", None)
# Bytecode is written, as users have it: Python may take it for a file that was edited since.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from hypothesis import settings

sys.dont_write_bytecode = False

# A shell that starts tests in the background leaves Ctrl-C ignored, and some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine makes single examples slow now and then; the examples themselves are fixed.
settings.register_profile("grpo", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("grpo")
