"""RewardSet: what rewards receive, what None means, and how failures are named."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from grpo.errors import DataError, RewardError
from grpo.rewards import RewardSet, score_file
from grpo.rewards.accuracy import Accuracy
from grpo.rewards.form import Format, SoftOverlong
from grpo.types import Completion, Prompt, Segment, Task, Version


def make_prompt(prompt="q", answer="4", prefill="", **columns):
    task = Task(uid="t", prompt=prompt, answer=answer, columns=columns)
    return Prompt(task=task, text="q", ids=(1, 2), prefill=prefill)


def make_completions(*texts):
    segment = Segment(
        ids=np.array([5, 6]), version=Version(step=0, hash=""), logprobs=np.zeros(2, np.float32)
    )
    return [
        Completion(request="r", index=i, segments=(segment,), text=text, finish="stop")
        for i, text in enumerate(texts)
    ]


def test_rewards_are_called_by_trl_convention():
    seen = {}

    def reward(prompts, completions, completion_ids, trainer_state, log_metric, **columns):
        seen.update(columns, prompts=prompts, completions=completions, ids=completion_ids)
        seen["state"] = trainer_state
        log_metric("mine", 2.0)
        log_metric("mine", 4.0)
        return [1, None]

    rewards = RewardSet([("mine", reward, 2.0)])
    scores = rewards.score(
        make_prompt(prefill="<think>", level=3), make_completions("a", "b"), trainer_state="state"
    )
    assert seen["prompts"] == ["q", "q"]
    assert seen["completions"] == ["<think>a", "<think>b"]
    assert seen["ids"] == [[5, 6], [5, 6]]
    assert (seen["answer"], seen["level"], seen["state"]) == (["4", "4"], [3, 3], "state")
    assert [s.value for s in scores] == [2.0, None]
    assert [s.status for s in scores] == ["scored", "not_applicable"]
    assert rewards.take_metrics() == {"mine": 3.0}
    assert rewards.take_metrics() == {}


def test_conversational_prompts_give_message_lists():
    messages = [{"role": "user", "content": "q"}]

    def reward(prompts, completions):
        assert prompts == [messages]
        assert completions == [[{"role": "assistant", "content": "<think>a"}]]
        return [1.0]

    prompt = make_prompt(messages, prefill="<think>")
    assert RewardSet([("m", reward, 1.0)]).score(prompt, make_completions("a"))[0].value == 1.0
    verifier = RewardSet([("accuracy", Accuracy(), 1.0)])
    assert verifier.score(make_prompt(messages), make_completions(r"\boxed{4}"))[0].value == 1.0


def test_weights_parts_and_status():
    rewards = RewardSet(
        [("accuracy", Accuracy(), 1.0), ("format", Format(), 0.5), ("n", lambda **_: [None], 9.0)]
    )
    (score,) = rewards.score(
        make_prompt(prefill="<think>x</think>"), make_completions(r"\boxed{4}")
    )
    assert (score.value, score.status) == (1.0, "correct")
    assert score.parts == {"accuracy": 1.0, "format": 0.0, "n": None}


def test_unusable_gold_unscores_whatever_the_others_say():
    rewards = RewardSet([("format", Format(), 1.0), ("accuracy", Accuracy(), 1.0)])
    (score,) = rewards.score(make_prompt(answer=" "), make_completions("<think>a</think>"))
    assert (score.value, score.status) == (None, "unparseable_gold")
    # A task without any gold is another task's reward's business.
    (score,) = rewards.score(
        make_prompt(answer=None), make_completions("<think>a</think><answer>4</answer>")
    )
    assert (score.value, score.status) == (1.0, "correct")


def test_async_rewards_run_together_with_and_without_a_running_loop():
    order = []

    async def slow(completions, **_):
        order.append("start")
        await asyncio.sleep(0.01)
        order.append("end")
        return [1.0] * len(completions)

    rewards = RewardSet([("a", slow, 1.0), ("s", lambda **_: [3.0], 1.0), ("b", slow, 1.0)])
    score = lambda: rewards.score(make_prompt(), make_completions("x"))[0].value  # noqa: E731
    assert score() == 5.0
    assert order == ["start", "start", "end", "end"]

    async def inside():
        return score()

    assert asyncio.run(inside()) == 5.0
    rewards.close()


def raises(**_):
    raise KeyError("gold")


async def raises_later(**_):
    raise ValueError("no")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raises, "KeyError"),
        (raises_later, "ValueError: no"),
        (lambda **_: [1.0, 2.0], "returned 2 values for 1 completions"),
        (lambda **_: [float("nan")], "returned nan"),
        (lambda **_: [float("inf")], "returned inf"),
        (lambda **_: ["1.0"], "not a number"),
        (lambda **_: [[1.0]], "not a number"),
        (lambda **_: 1.0, "not a list"),
        (lambda **_: None, "not a list"),
    ],
)
def test_a_failing_reward_is_named(reward, message):
    with pytest.raises(RewardError, match=rf"reward 'bad'.*{message}"):
        RewardSet([("bad", reward, 1.0)]).score(make_prompt(), make_completions("x"))


def test_numpy_and_bool_values_are_numbers():
    for output in (np.array([0.5]), [np.float32(0.5)], (0.5,)):
        rewards = RewardSet([("r", lambda output=output, **_: output, 1.0)])
        assert rewards.score(make_prompt(), make_completions("x"))[0].value == 0.5


def test_score_file_streams_in_order(tmp_path):
    path = tmp_path / "f.jsonl"
    rows = [f'{{"completion": "<answer>{i}</answer>", "answer": {i % 7}}}' for i in range(200)]
    path.write_text("\n".join(rows) + "\n\n")
    results = list(score_file(Accuracy(), path, 3))
    assert [r["value"] for r in results] == [float(i == i % 7) for i in range(200)]
    assert results[0]["status"] == "correct"

    # a byte order mark, and messages whose content is a list of parts
    parts = '[{"role": "assistant", "content": [{"type": "text", "text": "\\\\boxed{5}"}]}]'
    path.write_text(f'\ufeff{{"completion": {parts}, "answer": 5}}\n', encoding="utf-8")
    assert [r["value"] for r in score_file(Accuracy(), path, 1)] == [1.0]
    path.write_text("\n".join(rows))

    async def length(completions, **_):
        return [len(c) for c in completions]

    assert next(score_file(length, path, 1))["value"] == len("<answer>0</answer>")


def test_score_file_counts_the_tokens_that_a_row_brings(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"completion": "a a a"}\n{"completion": "a", "completion_ids": [7, 8]}\n')
    overlong = SoftOverlong(max_length=4, cache=4)
    found = [(r["value"], r["detail"]) for r in score_file(overlong, path, 1)]
    assert found == [(-0.75, "3 words"), (-0.5, "2 tokens")]


def test_score_file_makes_no_length_of_0_of_ids_that_are_not_there(tmp_path):
    def length(completions, completion_ids, **_):
        return [float(len(ids)) for ids in completion_ids]

    def guess(completions, completion_ids=None, **_):
        return [float(len(c)) if completion_ids is None else 0.0 for c in completions]

    path = tmp_path / "in.jsonl"
    path.write_text('{"completion": "aaa", "completion_ids": []}\n')
    assert [r["value"] for r in score_file(length, path, 1)] == [0.0]
    path.write_text('{"completion": "aaa"}\n')
    assert [r["value"] for r in score_file(guess, path, 1)] == [3.0]
    with pytest.raises(DataError, match="line 1: reward 'length' takes completion_ids"):
        list(score_file(length, path, 1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a row must be"),
        ('{"answer": "4"}', "line 2: column 'completion'"),
        ('{"completion": ["4"], "answer": "4"}', "line 2: a 'completion' list holds messages"),
        ('{"completion": "4"}', r"line 2: reward 'accuracy' needs column 'answer\|solution'"),
    ],
)
def test_score_file_names_the_bad_line(tmp_path, line, message):
    path = tmp_path / "f.jsonl"
    path.write_text('{"completion": "a", "answer": "4"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        list(score_file(Accuracy(), path, 2))
    with pytest.raises(DataError, match="cannot read"):
        list(score_file(Accuracy(), tmp_path / "missing", 1))
