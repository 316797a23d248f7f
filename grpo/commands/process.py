"""What of a process decides the bits of a run and is no setting: set up, described, compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch.utils import deterministic

from grpo.commands.memory import keep_freed_memory
from grpo.kernels import native
from grpo.model.ranks import Ranks
from grpo.rundir.provenance import provenance


def prepare_process(threads: int) -> None:
    """Process-wide settings: thread count (0: all), sums in one order, no bars of libraries.

    On a CPU every operation is one whose threads add up in a fixed order, also in the code of a
    model (experts read a token more than once, and the gradients of these reads are added up).
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        # a pass over memory that nobody reads
        deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    keep_freed_memory()
    transformers.utils.logging.disable_progress_bar()


def described(ranks: Ranks) -> dict[str, Any]:
    """What a run's record says of this process and machine, see `grpo.rundir.record`."""
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
    """What of the process is not as it was and cannot be made so: ranks and device."""
    before, after = record.get("process", {}), now["process"]
    return [
        f"{what} = {after[name]} (was {before[name]})"
        for name, what in (("ranks", "learner ranks"), ("device", "device"))
        if name in before and before[name] != after[name]
    ]


def check_versions(record: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line on the versions and the machine, where they are not what they were."""
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
    """A line where a run that goes on with the `threads` it had is on a machine of fewer cores."""
    cores = os.cpu_count() or 1
    if threads <= cores:
        return []
    return [
        f"the run was started with {threads} threads and goes on with them, for the same bits; "
        f"this machine has {cores} cores, so it will be slower"
    ]


@contextmanager
def kernels(on: bool) -> Iterator[str]:
    """The compiled kernels switched as a run was started with them; yields what to say, or ""."""
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
