"""docs/examples/token_advantage.md: the file that the page shows, by hand and in a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from grpo.cli import main
from grpo.method.advantage import reward_matrix
from grpo.method.table import bound_advantage
from grpo.method.token_values import checked_advantages
from grpo.rundir import ledger
from grpo.types import Completion, Group, Rollout, Score, Segment, Task, Version
from tests.examples.pages import write_files
from tests.examples.short import SHORT
from tests.grpo.rows import group


class Letters:
    """Every token is a letter, but for 0, which is the marker."""

    def decode(self, ids: list[int]) -> str:
        return "".join("<answer>" if i == 0 else chr(i) for i in ids)


def answered(texts: list[str], rewards: list[float | None], answer: str) -> Group:
    """A group of completions of these texts, in which a # is the marker."""
    whole = group(0, 2, [1] * len(texts), rewards)
    prompt = replace(whole.prompt, task=Task(uid="t", prompt="?", answer=answer))
    rollouts: list[Rollout] = []
    for old, text in zip(whole.rollouts, texts, strict=True):
        ids = np.array([0 if letter == "#" else ord(letter) for letter in text])
        logprobs = np.zeros(len(ids), np.float32)
        segment = Segment(ids=ids, version=Version(step=0, hash=""), logprobs=logprobs)
        completion = Completion(request="0", index=0, segments=(segment,), text=text, finish="stop")
        score = Score(value=old.score.value, status=old.score.status)
        rollouts.append(Rollout(prompt=prompt, completion=completion, score=score))
    return replace(whole, prompt=prompt, rollouts=tuple(rollouts))


def test_the_token_that_completes_the_answer_has_the_bonus(tmp_path: Path) -> None:
    file = write_files("token_advantage", tmp_path)["token_advantage.py"]
    advantage = bound_advantage(f"{file}:answer_bonus", {"bonus": 0.25}, tokenizer=Letters())
    texts = ["42#42.#42", "#4", "#42", "#42"]
    groups = [answered(texts, [1.0, 0.0, 1.0, None], "42")]
    (found,) = checked_advantages(advantage(reward_matrix(groups), groups), groups)
    # of rewards 1, 0, 1: mean 2/3, standard deviation 1/sqrt(3)
    high, low = (x / (3**-0.5 + 1e-4) for x in (1 / 3, -2 / 3))
    expected = np.full(9, high)
    expected[4] += 0.25  # 4, 2, marker, 4, and this 2
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)
    np.testing.assert_allclose(found[1], [low, low], rtol=1e-12)
    np.testing.assert_allclose(found[2], [high, high, high + 0.25], rtol=1e-12)
    assert found[3].tolist() == [0, 0, 0]  # without a reward: nothing


def test_it_trains_and_the_ledger_has_a_number_for_each_token(tmp_path: Path) -> None:
    file = write_files("token_advantage", tmp_path)["token_advantage.py"]
    own = [f"algorithm.advantage={file}:answer_bonus", f"run.dir={tmp_path / 'run'}"]
    bonus = "algorithm.advantage_args={bonus: 0.125}"
    assert main(["train", "parity-r1-zero", *own, bonus, *SHORT, "learner.max_steps=1"]) == 0
    lines = list(ledger.read(tmp_path / "run" / "ledger", 1))
    assert lines
    raised = 0
    for line in lines:
        advantages = line["advantage"]
        assert len(advantages) == sum(len(segment["ids"]) for segment in line["segments"])
        own_token = [a for a in advantages if abs(a - min(advantages) - 0.125) < 1e-5]
        assert len(own_token) == ("<answer>" + answer_of(line["task"]) in line["completion"])
        raised += len(own_token)
    assert raised


def answer_of(task: str) -> str:
    """The parity of the task's bits, as `data/parity.py` defines it."""
    return str(task.rpartition("/")[2].count("1") % 2)
