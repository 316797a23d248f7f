"""Filters of rejection sampling and decontamination, against cases worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.config.schema import Data, Filter
from grpo.errors import DataError
from grpo.evaluation.decontaminate import Evaluation, load_evaluation, ngrams, normalized, words
from grpo.evaluation.screen import (
    REASONS,
    Sample,
    Sampled,
    distance,
    diverse,
    longest_paragraph,
    repeated,
    row,
    screen,
    thought_of,
)

NOTHING = Evaluation(n=10)
DATA = Data(source="parity")


def sample(index=0, text="a fine thought</think><answer>1</answer>", **changes):
    given = {"tokens": 5, "finish": "stop", "value": 1.0, **changes}
    return Sample(index=index, text=text, **given)


def group(*samples: Sample, prompt: Any = "p") -> Sampled:
    return Sampled(task="t", prompt=prompt, answer="1", noise="0/0/1/0", samples=samples)


def outcome(*samples, evaluation=NOTHING, seed=0, **filters):
    found = screen(group(*samples), Filter(**filters), evaluation, seed)
    return [s.index for s in found.kept], dict(found.dropped)


def in_thought(text):
    return f"<think>{text}</think><answer>1</answer>"


def test_each_reason_by_one_completion():
    evaluation = Evaluation.of({"test": [["the cat sat on the mat today"]]}, 4)
    cases = {
        "truncated": sample(finish="length"),
        "unscored": sample(value=None),
        "wrong": sample(value=0.5),
        "language": sample(text=in_thought("one two three четыре")),
        "repetition": sample(text=in_thought("a b c d e f g h " * 3)),
        "paragraph": sample(text=in_thought("x" * 31 + "\n\nshort")),
        "code": sample(text=in_thought("look:\n```\nx = 1\n```")),
        "contaminated": sample(text=in_thought("I saw: the CAT sat, on it")),
    }
    for reason, bad in cases.items():
        settings = {"language": "en", "max_paragraph": 30, "code_blocks": False, "keep": 3}
        kept, dropped = outcome(sample(7), bad, evaluation=evaluation, **settings)
        assert (kept, dropped) == ([7], {reason: 1}), reason
    assert set(cases) | {"pass_rate", "duplicate", "not_selected"} == set(REASONS)


def test_limits_are_inclusive_and_off_by_default():
    # 24 words: 17 8-grams, of which 9 repeat an earlier one.
    looped = in_thought("a b c d e f g h " * 3)
    assert repeated("a b c d e f g h " * 3) == pytest.approx(9 / 17)
    assert outcome(sample(text=looped), max_repetition=0.6)[1] == {}
    assert outcome(sample(text=in_thought("x" * 30)), max_paragraph=30)[1] == {}
    three_of_four = in_thought("one two three четыре")
    assert outcome(sample(text=three_of_four), language="en", min_language=0.75)[1] == {}
    assert outcome(sample(text=in_thought("```x``` четыре " + "y" * 999)))[1] == {}
    assert outcome(sample(value=0.5), min_reward=0.5)[1] == {}


def test_only_the_thought_counts_for_its_form():
    answer = "</think>" + "y" * 99 + "```x```"
    assert outcome(sample(text="short" + answer), max_paragraph=30, code_blocks=False)[1] == {}
    assert thought_of("<think>a</think>b") == "a"
    assert thought_of("no tags at all") == "no tags at all"
    assert thought_of("<think>never closed") == "never closed"
    assert longest_paragraph("ab\n \nabcd\nef\n\n\nx") == len("abcd\nef")


def test_pass_rate_leaves_unscored_ones_out():
    samples = [sample(i, text=f"t{i}", value=v) for i, v in enumerate([1.0, 0.0, None, 1.0])]
    # two of three scored
    assert outcome(*samples, keep=4, min_pass_rate=2 / 3)[0] == [0, 3]
    assert outcome(*samples, keep=4, min_pass_rate=0.7)[1]["pass_rate"] == 2
    kept, dropped = outcome(*samples, keep=4, max_pass_rate=0.5)
    assert (kept, dropped) == ([], {"pass_rate": 2, "wrong": 1, "unscored": 1})


def test_duplicates_differ_in_case_space_and_punctuation_only():
    texts = ["So 3 + 4 = 7.", "so  3+4=7", "So 3 - 4 = 7.", "So 3.4 = 7", "so 3 4 = 7"]
    kept, dropped = outcome(*(sample(i, text=t) for i, t in enumerate(texts)), keep=9)
    assert (kept, dropped) == ([0, 2, 3, 4], {"duplicate": 1})


def test_selection():
    texts = {0: "a b c d", 1: "a b c d e", 2: "v w x y z", 3: "a b x y z"}
    tokens = {0: 9, 1: 2, 2: 2, 3: 1}
    samples = [sample(i, text=texts[i], tokens=tokens[i]) for i in texts]
    assert outcome(*samples, keep=2, select="first") == ([0, 1], {"not_selected": 2})
    assert outcome(*samples, keep=2, select="shortest")[0] == [1, 3]  # 2 and 2: the shorter text
    # Trigrams: 0 {abc bcd}, 1 {abc bcd cde}, 2 {vwx wxy xyz}, 3 {abx bxy xyz}. From 0: 1 is at
    # 1/3, 2 and 3 at 1, so 2 (the earlier). Then 1 is at 1/3 and 3 at 1 - 1/5 from 2.
    assert [s.index for s in diverse(samples, 3)] == [0, 2, 3]
    assert outcome(*samples, keep=3, select="diverse")[0] == [0, 2, 3]
    assert distance({"abc", "bcd"}, {"abc", "bcd", "cde"}) == pytest.approx(1 / 3)


def test_random_selection_depends_on_seed_and_nothing_else():
    samples = [sample(i, text=f"text {i}") for i in range(20)]
    first = outcome(*samples, keep=5, select="random", seed=1)[0]
    assert first == outcome(*samples, keep=5, select="random", seed=1)[0]
    assert first != outcome(*samples, keep=5, select="random", seed=2)[0]
    # a completion more does not change the order of the others
    fewer = outcome(*samples[:-1], keep=5, select="random", seed=1)[0]
    assert set(first) - {19} <= set(fewer)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a b c", "a b d", "x y z", "A  B C"]),
            st.sampled_from([None, 0.0, 1.0]),
            st.sampled_from(["stop", "length"]),
        ),
        max_size=8,
    ),
    st.integers(1, 4),
    st.sampled_from(["first", "shortest", "diverse", "random"]),
)
def test_every_completion_is_kept_or_counted_once(drawn, keep, select):
    samples = [sample(i, text=t, value=v, finish=f) for i, (t, v, f) in enumerate(drawn)]
    kept, dropped = outcome(*samples, keep=keep, select=select)
    assert len(kept) + sum(dropped.values()) == len(samples)
    assert len(kept) <= keep
    assert kept == sorted(kept)


def test_rows_keep_the_form_of_the_prompt():
    messages = [{"role": "user", "content": "p"}]
    assert row(group(prompt=messages), sample())["completion"][0]["role"] == "assistant"
    made = row(group(), sample(3))
    assert made["completion"] == sample().text
    assert made["noise"] == "0/0/1/0/3"


def test_words_and_normal_form():
    assert words("It's 3.50 units, 答案 is: x_1!") == [
        *["it", "s", "3.50", "units", "答", "案", "is", "x_1"]
    ]
    assert normalized("What is 3 + 4?") == normalized("what  is $3+4$")
    assert normalized("What is 3 + 4?") != normalized("What is 3 * 4?")
    assert normalized("ＡＢ") == "ab"  # noqa: RUF001 - full-width letters
    assert ngrams("a b c", 2) == ["a b", "b c"]
    assert ngrams("a b", 3) == []


def test_exact_and_ngram_leaks():
    found = Evaluation.of({"one": [["What is 7?", "42"]], "two": [["q w e r t y", "a s d f"]]}, 4)
    assert found.leak("what is 7") == "one"  # as a whole
    assert found.leak("so: what is 7") == ""  # shorter than four words: only as a whole
    assert found.leak("42") == ""  # an answer is no secret
    assert found.leak("I say W, E R - T!") == "two"
    assert found.leak("w e r") == ""
    assert found.leak("then a s d f") == "two"  # a worked solution leaks as well
    assert NOTHING.leak("what is 7") == ""


def test_wording_shared_by_the_set_is_no_leak():
    rows = [[f"use the numbers below to make {i} and {i + 100} with plus"] for i in range(20)]
    found = Evaluation.of({"count": rows}, 4)
    assert found.leak("use the numbers below to make 77 please") == ""
    assert found.leak("the rest below to make 3 cakes") == ""  # three of four words are wording
    # "make 3 and 103" has two words that are its own, "to make 3 and" as well
    assert found.leak("now make 3 and 103") == "count"
    assert found.leak(rows[3][0].upper()) == "count"
    assert found.wording["count"] == 3  # runs of "use the numbers below to make"
    few = Evaluation.of({"count": rows[:2]}, 4)  # two tasks that share a run may leak it
    assert few.leak("use the numbers below") == "count"


def test_a_repeated_evaluation_task_is_not_wording():
    found = Evaluation.of({"test": [["the cat sat on the mat"]] * 9}, 4)
    assert found.tasks["test"] == 1
    assert found.leak("cat sat on the") == "test"


def test_evaluation_sets_from_files_and_sources(tmp_path):
    file = tmp_path / "test.jsonl"
    lines = [{"problem": "alpha beta gamma delta", "level": 3, "solution": "one two three four"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = load_evaluation((str(file), "arithmetic"), 4, DATA)
    assert found.leak("one two three four") == str(file)
    assert found.tasks[str(file)] == 1
    assert found.tasks["arithmetic"] > 100
    file.write_text('{"text": "no prompt"}\n')
    with pytest.raises(DataError, match="none of the columns prompt, question, problem"):
        load_evaluation((str(file),), 4, DATA)
    with pytest.raises(DataError, match="neither a JSONL file nor a source"):
        load_evaluation(("nothing",), 4, DATA)
    with pytest.raises(DataError, match=r"filter\.decontaminate = 'aime': data set"):
        load_evaluation(("aime",), 4, DATA)


def test_a_source_that_trains_is_compared_with_its_own_held_out_tasks(tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"task {i}"}) + "\n" for i in range(40)))
    args = {"path": str(file), "answer": None, "heldout_fraction": 0.5}
    found = load_evaluation(("file",), 4, Data(source="file", args=args))
    assert 5 < found.tasks["file"] < 35
