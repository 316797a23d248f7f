"""Which figure is called what: accuracy is a verifier's, others have the name of their reward."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo.commands import show
from grpo.commands.summary import print_summary
from grpo.commands.train import train_recipe
from grpo.config.config import load
from grpo.errors import DataError
from grpo.evaluation import figures, heldout, tally
from grpo.outside.code.plugins import load as plugin
from grpo.outside.terminal.console import Console
from grpo.rewards import RewardSet
from grpo.rewards.sentinel import sentinel
from grpo.rewards.verdicts import judges, verdict
from grpo.rollout.fake import FakeEngine
from grpo.rundir.ledger import append
from grpo.rundir.log import RunLog
from grpo.stages.rl_evaluations import best, gain
from grpo.training.batch_json import to_json
from grpo.training.curriculum import group_pass_rate, read_pass_rates
from grpo.training.rollout_metrics import group_metrics, rollout_metrics
from grpo.types import Completion, Group, Prompt, Rollout, Sampling, Score, Segment, Task, Version

FORMED = "<think>a</think><answer>{}</answer>"
BARE = r"\boxed{{{}}}"
GOLDS = ("4", "5")
# 2 of 4 samples of the first task are right, 1 of 4 of the second; of the greedy ones, the first
SAID = {
    "greedy/0": [FORMED.format(4)],
    "greedy/1": [BARE.format(9)],
    "sample/0": [FORMED.format(4), BARE.format(4), FORMED.format(9), BARE.format(9)],
    "sample/1": [BARE.format(5), FORMED.format(9), FORMED.format(8), FORMED.format(7)],
}


def short(completions: list[str], **_: Any) -> list[float]:
    """A bonus for brevity."""
    return [-float(len(text)) for text in completions]


def exact(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """0 or 1 by a plain function, as TRL's users have them."""
    return [float(gold in text) for text, gold in zip(completions, answer, strict=True)]


def sampled_only(completions: list[str], **_: Any) -> list[float | None]:
    """None of the greedy completion of each task: they come alone."""
    return [1.0 if len(completions) > 1 else None for _ in completions]


def never(completions: list[str], **_: Any) -> list[float | None]:
    return [None for _ in completions]


class Odd:
    """A verifier that pays 2 and -1.5."""

    def verify(self, completion: str, task: Task) -> Score:
        right = str(task.answer) in completion
        return Score(value=2.0 if right else -1.5, status="correct" if right else "wrong")


class Marks:
    """A verifier by its shape, which says neither right nor wrong."""

    def verify(self, completion: str, task: Task) -> Score:
        return Score(value=0.25, status="scored")


def make(name: str, **args: Any) -> Any:
    own = {"short": short, "exact": exact, "sampled_only": sampled_only, "never": never}
    own |= {"odd": Odd(), "marks": Marks()}
    return own[name] if name in own else plugin("reward", name, args)


def rewards_of(*names: str) -> RewardSet:
    return RewardSet([(name, make(name), 0.5) for name in names])


class Letters:
    """A token a character."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))


def prompts(golds: tuple[str, ...] = GOLDS) -> list[Prompt]:
    tasks = [Task(uid=f"t{i}", prompt="q", answer=gold) for i, gold in enumerate(golds)]
    return [Prompt(task=task, text="q", ids=(1,)) for task in tasks]


def asked(
    rewards: RewardSet,
    path: Path,
    said: dict[str, list[str]] = SAID,
    golds: tuple[str, ...] = GOLDS,
) -> dict[str, Any]:
    """The evaluation of scripted completions, by the method that a run calls."""
    judge = heldout.HeldOut(
        prompts=prompts(golds),
        rewards=rewards,
        sampling=Sampling(max_tokens=100),
        num_samples=4,
        seed=0,
    )
    engine = FakeEngine(
        lambda request, index: said[request.uid][index],
        Letters(),
        version=Version(step=0, hash=""),
    )
    return judge.evaluate(engine, path)


def groups_of(rewards: RewardSet) -> list[Group]:
    """The same samples as two training groups."""
    found: list[Group] = []
    for place, prompt in enumerate(prompts()):
        segment = Segment(
            ids=np.array([5]), version=Version(step=0, hash=""), logprobs=np.zeros(1, np.float32)
        )
        completions = [
            Completion(request="r", index=i, segments=(segment,), text=text, finish="stop")
            for i, text in enumerate(SAID[f"sample/{place}"])
        ]
        scores = rewards.score(prompt, completions)
        rollouts = tuple(
            Rollout(prompt=prompt, completion=completion, score=score)
            for completion, score in zip(completions, scores, strict=True)
        )
        found.append(Group(prompt=prompt, visit=0, rollouts=rollouts))
    return found


# Who says right or wrong


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("accuracy", {}, True),
        ("countdown", {}, True),
        ("knights", {}, True),
        ("code", {}, True),
        ("code", {"partial": True}, False),
        ("reasoning_gym", {}, True),
        ("reasoning_gym", {"strict": False}, False),
        ("format", {}, False),
        ("tags", {}, False),
        ("language_consistency", {}, False),
        ("repetition", {}, False),
        ("length_cosine", {"max_length": 10}, False),
        ("soft_overlong", {"max_length": 10, "cache": 2}, False),
        ("random", {}, False),
        ("gate", {"reward": "format"}, False),
        ("routed", {"routes": {"a": {"name": "format"}, "b": {"name": "accuracy"}}}, True),
        ("routed", {"routes": {"a": {"name": "format"}}}, False),
        ("exact", {}, False),
        ("odd", {}, True),
    ],
)
def test_a_verifier_says_right_or_wrong_and_nothing_else_does(name, args, says):
    assert judges(make(name, **args)) is says


@pytest.mark.parametrize("names", [("short", "accuracy"), ("format", "accuracy"), ("accuracy",)])
def test_the_verdict_is_the_verifiers_wherever_it_stands(names, tmp_path):
    rewards = rewards_of(*names)
    groups = groups_of(rewards)
    found = rollout_metrics(groups, names)
    assert found["accuracy"] == 3 / 8
    assert found["status/correct"] == 3 / 8
    assert [group_pass_rate([r.score for r in group.rollouts]) for group in groups] == [0.5, 0.25]
    # 5 of 8 are well formed, 3 of 8 right
    assert sentinel(groups)["sentinel/format_minus_accuracy"] == 5 / 8 - 3 / 8
    append(tmp_path, 1, groups, np.zeros((2, 4)))
    assert read_pass_rates(str(tmp_path)) == {"t0": 0.5, "t1": 0.25}


@pytest.mark.parametrize("names", [("format",), ("exact",), ("short", "format"), ("marks",)])
def test_without_a_verifier_nothing_is_called_accuracy(names, tmp_path):
    rewards = rewards_of(*names)
    groups = groups_of(rewards)
    found = rollout_metrics(groups, names)
    assert not {"accuracy", *(f"accuracy/{name}" for name in names)} & set(found)
    assert "completions/mean_length_correct" not in found
    assert "sentinel/format_minus_accuracy" not in sentinel(groups)
    assert {verdict(r.score) for group in groups for r in group.rollouts} == {None}
    # rewards that only compare: a group of different ones is between, equal ones are not
    rates = {group_pass_rate([r.score for r in group.rollouts]) for group in groups}
    assert rates == ({1.0} if names == ("marks",) else {0.5})
    figure = asked(rewards, tmp_path / "e.jsonl")
    assert not {"pass1", "greedy", "pass_at_k", "maj_at_k"} & set(figure)
    assert all("pass1" not in of for of in figure["rewards"].values())
    assert (figure["length_right"], figure["length_wrong"]) == (None, None)
    text = figures.sentence(figure)
    assert all(f"{name}: mean " in text for name in names)
    assert "pass@1" not in text


def test_of_several_verifiers_each_has_its_own_accuracy():
    names = ("short", "odd", "accuracy")
    found = rollout_metrics(groups_of(rewards_of(*names)), names)
    assert (found["accuracy"], found["accuracy/odd"], found["accuracy/accuracy"]) == (0.375,) * 3
    with_code = rewards_of("accuracy", "countdown")  # no row has numbers: it never applies
    found = rollout_metrics(groups_of(with_code), ("accuracy", "countdown"))
    assert (found["accuracy"], found["accuracy/accuracy"]) == (0.375, 0.375)
    assert "accuracy/countdown" not in found


def test_groups_of_one_reward_are_all_right_only_by_a_verdict():
    wrong = [BARE.format(9)] * 4
    prompt = prompts()[0]
    groups = groups_of(rewards_of("format", "accuracy"))
    segment = groups[0].rollouts[0].completion.segments
    completions = [
        Completion(request="r", index=i, segments=segment, text=FORMED.format(9), finish="stop")
        for i in range(len(wrong))
    ]
    scores = rewards_of("format", "accuracy").score(prompt, completions)
    assert {score.value for score in scores} == {0.5}  # for the form
    rollouts = tuple(
        Rollout(prompt=prompt, completion=completion, score=score)
        for completion, score in zip(completions, scores, strict=True)
    )
    found = group_metrics([Group(prompt=prompt, visit=0, rollouts=rollouts)])
    assert found["frac_reward_zero_std/all_wrong"] == 1.0
    assert group_pass_rate(scores) == 0.0


def test_a_reward_that_scores_nothing_has_no_mean(tmp_path):
    found = rollout_metrics(groups_of(rewards_of("never")), ("never",))
    assert found["frac_unscored"] == 1.0
    assert not {"reward", "rewards/never/mean", "accuracy"} & set(found)
    out = io.StringIO()
    console = Console(file=out, width=200)
    with RunLog(tmp_path, title="rl", max_steps=1, console=console) as log:
        log.step(1, found | {"entropy": 1.0})
    assert "rl step 1/1  no completion was scored  length 1" in out.getvalue()


# Held-out figures


@pytest.mark.parametrize(
    "names", [("short", "accuracy"), ("format", "accuracy"), ("accuracy", "short"), ("accuracy",)]
)
def test_accuracy_is_the_first_verifiers_after_a_bonus_too(names, tmp_path):
    found = asked(rewards_of(*names), tmp_path / "e.jsonl")
    assert found["headline"] == "accuracy"
    assert (found["greedy"], found["pass1"]) == (0.5, 0.375)
    assert found["pass_at_k"] == pytest.approx({"1": 0.375, "2": (5 / 6 + 1 / 2) / 2, "4": 1.0})
    assert found["rewards"]["accuracy"]["pass1"] == 0.375
    start = "greedy 0.500  pass@1 0.375 ["
    assert figures.sentence(found).startswith(start)
    rows = [row[:2] for row in figures.rows(found)]
    assert rows[:2] == [("greedy accuracy", "0.500"), ("pass@1", "0.375")]
    if "short" in names:
        lengths = [len(text) for key in ("sample/0", "sample/1") for text in SAID[key]]
        of = found["rewards"]["short"]
        assert of["mean"] == pytest.approx(-np.mean(lengths))
        assert "pass1" not in of
        assert of["mean_ci"][0] <= of["mean"] <= of["mean_ci"][1]
        assert found["mean_reward"] == pytest.approx(0.5 * (0.375 - np.mean(lengths)))


def test_what_a_verifier_pays_is_not_its_accuracy(tmp_path):
    found = asked(rewards_of("odd"), tmp_path / "e.jsonl")
    assert (found["greedy"], found["pass1"]) == (0.5, 0.375)
    assert found["pass_at_k"]["4"] == 1.0
    assert found["rewards"]["odd"]["mean"] == 0.375 * 2 - 0.625 * 1.5
    assert figures.sentence(found).startswith("odd: greedy 0.500  pass@1 0.375 [")


def test_two_verifiers_are_both_shown_by_name(tmp_path):
    found = asked(rewards_of("odd", "accuracy"), tmp_path / "e.jsonl")
    assert (found["headline"], found["pass1"]) == ("odd", 0.375)
    text = figures.sentence(found)
    assert text.startswith("odd: greedy 0.500  pass@1 0.375 [")
    assert "; accuracy: greedy 0.500  pass@1 0.375 [" in text
    headings = [row[0] for row in figures.rows(found)]
    assert headings[:4] == [
        "odd: greedy accuracy",
        "odd: pass@1",
        "accuracy: greedy accuracy",
        "accuracy: pass@1",
    ]


def test_rewards_without_a_verdict_have_a_mean_with_an_interval(tmp_path):
    found = asked(rewards_of("exact", "short"), tmp_path / "e.jsonl")
    of = found["rewards"]["exact"]
    assert (found["headline"], of["mean"], of["greedy"]) == ("exact", 0.375, 0.5)
    assert of["mean_ci"] == [0.25, 0.5]
    text = figures.sentence(found)
    assert text.startswith("exact: mean 0.375 [0.250, 0.500]  greedy 0.500; short: mean -")


def test_what_was_not_scored_is_no_number(tmp_path):
    found = asked(rewards_of("sampled_only"), tmp_path / "e.jsonl")
    assert found["rewards"]["sampled_only"]["greedy"] is None
    text = figures.sentence(found)
    assert "mean 1.000 [1.000, 1.000]  greedy no completion was scored" in text
    assert ("greedy mean sampled_only", "no completion was scored") in [
        row[:2] for row in figures.rows(found)
    ]
    found = asked(rewards_of("never"), tmp_path / "n.jsonl")
    assert figures.sentence(found).startswith("never: no completion was scored  mean length ")
    assert "nan" not in json.dumps(found).lower()
    with pytest.raises(DataError, match=r"'never' scored no held-out completion \(status: not_app"):
        tally.checked(found)
    blank = asked(rewards_of("accuracy"), tmp_path / "b.jsonl", golds=(" ", " "))
    with pytest.raises(DataError, match="unparseable_gold; most often: accuracy: the gold answer"):
        tally.checked(blank)
    # a verifier that judged nothing is not passed over for a bonus
    found = asked(rewards_of("short", "countdown"), tmp_path / "v.jsonl")
    with pytest.raises(DataError, match="'countdown' scored no held-out completion"):
        tally.checked(found)


def digits(completions: list[str], **_: Any) -> list[float | None]:
    """None of completions without an 8 or a 9."""
    return [1.0 if "8" in text or "9" in text else None for text in completions]


def test_a_figure_of_some_completions_says_of_how_many(tmp_path):
    every, some = (
        asked(RewardSet([("r", reward, 1.0)]), tmp_path / "r.jsonl") for reward in (exact, digits)
    )
    assert (every["scored"], some["scored"]) == ({"r": 8}, {"r": 4})
    assert "scored" not in figures.sentence(every)
    assert figures.sentence(some).startswith("r: mean 1.000 [1.000, 1.000], 4 of 8 scored  greedy ")
    assert ("r: scored completions", "4 of 8", "-") in figures.rows(some)
    assert len(figures.rows(every)) == len(figures.rows(some)) - 1
    right = asked(rewards_of("accuracy"), tmp_path / "a.jsonl", golds=("4", " "))
    assert figures.sentence(right) == (
        "greedy 1.000  pass@1 0.500 [0.500, 0.500], 4 of 8 scored  mean length "
        f"{right['mean_length']:.1f} tokens"
    )


def test_verdicts_of_earlier_versions_are_in_the_values(tmp_path):
    asked(rewards_of("accuracy", "format"), tmp_path / "e.jsonl")
    lines = heldout.read_lines(tmp_path / "e.jsonl")
    assert tally.figures(lines, ["accuracy", "format"], 0)["headline"] == "accuracy"
    for line in lines:
        del line["right"], line["value"]
    assert tally.figures(lines, ["accuracy", "format"], 0)["pass1"] == 0.375


def test_a_table_has_accuracy_only_of_a_verifier(tmp_path):
    for names in (("short", "accuracy"), ("exact", "short")):
        asked(rewards_of(*names), tmp_path / "e.jsonl")
        lines = heldout.read_lines(tmp_path / "e.jsonl")
        row = tally.columns(lines, names, 0)
        if "accuracy" in names:
            assert row["accuracy"][0] == 0.375
            assert list(row) == ["accuracy", "greedy", "short", "length", "truncated"]
        else:
            assert row["exact"] == [0.375, 0.25, 0.5]
            assert list(row) == ["exact", "short", "length", "truncated"]


def test_the_best_evaluation_is_that_of_the_verifier_or_of_the_sum():
    def found(**of: Any) -> dict[str, Any]:
        return {"headline": "a", "mean_reward": 0.0, **of}

    assert best({"before": found(pass1=0.1, mean_reward=9.0), "after": found(pass1=0.2)}) == "after"
    assert best({"before": found(mean_reward=-3.0), "after": found(mean_reward=-2.0)}) == "after"
    assert best({"before": found(mean_reward=-3.0), "after": found(mean_reward=None)}) == "before"
    # one evaluation without verdicts: only what both have is compared
    assert best({"before": found(pass1=0.9, mean_reward=1.0), "after": found(mean_reward=2.0)}) == (
        "after"
    )


def test_a_gain_is_in_verdicts_or_in_values(tmp_path):
    later = {**SAID, "sample/0": [FORMED.format(4)] * 4}
    for names, key in ((("short", "odd"), "pass1"), (("exact",), "mean"), (("never",), "mean")):
        for name, script in (("before", SAID), ("after", later)):
            found = asked(rewards_of(*names), tmp_path / f"{name}.jsonl", script)
        gained = gain(tmp_path, found["headline"], 0)
        assert gained["of"] == names[-1]
        assert gained[key] == (None if names == ("never",) else 0.25)  # 2 of 8 more


def test_a_batch_put_aside_keeps_its_verdicts():
    from grpo.training.gathering import Batch

    (group, _) = groups_of(rewards_of("short", "accuracy"))
    batch = Batch(step=1, groups=(group,), positions=(0,), metrics={}, outcomes=())
    scores = to_json(batch)["groups"][0]["scores"]
    assert [score[-1] for score in scores] == [{"accuracy": r} for r in (True, True, False, False)]


# A whole run


REWARD = """
def short(completions, **_):
    return [-len(text) / 2 for text in completions]
"""


def test_a_run_with_a_bonus_ahead_of_its_verifier(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    out = io.StringIO()
    small = [
        f"run.dir={tmp_path / 'run'}",
        "run.threads=1",
        "rollout.prompts_per_step=4",
        "rollout.num_generations=4",
        "learner.max_steps=1",
        "eval.num_tasks=8",
        "eval.num_samples=2",
    ]
    bonus = f"{{name: {tmp_path / 'mine.py'}:short, weight: 0.1}}"
    recipe = load("parity-r1-zero", [*small, f"rewards=[{bonus}, {{name: accuracy}}]"])
    train_recipe(recipe, Console(file=out, width=200))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    print_summary(summary, tmp_path, Console(file=out, width=200))
    lines = heldout.read_lines(tmp_path / "run" / "eval" / "before.jsonl")
    sampled = [line for line in lines if line["mode"] == "sample"]
    right = np.mean([line["parts"]["accuracy"] for line in sampled])
    assert summary["before"]["pass1"] == right
    assert 0 < right < 1
    short = [line["parts"]["short"] for line in sampled]
    assert summary["before"]["rewards"]["short"]["mean"] == pytest.approx(np.mean(short))
    assert summary["gain"]["of"] == "accuracy"
    text = out.getvalue()
    assert f"pass@1 {right:.3f} [" in text
    assert "accuracy 0." in text
    shown = Console(file=io.StringIO(), width=160)
    show.print_run(tmp_path / "run", shown)
    assert "short: mean" in shown.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
