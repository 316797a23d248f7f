"""A learner's step as a card sees it: copies, waits, pieces of the head.

Counted on `meta`, see `counting.py`; nothing here was timed, and no kernel ran.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from grpo.learner import head
from grpo.learner.head import Transform, token_logprobs
from grpo.model import devices

from .card import H200, T4, make_learner
from .counting import CARD, Counting
from .learner_counts import CUT, SCENARIOS, TABLE, measure, some_rows

PLAIN = Transform(scale=1.0, cap=None, temperature=1.0, truncation=None)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_step_waits_rarely_and_no_more_often_than_the_table_says(name):
    found, mode = measure(SCENARIOS[name])
    # transformers asks of padded rows whether they are packed, in every forward pass
    asked = [e for e in mode.events if "transformers/masking_utils.py" in e.where]
    padded = not SCENARIOS[name].get("config", {}).get("share_prompts", True)
    assert len(asked) == (found["micro_batches"] if padded else 0)
    assert found["micro_batches"] >= 3
    assert found["blocking_copies"] <= 2 * found["micro_batches"], mode.lines()
    assert found["synchronizations"] - len(asked) <= 3 * found["optimizer_steps"], mode.lines()
    expected = json.loads(TABLE.read_text(encoding="utf-8"))[name]
    assert list(found) == list(expected)
    assert [found[n] for n in list(found)[:2]] == [expected[n] for n in list(found)[:2]]
    for kind in ("blocking_copies", "copies", "downloads", "synchronizations"):
        assert found[kind] <= expected[kind], (kind, mode.lines())
    # Versions of transformers and torch differ a little in how many kernels they launch.
    assert found["operations"] <= 1.1 * expected["operations"]


def test_the_table_has_the_scenarios_there_are():
    assert list(json.loads(TABLE.read_text(encoding="utf-8"))) == list(SCENARIOS)


@pytest.mark.parametrize("use", ["logprobs", "surprise"])
def test_log_probs_of_all_rows_come_in_one_copy(use, monkeypatch):
    learner = make_learner(monkeypatch, config=CUT)
    rows = some_rows()
    with Counting() as mode:
        found = getattr(learner, use)(rows)
    assert len(learner._cut(rows)[0]) >= 3
    assert (mode.count("blocking upload"), mode.count("synchronization")) == (0, 1)
    tokens = sum(len(row.ids) for row in rows)
    assert np.concatenate(list(found)).size == (tokens if use == "logprobs" else 3 * tokens)


# Tokens at a time: memory / 256 logits, of 152,000 words each, worked out by hand.
@pytest.mark.parametrize(
    ("memory", "tokens", "expected"),
    [
        (None, 16_384, 75),  # 2**25 logits, 220 tokens
        (H200, 16_384, 5),  # 3,835 tokens
        (H200, 15_000, 1),  # within four pieces: one, whose logits are kept
        (T4, 16_384, 40),  # 413 tokens
    ],
)
def test_the_head_is_cut_by_the_memory_of_the_card(memory, tokens, expected, monkeypatch):
    monkeypatch.setattr(devices, "card_memory", lambda _: memory)
    cut: list[int] = []
    chunks = head._chunks
    monkeypatch.setattr(
        head, "_chunks", lambda *given: (made := chunks(*given), cut.append(len(made)))[0]
    )
    with torch.device(CARD):
        hidden = torch.zeros(tokens, 8, requires_grad=True)
        targets = torch.zeros(tokens, dtype=torch.int64)
        linear = nn.Linear(8, 152_000, bias=False)
    with Counting() as mode, monkeypatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *_, **__: torch.no_grad())
        patch.setattr(torch, "is_autocast_enabled", lambda *_: False)
        logp, entropy = token_logprobs(linear, hidden, targets, PLAIN)
        (logp.sum() + entropy.sum()).backward()
    assert cut == [expected] * 2  # forward and backward
    assert sum(mode.totals().values()) == 0
    assert linear.weight.grad is not None


def test_on_a_cpu_pieces_are_those_of_the_cache():
    cpu = torch.device("cpu")
    assert devices.card_memory(cpu) is None
    assert head._chunk(16_384, 152_000, cpu) == 2**25 // 152_000
