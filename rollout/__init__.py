"""Engines that sample completions, and how weights reach them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _torch_engine(*args: Any, **kwargs: Any) -> Any:
    """`TorchEngine`; imported on first use, so that listing engines does not import torch."""
    from grpo.rollout.torch_engine import TorchEngine

    return TorchEngine(*args, **kwargs)


ENGINES: dict[str, Callable[..., Any]] = {"torch": _torch_engine}
