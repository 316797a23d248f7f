"""What the embedded engine costs in copies and waits, by kind of sampling; writes the table of it.

python -m tests.device.engine_counts     from the repository's root, after a change for the better
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo.model import transfer
from grpo.rollout.embedded import torch_engine
from grpo.rollout.embedded.decoder import SlotDecoder
from grpo.rollout.embedded.kv_cache import ATTENTION
from grpo.rollout.embedded.own_cache import OwnCacheDecoder, ReplayDecoder
from grpo.rollout.embedded.ways import Ways
from grpo.types import Request

from ..rollout.tiny_models import V0, VOCAB, Letters, request, tiny
from .counting import CARD, Counting

TABLE = Path(__file__).with_name("engine_counts.json")
BLOCK = 8  # tokens
KINDS: dict[str, list[dict[str, Any]]] = {  # samplings, in turn for the requests
    "plain": [{}],
    "temperature": [{"temperature": 0.7}],
    "greedy": [{"temperature": 0}],
    "top-k": [{"top_k": 5}],
    "top-p": [{"top_p": 0.9}],
    "min-p": [{"min_p": 0.1}],
    "all filters": [{"top_k": 9, "top_p": 0.9, "min_p": 0.01}],
    "stop strings": [{"stop": ("xy",)}],
    "each row its own": [
        {},
        {"temperature": 0},
        {"temperature": 1.3, "top_k": 4},
        {"top_p": 0.8, "min_p": 0.02},
    ],
}
MODELS = {"Mistral's window": "mistral", "Gemma 2's soft cap": "gemma2"}
DECODERS: dict[str, Any] = {"own cache": OwnCacheDecoder, "no cache": ReplayDecoder}
SCENARIOS = [*KINDS, *MODELS, *DECODERS]


def slots(model: Any, ways: Ways) -> SlotDecoder:
    """What `make_decoder` chooses on a card; it compares numbers, and there are none."""
    model.config._attn_implementation = ATTENTION
    return SlotDecoder(model, ways)


def some_requests(samplings: Sequence[dict[str, Any]], max_tokens: int = 40) -> list[Request]:
    """Five prompts of different lengths, three samples each."""
    return [
        request(
            f"r{i}",
            [(5 * i + 3 * j) % VOCAB for j in range(3 + 4 * i)],
            n=3,
            key=i,
            max_tokens=max_tokens + i,
            **samplings[i % len(samplings)],
        )
        for i in range(5)
    ]


def make_engine(
    patch: pytest.MonkeyPatch, *, kind: str = "llama", decoder: Callable[[Any, Ways], Any] = slots
) -> torch_engine.TorchEngine:
    """An engine of a tiny model in bfloat16; what is patched has to last as long as it is used."""
    patch.setattr(transfer, "pins", lambda device: device.type == CARD.type)
    patch.setattr(torch_engine, "make_decoder", lambda model, ways, **_: decoder(model, ways))
    model = tiny(kind).bfloat16().to(CARD)
    return torch_engine.TorchEngine(model, Letters(), version=V0, max_rows=16)


def measure(name: str) -> dict[str, dict[str, float]]:
    """Counts of the prompts with two tokens, and of one token in a block of `BLOCK`."""
    samplings = KINDS.get(name, KINDS["plain"])
    with pytest.MonkeyPatch.context() as patch:
        engine = make_engine(
            patch, kind=MODELS.get(name, "llama"), decoder=DECODERS.get(name, slots)
        )
        engine.submit(some_requests(samplings))
        with Counting() as start:
            engine.poll(timeout=0)
        with Counting() as block:
            for _ in range(BLOCK):
                engine.poll(timeout=0)
    return {"prompts and two tokens": _row(start, 1), "a token": _row(block, BLOCK)}


def _row(mode: Counting, steps: int) -> dict[str, float]:
    totals = mode.totals()
    found = {
        "blocking_copies": totals["blocking upload"],
        "copies": totals["upload"],
        "synchronizations": totals["synchronization"],
        "operations": mode.operations,
    }
    return {name: count / steps for name, count in found.items()}


def main() -> None:
    """Measure everything and write the table."""
    table = {name: measure(name) for name in SCENARIOS}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
