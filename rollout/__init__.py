"""Engines that sample completions, and how weights reach them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpo.types import Engine, EngineSpec


def make_torch(*, spec: EngineSpec, max_rows: int = 256) -> Engine:
    """The embedded engine. `max_rows`: completions decoded at once."""
    from grpo.rollout.torch_engine import TorchEngine

    return TorchEngine.from_spec(spec, max_rows=max_rows)


# Imported on first use, so that listing engines does not import torch. Called with `spec` and the
# recipe's `rollout.engine_args`.
ENGINES: dict[str, Callable[..., Any]] = {"torch": make_torch}
