"""What a curriculum asks and what it passes over, and that a killed run asks the same again."""

from __future__ import annotations

import copy
import gzip
import json
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo.commands.train import train_recipe
from grpo.config import config
from grpo.config.config import from_dict
from grpo.config.schema import RLStage, Rollout
from grpo.data.source import TaskOrder
from grpo.errors import DataError, PluginError, RecipeError
from grpo.outside.terminal.console import Console
from grpo.stages.rl_evaluations import best
from grpo.stages.wiring import build_heldout, build_rl_sampler
from grpo.training.batch_json import from_json, to_json
from grpo.training.curriculum import Adaptive, Curriculum, PassRates, pass_rate, read_pass_rates
from grpo.training.drawing import draw
from grpo.training.gathering import Batch, BatchAssembler
from grpo.types import Completion, Sampling, Score, Segment, Task, Version
from tests.grpo.commands.test_run import base, killed_and_resumed, metrics, recipe
from tests.grpo.learner.test_learner import make, rows_of
from tests.grpo.rows import group, three_groups, tiny_model

from .pacing import spec

__all__ = ["base"]  # a fixture


def task(uid: str, **columns: Any) -> Task:
    return Task(uid=uid, prompt=uid, columns=columns)


# Pass rates


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        ([("correct", 1.1), ("wrong", 0.1), ("timeout", 0.0), ("unparseable_answer", 0.0)], 0.25),
        ([("correct", 1.1), ("correct", 1.0)], 1.0),  # rewards differ, both are right
        ([("correct", 1.0), ("grader_error", None)], 1.0),
        ([("grader_error", None)], None),
        ([("scored", -0.3), ("scored", 0.4)], 0.5),  # no verdict: they only compare
        ([("scored", 0.4), ("scored", 0.4)], 1.0),
        ([("scored", 0.0), ("scored", 0.0)], 0.0),
    ],
)
def test_a_pass_rate_is_the_share_that_is_right(scores, rate):
    assert pass_rate(scores) == rate


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    lines = [
        {"task": "never", "pass_rate": 0.0},
        {"task": "seldom", "pass_rate": 0.1},
        {"task": "often", "pass_rate": 0.9},
        *[{"task": "half", "status": s, "mode": "sample"} for s in ("correct", "wrong")],
        {"task": "half", "status": "wrong", "mode": "greedy"},
        *[{"task": "always", "status": "correct", "value": 1.0}] * 3,
    ]
    file = tmp_path / "rates.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_measured_rates_are_read_from_lines_of_either_kind(measured: Path, tmp_path: Path):
    expected = {"never": 0.0, "seldom": 0.1, "often": 0.9, "half": 0.5, "always": 1.0}
    assert read_pass_rates(str(measured)) == expected
    folder = tmp_path / "ledger"
    folder.mkdir()
    lines = measured.read_text().splitlines(keepends=True)
    for name, part in (("step_000001", lines[:4]), ("step_000002", lines[4:])):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(part)
    assert read_pass_rates(str(folder)) == expected


def test_a_band_holds_its_ends(measured: Path):
    rule = PassRates(str(measured), low=0.1, high=0.9)
    kept = [u for u in ("never", "seldom", "half", "often", "always") if not rule.skips(task(u), 0)]
    assert kept == ["seldom", "half", "often"]
    assert rule.skips(task("unknown"), 0)
    assert not PassRates(str(measured), unmeasured="keep").skips(task("unknown"), 0)
    assert rule.metrics() == {"in_band": 3.0}
    with pytest.raises(DataError, match=r"none of the 5 tasks in .* from 0\.91 to 0\.99"):
        PassRates(str(measured), low=0.91, high=0.99)


# Adaptive sampling


def test_a_task_that_is_all_right_or_all_wrong_is_mostly_passed_over():
    rule = Adaptive(skip=0.75)
    rule.learn([(0, "easy", 1.0), (1, "hard", 0.0), (2, "mixed", 0.5)])
    for uid, expected in (("easy", 0.75), ("hard", 0.75), ("mixed", 0.0), ("new", 0.0)):
        skipped = np.mean([rule.skips(task(uid), place) for place in range(4000)])
        assert skipped == pytest.approx(expected, abs=4 * np.sqrt(0.75 * 0.25 / 4000)), uid
    assert rule.metrics() == {
        "tasks": 3.0,
        "all_right": pytest.approx(1 / 3),
        "all_wrong": pytest.approx(1 / 3),
        "between": pytest.approx(1 / 3),
    }
    rule.learn([(9, "easy", 0.5)])
    assert not any(rule.skips(task("easy"), place) for place in range(100))


def test_a_running_rate_is_over_the_last_groups():
    rule = Adaptive(window=2)
    for rate, expected in ((1.0, 1.0), (0.0, 0.5), (0.0, 0.0), (0.5, 0.25)):
        rule.learn([(0, "t", rate)])
        assert rule.rate("t") == expected


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_step_knows_what_it_may_know_and_no_more(staleness):
    # However early outcomes arrive: what a step asks must not depend on which thread is quicker.
    curriculum = Curriculum([("adaptive", Adaptive())], staleness)
    for step in range(1, 7):
        curriculum.observe(step, [(0, f"t{step}", 1.0)])
    curriculum.advance(5)
    known = set(curriculum.rules["adaptive"].state())
    assert known == {f"t{step}" for step in range(1, 5 - staleness)}
    # and so after a resume, from plain JSON
    saved = json.loads(json.dumps(curriculum.state()))
    resumed = Curriculum([("adaptive", Adaptive())], staleness)
    resumed.restore(saved)
    for one in (curriculum, resumed):
        one.advance(6)
    assert resumed.state() == curriculum.state()
    assert f"t{5 - staleness}" in resumed.rules["adaptive"].state()


def passes(rates):
    rule = Adaptive(skip=0.5)
    rule.learn([(0, uid, rate) for uid, rate in rates.items()])
    return Curriculum([("adaptive", rule)])


def test_drawing_passes_tasks_over_and_counts_them():
    rates = {str(i): 1.0 for i in range(0, 40, 2)}
    chosen = spec(curriculum=passes(rates))
    drawn, counts = draw(chosen, 12)
    plain = spec()
    first, _ = draw(plain, 40)
    assert len(drawn) == 12
    uids = [d.prompt.task.uid for d in drawn]
    # in the same order, with places that find them again, and fewer of the even ones
    everyone = [d.prompt.task.uid for d in first]
    assert uids == sorted(uids, key=everyone.index)
    for one in drawn:
        assert chosen.tasks.at(one.position)[0].uid == one.prompt.task.uid
    assert counts["curriculum/adaptive/skipped"] > 0
    total = chosen.tasks.position
    assert total == 12 + counts["curriculum/adaptive/skipped"] + counts["prompts/dropped"]
    odd = sum(int(uid) % 2 for uid in uids)
    assert odd > 6


def test_a_curriculum_that_leaves_nothing_stops_the_run(tmp_path: Path):
    (tmp_path / "r.jsonl").write_text('{"task": "elsewhere", "pass_rate": 0.5}\n')
    nothing = Curriculum([("pass_rates", PassRates(str(tmp_path / "r.jsonl")))])
    with pytest.raises(DataError, match=r"passed over 1.* tasks in a row; widen its band"):
        draw(spec(curriculum=nothing), 2)


def finished(assembler, values):
    for request in assembler.more():
        place = int(request.uid.partition("/")[2])
        for index in range(2):
            segment = Segment(
                ids=np.array([3]), version=Version(step=0, hash="h"), logprobs=np.zeros(1, "f4")
            )
            completion = Completion(
                request=request.uid, index=index, segments=(segment,), text="", finish="stop"
            )
            future: Future[list[Score]] = Future()
            future.set_result([Score(value=v, status="scored") for v in values[place]])
            assembler.add(completion, lambda *_, f=future: f)
    return assembler.batch()


def test_outcomes_are_of_groups_that_are_not_kept_too_and_survive_a_file():
    rule = Curriculum([("adaptive", Adaptive())])
    chosen = spec(curriculum=rule, prompts_per_step=2, oversample=2.0)
    batch = finished(BatchAssembler(chosen, 1), [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (None, None)])
    assert len(batch.groups) == 2
    assert [rate for _, _, rate in batch.outcomes] == [1.0, 0.5, 0.0]
    uids = [chosen.tasks.at(place)[0].uid for place, _, _ in batch.outcomes]
    assert uids == [uid for _, uid, _ in batch.outcomes]
    again = from_json(json.loads(json.dumps(to_json(batch))), chosen)
    assert isinstance(again, Batch)
    assert again.outcomes == batch.outcomes
    assert finished(BatchAssembler(spec(prompts_per_step=1), 1), [(1.0, 0.0)]).outcomes == ()


# Lengths and temperatures


def test_the_greatest_length_changes_at_its_steps():
    rollout = Rollout(max_completion_length={1: 8, 3: 16, 10: 24})
    lengths = [rollout.completion_length(step) for step in (1, 2, 3, 9, 10, 99)]
    assert lengths == [8, 8, 16, 16, 24, 24]
    assert rollout.longest_completion == 24
    chosen = spec(length_at=rollout.completion_length, sampling=Sampling(max_tokens=24))
    asked = {
        step: BatchAssembler(chosen, step).more()[0].sampling.max_tokens for step in (1, 3, 10)
    }
    assert asked == {1: 8, 3: 16, 10: 24}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{5: 8}", "the first length should be that of step 1"),
        ("{1: 8, x: 9}", "'x' is no step"),
        ("{1: 0}", "whole number, 1 or more"),
        ("'16'", "whole number, 1 or more"),
        ("{}", "step 1"),
    ],
)
def test_lengths_that_cannot_be_are_said(value, words, tmp_path):
    with pytest.raises(RecipeError, match=rf"rollout\.max_completion_length = .*{words}"):
        from_dict(recipe("org/base", tmp_path), [f"rollout.max_completion_length={value}"])


def test_lengths_survive_the_file_of_a_run(tmp_path):
    override = ["rollout.max_completion_length={1: 8, 4: 16}"]
    one = from_dict(recipe("org/base", tmp_path), override)
    again = from_dict(json.loads(json.dumps(config.resolved(one))))
    assert again.stages[0].rollout.max_completion_length == {1: 8, 4: 16}


class Two:
    """Even tasks are sampled at 0.5, odd ones as the recipe says."""

    def size(self, split):
        return 40

    def task(self, split, index):
        own = {"rollout": {"temperature": 0.5}} if index % 2 == 0 else {}
        return Task(uid=str(index), prompt=str(index), answer="x", columns=own)


def test_requests_have_the_temperature_of_their_task():
    chosen = spec(
        tasks=TaskOrder(Two(), "train", seed=0),
        sampling=Sampling(temperature=0.9, max_tokens=4),
        prompts_per_step=8,
    )
    assembler = BatchAssembler(chosen, 1)
    asked = {r.uid: r.sampling.temperature for r in assembler.more()}
    for uid, temperature in asked.items():
        drawn = assembler._drawn[int(uid.partition("/")[2])]
        assert temperature == (0.5 if int(drawn.prompt.task.uid) % 2 == 0 else 0.9)
    assert set(asked.values()) == {0.5, 0.9}


# What cannot be


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.ref_model_sync_steps=4"], "set beta above 0"),
        (
            ["algorithm.ref_model_sync_steps=4", "algorithm.beta=0.1", "model.lora.rank=4"],
            "cannot refresh the reference of an adapter",
        ),
        (["eval.keep_best=true", "eval.steps=0"], "set eval.steps"),
        (["curriculum=[{name: adaptiv}]"], "Did you mean 'adaptive'"),
        (["curriculum=[{name: adaptive, args: {skp: 1}}]"], "'skp'.*'skip'"),
    ],
)
def test_settings_that_do_nothing_are_refused(overrides, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        from_dict(recipe("org/base", tmp_path), overrides)


@pytest.mark.parametrize("args", [{"skip": 1.0}, {"skip": 0.0}, {"window": 0}])
def test_an_adaptive_rule_meets_every_task_again(args):
    with pytest.raises(PluginError, match="adaptive"):
        Adaptive(**args)


def test_the_best_evaluation_is_the_earliest_of_the_highest():
    values = {"before": 0.2, "step_000004": 0.6, "step_000008": 0.6, "after": 0.5}
    assert best({name: {"pass1": value} for name, value in values.items()}) == "step_000004"
    assert best({"before": {"pass1": 0.0}, "after": {"pass1": 0.0}}) == "before"


# Whole runs


def settings(base: str, folder: Path) -> dict[str, Any]:
    """A mixture at two temperatures with everything on that this file is about."""
    tree: dict[str, Any] = recipe(base, folder)
    part = {"source": "parity", "args": {"bits": 4}}
    parts = [
        {"name": "cold", "temperature": 0.7, "weight": 1, **part},
        {"name": "short", "max_completion_length": 9, "weight": 2, **part},
    ]
    tree["data"] |= {"source": "mixture", "args": {"parts": parts}}
    tree["rewards"] = [
        {
            "name": "routed",
            "args": {
                "routes": {
                    "cold": {"name": "accuracy"},
                    "short": [{"name": "accuracy"}, {"name": "format", "from_step": 4}],
                }
            },
        }
    ]
    tree["curriculum"] = [{"name": "adaptive", "args": {"skip": 0.8}}]
    tree["rollout"]["max_completion_length"] = {"1": 10, "5": 16}
    tree["algorithm"] = {"beta": 0.05, "ref_model_sync_steps": 2}
    tree["agreement"] = {"steps": 4}
    tree["eval"] |= {"steps": 2, "keep_best": True}
    return tree


@pytest.fixture(scope="module")
def whole(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_recipe(from_dict(settings(base, folder)), Console(quiet=True))
    return folder


def test_everything_together_is_counted(whole: Path):
    lines = metrics(whole)
    assert [line["rollout/max_completion_length"] for line in lines] == [10] * 4 + [16] * 4
    assert lines[0]["curriculum/adaptive/tasks"] == 0
    assert lines[-1]["curriculum/adaptive/tasks"] > 4
    assert sum(line["curriculum/adaptive/skipped"] for line in lines) > 0
    for line in lines:
        assert line["tasks/cold/prompts"] + line["tasks/short/prompts"] == 4
        # Log-probs of sampler and learner agree at both temperatures.
        assert line.get("sampling/sampling_logp_difference/max", 0.0) < 1e-4
    assert all("rewards/short/format" not in line for line in lines[:3])
    assert any("rewards/short/format" in line for line in lines[3:])
    # The gate draws at the tasks' own temperatures, and passes.
    assert all(line["agreement/difference_mean"] < 1e-4 for line in (lines[0], lines[4]))


def test_the_model_left_is_the_best_one(whole: Path, tmp_path: Path):
    summary = json.loads((whole / "summary.json").read_text())
    found = {"before": summary["before"], **summary["during"], "after": summary["after"]}
    name = best(found)
    assert summary["best"]["pass1"] == found[name]["pass1"]
    assert not list((whole / "best").glob("*"))
    # The model answers as the best one did, to the byte.
    settled = from_dict(
        json.loads((whole / "resolved.json").read_text()), [f"model.path={whole / 'model'}"]
    )
    (stage,) = settled.stages
    assert isinstance(stage, RLStage)
    sampler = build_rl_sampler(stage, settled)
    judge = build_heldout(sampler, stage.rewards, stage.eval, settled.run.seed)
    with closing(sampler.engine):
        judge.evaluate(sampler.engine, tmp_path / "again.jsonl")
    same = (tmp_path / "again.jsonl", whole / "eval" / f"{name}.jsonl")
    assert len({file.read_bytes() for file in same}) == 1


def test_a_killed_curriculum_resumes_to_the_same_bits(base: str, whole: Path, tmp_path: Path):
    killed_and_resumed(settings(base, tmp_path / "killed"), whole, tmp_path)
    # The reference was refreshed last at step 6, before the checkpoint and the kill.
    assert (whole / "checkpoints" / "step_000006" / "reference.safetensors").is_file()


# Gradients


def test_rows_of_several_temperatures_have_the_gradient_worked_out_by_hand():
    own = {0: 0.5, 2: 1.7}  # group 1 is sampled at the learner's own
    groups = [
        group(0, 3, [4, 7, 2], [1.0, 0.0, 0.0]),
        group(1, 6, [1, 5, 5], [1.0, 0.0, 0.5]),
        group(2, 2, [3, 8, 6], [0.0, 0.5, 1.0]),
    ]
    rows = rows_of(groups)
    rows = [replace(row, temperature=own.get(row.group)) for row in rows]
    policy, reference, beta = tiny_model(), tiny_model(seed=1), 0.1
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.tensor([*row.prompt_ids, *row.ids.tolist()])
        scores = []
        for model in (policy, reference):
            logits = model(input_ids=ids[None]).logits[0, len(row.prompt_ids) - 1 : -1]
            logps = torch.log_softmax(logits / (row.temperature or 0.8), dim=-1)
            scores.append(logps.gather(1, torch.tensor(row.ids)[:, None])[:, 0])
        logp, behind = scores[0], scores[1].detach()
        ratio = (logp - logp.detach()).exp()
        surrogate = -torch.from_numpy(row.columns["advantages"]).double() * ratio
        kl = ratio * ((behind - logp).exp() - (behind - logp) - 1)
        total = (
            total
            + (torch.from_numpy(row.columns["weights"]).double() * (surrogate + beta * kl)).sum()
        )
    total.backward()
    for budget, share in ((1000, False), (1000, True), (14, True)):
        learner = make(
            algorithm={"beta": beta, "sampling_correction": "none"},
            reference=tiny_model(seed=1),
            temperature=0.8,
            tokens_per_micro_batch=budget,
            share_prompts=share,
        )
        found = learner.step(rows)
        assert found["loss"] == pytest.approx(total.item(), rel=1e-9)
        for ours, theirs in zip(learner.model.parameters(), policy.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
        # each row's log-probs come back under its own number
        for row, logps in zip(rows, learner.logprobs(rows), strict=True):
            alone = learner.logprobs([row])[0]
            np.testing.assert_allclose(logps, alone, rtol=1e-6)


def test_the_reference_becomes_the_policy_after_its_steps():
    algorithm = {"beta": 0.1, "ref_model_sync_steps": 2}
    learner = make(algorithm=algorithm)
    rows = rows_of(three_groups())
    before = copy.deepcopy(learner.refreshed)
    learner.step(rows)
    for name, parameter in learner.refreshed.items():
        assert torch.equal(parameter, before[name])
    learner.step(rows)
    for name, parameter in learner.refreshed.items():
        assert torch.equal(parameter, learner.trained[name])
        assert not parameter.requires_grad
    assert learner.step(rows)["kl"] == pytest.approx(0.0, abs=1e-12)
    assert learner.step(rows)["kl"] > 1e-6
