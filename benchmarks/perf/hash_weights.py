"""The content hash of a policy's weights in the type an engine gets, as every delivery takes it."""

from __future__ import annotations

from typing import Any

from grpo.model.content_hash import content_hash
from grpo.model.pretrained import load_model
from perf.worker import Settings, now, serve


def prepare(settings: Settings) -> Any:
    """A model in memory; a repetition hashes it."""
    import torch

    model = load_model(settings["model"], getattr(torch, settings["dtype"]))
    named = dict(model.named_parameters())

    def repetition() -> dict[str, Any]:
        started = now(settings)
        digest = content_hash(named.items())
        size = sum(t.numel() * t.element_size() for t in named.values())
        return {"seconds": now(settings) - started, "bytes": size, "hash": digest}

    return repetition


if __name__ == "__main__":
    serve(prepare)
