"""Plug-in engines for the tests of Ray workers: the embedded one, with faults on command."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from grpo.errors import EngineError
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.rollout.settings import TorchSettings
from grpo.types import EngineSpec


class Engine:
    """The embedded engine of `spec`; says in folder `signs` which process it is.

    The process that finds the file `signs/hang` removes it and answers no more. Every step of
    decoding takes `delay` seconds more. `refuse` makes construction fail.
    """

    def __init__(
        self, *, spec: EngineSpec, signs: str, delay: float = 0.0, refuse: bool = False
    ) -> None:
        if refuse:
            raise EngineError("this engine refuses to be made")
        self._engine: Any = TorchEngine.from_spec(spec, TorchSettings(max_rows=8))
        self._signs = Path(signs)
        self._delay = delay
        (self._signs / f"pid-{os.getpid()}").write_text(str(spec.threads))

    def poll(self, timeout: float | None = None) -> list[Any]:
        time.sleep(self._delay)
        hang = self._signs / "hang"
        if hang.exists():
            hang.unlink()
            time.sleep(1000)
        return self._engine.poll(timeout)

    def take_metrics(self) -> dict[str, float]:
        threads = {name: float(os.environ[name]) for name in ("OMP_NUM_THREADS",)}
        return {**threads, "launcher": float("RANK" in os.environ)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
