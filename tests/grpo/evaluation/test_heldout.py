"""Which tasks a held-out evaluation asks; a source without enough of them is a sentence."""

from __future__ import annotations

import json

import pytest

from grpo.errors import DataError
from grpo.evaluation import heldout
from grpo.rewards.compose import RewardSet
from grpo.rollout.fake import FakeEngine
from grpo.types import Prompt, Sampling, Task
from tests.rollout.tiny_models import V0, Letters


class Endless:
    """A source without end that holds seven different tasks."""

    def size(self, split):
        return None

    def task(self, split, index):
        return Task(uid=str(index % 7), prompt="?")


class Template:
    def __init__(self, fits):
        self.fits = fits

    def render(self, task):
        return Prompt(task=task, text="?", ids=(1,)) if self.fits else None

    def limit(self):
        return 4, "data.max_prompt_length=4"


def test_an_endless_source_gives_each_task_once():
    prompts = heldout.prepare(Endless(), Template(True), 5)
    assert [p.task.uid for p in prompts] == list("01234")
    assert len(heldout.prepare(Endless(), Template(True), 20)) == 7


def test_an_endless_source_in_which_nothing_fits_is_a_sentence():
    with pytest.raises(DataError, match="max_prompt_length"):
        heldout.prepare(Endless(), Template(False), 5)


def test_lines_are_in_the_order_of_the_prompts_whichever_is_answered_first(tmp_path):
    prompts = [Prompt(task=Task(uid=uid, prompt="?"), text="?", ids=(1,)) for uid in "bac"]
    rewards = RewardSet([("mine", lambda completions, **_: [0.0] * len(completions), 1.0)])
    engine = FakeEngine(lambda _, index: "ab"[index], Letters(), version=V0, reverse=True)
    judge = heldout.HeldOut(
        prompts=prompts,
        rewards=rewards,
        sampling=Sampling(max_tokens=4, eos_ids=(5,)),
        num_samples=2,
        seed=0,
    )
    seen: list[tuple[int, int]] = []
    judge.evaluate(engine, tmp_path / "found.jsonl", lambda done, total: seen.append((done, total)))
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [(line["mode"], line["task"], line["sample"]) for line in lines] == [
        *(("greedy", uid, 0) for uid in "bac"),
        *(("sample", uid, index) for uid in "bac" for index in (0, 1)),
    ]
    assert seen == [(done, 6) for done in range(1, 7)]
