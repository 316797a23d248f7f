"""Behaviors counted by hand."""

from __future__ import annotations

import pytest

from grpo.evaluation import behaviors

TEXT = """<think>Let me compute 3*4=12. Wait, wait! Let\u2019s double-check: 3*4 = 12, checked.
Alternatively, another way: 4+4+4. Hmm, that's wrong... no mistake here; the waiter awaits.
Let me try again and verify it. ```let me check```</think> So I confirm: \\boxed{12}"""


def test_a_text_counted_by_hand() -> None:
    assert behaviors.counts(TEXT) == {
        "wait": 3,  # Wait, wait, Hmm; not waiter, awaits
        "check": 3,  # double-check once, checked, and check in the code
        "verify": 2,  # verify, confirm
        "alternatively": 2,
        "let me": 4,  # Let me, Let's, Let me, let me
        "backtrack": 3,  # that's wrong, mistake, try again
    }


def test_shares_and_rates_over_completions() -> None:
    found = behaviors.summarize(["wait wait go", "let it be so", "等等 wait"])
    assert found["words"] == 3 + 4 + 3  # each Han character is a word
    assert found["scripts"] == {"LATIN": 0.8, "CJK": 0.2}
    assert found["behaviors"]["wait"] == {"share": 2 / 3, "per_1000_words": pytest.approx(300)}
    assert found["behaviors"]["check"] == {"share": 0.0, "per_1000_words": 0.0}


def test_completions_without_words_have_no_rate() -> None:
    found = behaviors.summarize(["0101=", "\\boxed{7}"])
    assert (found["words"], found["scripts"]) == (0, {})
    assert found["behaviors"]["wait"] == {"share": 0.0, "per_1000_words": None}
    assert behaviors.summarize([])["behaviors"]["wait"]["share"] == 0.0
