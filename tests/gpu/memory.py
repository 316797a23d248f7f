"""How much of a card's memory a piece of a test took at most."""

from __future__ import annotations

from types import TracebackType

import pytest
import torch


class Peak:
    """Within it: the highest number of bytes in use beyond those at its beginning.

    On a CPU there is no such number. Asking for it skips the rest of the test, so that a rehearsal
    runs all the code up to there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._found: int | None = None

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self._found = torch.cuda.max_memory_allocated() - self._before

    @property
    def bytes(self) -> int:
        """The number; skips the test where there is none."""
        if self._found is None:
            pytest.skip("the number of bytes is of a card's memory; the code before it ran")
        return self._found


def in_use(device: torch.device) -> int:
    """Bytes of the card that tensors hold; skips the test on a CPU."""
    if device.type != "cuda":
        pytest.skip("the number of bytes is of a card's memory; the code before it ran")
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()
