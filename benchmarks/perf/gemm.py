"""The rate of a square matrix product in bfloat16, 2048 x 2048 x 2048."""

from __future__ import annotations

import time
from typing import Any

import torch

from perf.worker import Settings, serve

SIZE = 2048
PRODUCTS = 20


def prepare(settings: Settings) -> Any:
    """Two matrices; a repetition is several products."""
    dtype = getattr(torch, settings["dtype"])
    a, b = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    out = torch.empty(SIZE, SIZE, dtype=dtype)

    def repetition() -> dict[str, Any]:
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "flops": 2 * SIZE**3 * PRODUCTS}

    return repetition


if __name__ == "__main__":
    serve(prepare)
