"""The parts of a process that decide a run's bits and are no settings: set, recorded, compared."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils import deterministic

from grpo.commands.memory import keep_freed_memory
from grpo.kernels import native
from grpo.model.ranks import Ranks
from grpo.rundir.provenance import provenance


def prepare_process(threads: int) -> None:
    """Set the number of threads (0: all) and a fixed order of sums; hide the bars of libraries.

    On a CPU every operation then adds up its threads' results in a fixed order. This covers the
    model's own code too: experts read a token more than once, and their gradients are added up.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        # a pass over memory that nobody reads
        deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    keep_freed_memory()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def restored() -> Iterator[None]:
    """Inside, a run may set this process as it needs it; afterwards it is as it was before.

    That is what `prepare_process` sets, and the states of the random number generators.
    """
    threads, bars = torch.get_num_threads(), transformers.utils.logging.is_progress_bar_enabled()
    exact = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact, warn_only=warns)
        deterministic.fill_uninitialized_memory = filled  # pyright: ignore[reportAttributeAccessIssue]
        if bars:
            transformers.utils.logging.enable_progress_bar()
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def described(ranks: Ranks) -> dict[str, Any]:
    """The entries of a run's record about this process and machine (`grpo.rundir.record`)."""
    device = ranks.device
    computes = {
        "CPU instructions": torch.backends.cpu.get_cpu_capability(),
        "compiler": native.compiler() if native.is_on() else None,
        "GPU": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
    return {
        **provenance(),
        "process": {
            "threads": torch.get_num_threads(),
            "kernels": native.is_on(),
            "ranks": ranks.count,
            "device": device.type,
        },
        "computes": computes,
    }


def check_process(record: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A text for each change of ranks and device, which cannot be put back here."""
    before, after = record.get("process", {}), now["process"]
    return [
        f"{what} = {after[name]} (was {before[name]})"
        for name, what in (("ranks", "learner ranks"), ("device", "device"))
        if name in before and before[name] != after[name]
    ]


def check_versions(record: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line on the versions and the machine, if they have changed."""
    before, after = _computed_with(record), _computed_with(now)
    told = [
        f"{name} {value} (was {before[name]})"
        for name, value in after.items()
        if before.get(name, value) != value
    ]
    if not told:
        return []
    return [f"{', '.join(told)}: from here on the last bits may be others"]


def _computed_with(record: dict[str, Any]) -> dict[str, Any]:
    kernels = record.get("process", {}).get("kernels")
    return {
        **record.get("versions", {}),
        **({"the toolkit's commit": record["commit"]} if "commit" in record else {}),
        **record.get("computes", {}),
        **({} if kernels is None else {"compiled kernels": "on" if kernels else "off"}),
    }


def thread_lines(threads: int) -> list[str]:
    """A line if a resumed run keeps more `threads` than this machine has cores."""
    cores = os.cpu_count() or 1
    if threads <= cores:
        return []
    return [
        f"the run was started with {threads} threads and goes on with them, for the same bits; "
        f"this machine has {cores} cores, so it will be slower"
    ]


@contextmanager
def kernels(on: bool) -> Iterator[str]:
    """Switch the compiled kernels to how the run was started; yields what to print, or ""."""
    if on == native.is_on():
        yield ""
        return
    if on and not native.can_compile():
        yield (
            "the run was started with compiled kernels, and there is no C++ compiler here: torch "
            "does their work, from here on with other last bits"
        )
        return
    before = os.environ.get(native.SWITCH)
    native.switch("1" if on else "0")
    try:
        yield (
            f"compiled kernels are {'on' if on else 'off'} ({native.SWITCH}={int(on)}), as the run "
            "was started"
        )
    finally:
        native.switch(before)
