"""The reject stage on planted completions: what is left, what is counted, what a kill changes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.errors import DataError, PluginError, RunError
from grpo.outside.terminal.console import Console
from grpo.rewards.compose import RewardSet
from grpo.rollout.fake import FakeEngine
from grpo.rundir.provenance import content_hash
from grpo.stages.reject import sample
from grpo.stages.supervised_rows import read_rows
from grpo.types import Prompt, Sampling, Score, Task
from tests.rollout.tiny_models import V0, Letters

torch.set_num_threads(1)
FILE = Path(__file__).parents[3] / "benchmarks" / "bench_reject.py"
QUIET = Console(quiet=True)
TASKS, SEED = 20, 5


@pytest.fixture(scope="module")
def planted():
    """benchmarks/bench_reject.py as a module."""
    spec = importlib.util.spec_from_file_location("planted", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["planted"]


@pytest.fixture(scope="module")
def whole(planted, tmp_path_factory):
    """(folder, what was planted, summary) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    facts = planted.plant(folder, SEED, TASKS)
    summary = train_recipe(from_dict(planted.recipe_for(folder, SEED)), QUIET)
    return folder, facts, summary


def changed(planted, folder, name, **filters):
    """The recipe over the same tasks in another run folder, with other filters."""
    recipe = planted.recipe_for(folder, SEED)
    recipe["run"]["dir"] = str(folder / name)
    recipe["stages"][0]["filter"] |= filters
    return from_dict(recipe)


def test_all_bad_ones_go_and_every_good_one_stays(planted, whole):
    folder, facts, summary = whole
    found = planted.check(folder / "run", facts)
    assert found["bad kept"] == found["good dropped"] == 0
    assert all(n["planted"] == n["dropped for it"] for n in found["bad"].values())
    assert all(n["planted"] == n["passed over"] for n in found["tasks passed over"].values())
    assert found["rows"] == len(facts["good"]) > 90
    assert summary["result"].startswith(f"kept {found['rows']} of {TASKS * 16} completions (")


def test_rows_are_read_by_datasets_and_by_the_sft_stage(whole):
    folder, facts, summary = whole
    data = summary["data"]
    table = datasets.load_dataset(data, cache_dir=str(folder / "cache"))["train"]
    rows = read_rows(data)
    assert len(table) == len(rows) == summary["rows"] == len(facts["good"])
    assert table[0]["completion"] == rows[0].completion
    assert rows[0].completion.startswith("<think>\n")  # the template's prefill
    assert set(table.column_names) == {
        *["prompt", "completion", "answer", "task", "tokens", "reward", "noise"]
    }
    assert len(set(table["noise"])) == len(table)
    assert min(table["tokens"]) > 50


def test_the_card_says_what_was_dropped_and_leaves_the_licence_open(whole):
    folder, _, summary = whole
    text = (folder / "run" / "data" / "README.md").read_text()
    assert "license: unknown" in text
    for reason, count in summary["dropped"].items():
        assert count > 0
        assert f"| {count} |" in text, reason
    assert content_hash(folder / "model") in text
    assert "rows mixed in from elsewhere | 0" in text


def test_metrics_count_the_same(whole):
    folder, _, summary = whole
    lines = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert sum(line["kept"] for line in lines) == summary["rows"]
    for reason, count in summary["dropped"].items():
        assert sum(line[f"dropped/{reason}"] for line in lines) == count


@pytest.mark.parametrize("kill", ["submit 1", "poll 21"])
def test_killed_and_resumed_to_the_same_bytes(planted, whole, kill):
    """At a shard's boundary and inside one; the helper checks that no shard is sampled again."""
    folder, _, _ = whole
    recipe = planted.recipe_for(folder, SEED)
    run = planted.killed_and_resumed(folder, recipe, kill, kill.replace(" ", "-"))
    assert content_hash(run / "data") == content_hash(folder / "run" / "data")
    assert content_hash(run / "shards") == content_hash(folder / "run" / "shards")
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]


def test_nothing_kept_says_why_and_keeps_the_shards(planted, whole):
    folder, _, _ = whole
    recipe = changed(planted, folder, "none", min_reward=2.0)
    with pytest.raises(
        DataError, match=r"kept none of 320 completions \(truncated 16, unsc.*wrong"
    ):
        train_recipe(recipe, QUIET)
    assert not (folder / "none" / "data").exists()
    assert len(list((folder / "none" / "shards").glob("*.jsonl"))) == 3


def test_another_model_under_finished_shards_is_refused(planted, whole, tmp_path):
    folder = tmp_path / "moved"
    planted.plant(folder, SEED, TASKS)
    with pytest.raises(DataError):
        train_recipe(changed(planted, folder, "run", min_reward=2.0), QUIET)
    (folder / "model" / "more").write_text("other weights")
    with pytest.raises(RunError, match="sampled with model_hash = "):
        resume_run(folder / "run", QUIET)


def test_an_unknown_language_is_refused_before_anything_is_sampled(planted, whole):
    folder, _, _ = whole
    with pytest.raises(PluginError, match=r"unknown language 'klingon'"):
        train_recipe(changed(planted, folder, "klingon", language="klingon"), QUIET)
    assert not (folder / "klingon" / "shards").exists()


def test_fewer_tasks_are_a_prefix(planted, whole):
    folder, _, summary = whole
    few = train_recipe(changed(planted, folder, "few", num_tasks=9), QUIET)
    assert few["tasks"]["sampled"] == 9
    rows = [(folder / name / "data" / "train.jsonl").read_text() for name in ("few", "run")]
    assert rows[1].startswith(rows[0])
    assert few["rows"] < summary["rows"]


def plain(completions, **_):
    return [float(len(text)) for text in completions]


class Length:
    """A verifier, which may score in threads."""

    def verify(self, completion, _task):
        return Score(value=float(len(completion)), status="scored")


@pytest.mark.parametrize("reward", [plain, Length()])
def test_samples_are_in_the_order_of_the_tasks_whichever_is_answered_first(reward):
    """The engine begins with the last task, and is beside the rewards or waits for them."""
    prompts = [Prompt(task=Task(uid=uid, prompt="?"), text="?", ids=(1,)) for uid in "bac"]
    rewards = RewardSet([("mine", reward, 1.0)])
    assert rewards.threadsafe == (reward is not plain)
    engine = FakeEngine(
        lambda request, index: "x" * (1 + 3 * int(request.uid) + index),
        Letters(),
        version=V0,
        reverse=True,
    )
    sampler = SimpleNamespace(engine=engine, sampling=Sampling(max_tokens=30, eos_ids=(0,)))
    try:
        found = sample(sampler, rewards, [(prompt, 0) for prompt in prompts], 3, SEED)
    finally:
        rewards.close()
    assert [one.task for one in found] == list("bac")
    for place, one in enumerate(found):
        lengths = [1 + 3 * place + index for index in range(3)]
        assert [each.value for each in one.samples] == lengths
        assert [len(each.text) for each in one.samples] == lengths
