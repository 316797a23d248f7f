"""Rewards by the kind of task: who scores which row, from which step, and what is an error."""

from __future__ import annotations

import numpy as np
import pytest

from grpo.errors import PluginError, RewardError
from grpo.rewards import REWARDS
from grpo.rewards.compose import RewardSet
from grpo.rewards.reward_model import answer_part
from grpo.rewards.routed import Routed
from grpo.types import Completion, Prompt, Segment, Task, TrainerState, Version

from .scorers import letters_tokenizer, save_scorer

ROUTES = {
    "math": {"name": "accuracy"},
    "chat": [
        {"name": "tests.rewards.test_routed:length", "weight": 0.5, "from_step": 5},
        {"name": "format", "weight": 2.0},
    ],
}


def length(completions, **_columns):
    return [float(len(text)) for text in completions]


def rows(*said, **columns):
    return {
        "prompts": [f"q{i}" for i in range(len(said))],
        "completions": list(said),
        "completion_ids": [[1]] * len(said),
        **columns,
    }


RIGHT, WRONG = "<think>t</think><answer>4</answer>", "<think>t</think><answer>5</answer>"


def test_each_row_is_scored_by_its_route_and_routes_add_up_by_weight():
    reward = Routed(ROUTES)
    asked = rows(RIGHT, "hello", WRONG, RIGHT, task=["math", "chat", "math", "chat"])
    asked["answer"] = ["4", "-", "4", "-"]
    # chat: 0.5 * characters + 2 * format, which "hello" does not have
    assert len(RIGHT) == 34
    assert reward(**asked) == [1.0, 2.5, 0.0, 19.0]
    scores = reward.scores(**asked)
    assert [s.status for s in scores] == ["correct", "wrong", "wrong", "correct"]
    assert scores[3].parts == {"length": 34.0, "format": 1.0}


def test_a_reward_model_counts_from_its_step_on():
    reward = Routed(ROUTES)
    asked = rows("hello", RIGHT, task=["chat", "chat"])
    for step, expected in ((4, [0.0, 2.0]), (5, [2.5, 19.0]), (6, [2.5, 19.0])):
        assert reward(**asked, trainer_state=TrainerState(global_step=step)) == expected
    late = Routed({"chat": {"name": "format", "from_step": 9}})
    before = late.scores(**asked, trainer_state=TrainerState(global_step=8))
    assert [(s.value, s.status) for s in before] == [(None, "not_applicable")] * 2


def test_a_value_without_a_route_names_the_row_and_the_routes():
    reward = Routed(ROUTES)
    with pytest.raises(RewardError, match=r"completion 1 of prompt 'q1'.*'maths'.*Valid: chat, ma"):
        reward(**rows("a", "b", task=["chat", "maths"]))
    with pytest.raises(RewardError, match="the task has no column 'task'"):
        reward(**rows("a"))
    assert Routed(ROUTES, default="chat")(**rows("hello")) == [2.5]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"routes": {}}, "routes maps"),
        ({"routes": {"a": []}}, "routes.a has no reward"),
        ({"routes": {"a": {"name": "acuracy"}}}, "Did you mean 'accuracy'"),
        ({"routes": {"a": {"name": "format", "fromstep": 3}}}, "'from_step'"),
        ({"routes": {"a": {"name": "format", "from_step": -1}}}, "from_step = -1"),
        ({"routes": {"a": [{"name": "format"}] * 2}}, "give one a label"),
        ({"routes": ROUTES, "default": "mth"}, "Valid: chat, math"),
        ({"routes": ROUTES, "default": {"name": "format"}}, "Valid: chat, math"),
    ],
)
def test_what_cannot_be_routed_is_said_at_once(args, words):
    with pytest.raises(PluginError, match=words):
        Routed(**args)


def test_in_a_recipe_the_rewards_of_a_route_appear_in_the_metrics():
    segment = Segment(
        ids=np.arange(2), version=Version(step=0, hash=""), logprobs=np.zeros(2, np.float32)
    )
    completions = [
        Completion(request="r", index=i, segments=(segment,), text=text, finish="stop")
        for i, text in enumerate((RIGHT, WRONG))
    ]
    task = Task(uid="t", prompt="2 + 2?", answer="4", columns={"task": "math"})
    rewards = RewardSet([("routed", REWARDS["routed"](routes=ROUTES), 1.0)])
    scores = rewards.score(Prompt(task=task, text="2 + 2?", ids=(1,)), completions)
    assert [(s.value, s.status) for s in scores] == [(1.0, "correct"), (0.0, "wrong")]
    assert rewards.take_metrics() == {"rewards/math/accuracy": 0.5}


def test_an_answer_is_what_follows_the_thought():
    assert answer_part("<think>secret</think> Hello <b>there</b>") == "Hello <b>there</b>"
    assert answer_part(RIGHT) == "4"
    assert answer_part("no thought at all") == "no thought at all"
    assert answer_part("<think>never ended <answer>4</answer>") == ""


@pytest.mark.filterwarnings("ignore")
def test_a_reward_model_may_judge_the_answer_alone(tmp_path):
    save_scorer(tmp_path, letters_tokenizer())
    judged = {
        part: REWARDS["reward_model"](str(tmp_path), part=part)(
            prompts=["q"] * 3,
            completions=["<think>a</think>hello", "<think>b</think>hello", "hello"],
        )
        for part in ("answer", "all")
    }
    assert judged["answer"] == pytest.approx([judged["all"][2]] * 3, abs=1e-6)
    assert abs(judged["all"][0] - judged["all"][1]) > 1e-6
