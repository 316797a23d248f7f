"""What a call might leave changed in its process, for tests that compare before and after."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# Threads that serve all calls of a process, and are made once; tqdm has one for its bars.
SHARED = ("grpo-deadlines", "grpo-helper", "grpo-leaving", "tqdm_monitor", "MainThread")


def state() -> dict[str, Any]:
    """What a call might leave changed in its process."""
    return {
        "files": _open_files(),
        "threads": sorted(t.name for t in threading.enumerate() if t.name not in SHARED),
        "children": sorted(child.pid or 0 for child in multiprocessing.active_children()),
        "processes": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
        "temporary": sorted(os.listdir(tempfile.gettempdir())),
        "signals": {
            s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        },
        "handlers": [list(logging.getLogger(n).handlers) for n in ("", "grpo", "transformers")],
        "levels": [logging.getLogger(n).level for n in ("", "grpo", "transformers")],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.random.get_state()[1].tobytes(),  # pyright: ignore
        "random": random.getstate(),
        "settings": (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "filters": list(warnings.filters),
        "streams": (sys.stdout, sys.stderr, sys.excepthook, list(sys.meta_path)),
    }


def alone(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in `folder`, with a folder for temporary files that no other process uses."""
    temporary = folder.with_name(f"{folder.name}-temporary")
    temporary.mkdir()
    patch.setenv("TMPDIR", str(temporary))
    patch.setattr(tempfile, "tempdir", str(temporary))
    patch.chdir(folder)


def _open_files() -> list[str]:
    found: list[str] = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed them
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(found)


def weights(run: Any) -> str:
    """A hash of the trained weights."""
    return hashlib.sha256((run.left_model() / "model.safetensors").read_bytes()).hexdigest()


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """What differs between two of `state`."""
    return {name for name, value in before.items() if after[name] != value}
