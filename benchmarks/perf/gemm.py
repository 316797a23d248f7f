"""The rate of a square matrix product, 2048 x 2048 x 2048 or as wide as `size` says."""

from __future__ import annotations

from typing import Any

import torch

from perf.worker import Settings, device, now, serve

SIZE = 2048
PRODUCTS = 20


def prepare(settings: Settings) -> Any:
    """Two matrices; a repetition is several products."""
    dtype, where, size = (
        getattr(torch, settings["dtype"]),
        device(settings),
        settings.get("size", SIZE),
    )
    a, b = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=where)

    def repetition() -> dict[str, Any]:
        started = now(settings)
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)
        seconds = now(settings) - started
        return {"seconds": seconds, "flops": 2 * size**3 * PRODUCTS}

    return repetition


if __name__ == "__main__":
    serve(prepare)
