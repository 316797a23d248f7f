"""The embedded engine on `meta`: copies and waits a token, which a table keeps from growing."""

from __future__ import annotations

import json

import pytest

from grpo.rollout.embedded import torch_engine
from grpo.rollout.embedded.ways import ways_on

from .counting import CARD, Counting
from .engine_counts import (
    DECODERS,
    KINDS,
    SCENARIOS,
    TABLE,
    make_engine,
    measure,
    slots,
    some_requests,
)

KEPT = json.loads(TABLE.read_text(encoding="utf-8"))
SLACK = 1.1  # operations: releases of PyTorch and transformers take a kernel more or less


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_counts_do_not_grow(name):
    found = measure(name)
    for part, counts in found.items():
        kept = KEPT[name][part]
        for what, count in counts.items():
            most = kept[what] * (SLACK if what == "operations" else 1)
            assert count <= most, f"{part}: {what}; python -m tests.device.engine_counts"
    if name not in DECODERS:  # those run code of transformers that waits by itself
        assert found["a token"]["blocking_copies"] == 0
        assert found["a token"]["synchronizations"] <= 1
        assert found["prompts and two tokens"]["blocking_copies"] == 0
        assert found["prompts and two tokens"]["synchronizations"] <= 2


def test_the_table_has_no_row_of_the_past():
    assert list(KEPT) == SCENARIOS


@pytest.mark.parametrize("name", ["plain", "each row its own"])
def test_rows_that_end_and_move_cost_no_wait(name, monkeypatch):
    """From the first prompt to the last token, with more samples than rows: one wait a draw."""
    engine = make_engine(monkeypatch)
    draws = []
    plain = torch_engine.sample
    monkeypatch.setattr(torch_engine, "sample", lambda *a: draws.append(len(a[0])) or plain(*a))
    engine.submit(some_requests(KINDS[name], max_tokens=3))
    done = 0
    with Counting() as mode:
        while completions := engine.poll():
            done += len(completions)
    assert done == 15
    assert sum(draws) == 3 * (3 + 4 + 5 + 6 + 7)
    assert mode.totals()["synchronization"] == mode.totals()["download"] == len(draws)
    assert mode.totals()["blocking upload"] == 0


def test_prompts_are_read_copied_and_moved_without_a_wait(monkeypatch):
    engine = make_engine(monkeypatch)
    decoder = slots(engine.model, ways_on(CARD))
    with Counting() as mode:
        decoder.prefill([[1, 2, 3], [4, 5], [6] * 40], [0, 2, 4])
        decoder.copy([0, 2], [1, 3], [3, 2])
        decoder.cache.reserve(8, 200)  # grows both ways, and keeps what is there
        decoder.compact([(4, 1)], 4, 40)
    assert mode.totals() == {
        "blocking upload": 0,
        "upload": 3,
        "download": 0,
        "synchronization": 0,
    }
