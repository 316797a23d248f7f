"""Rows, code and models that change while a run is interrupted are refused, or sampled anew."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from grpo.commands.train import _run_stage, resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.errors import GrpoError, RunError
from grpo.rundir import ledger, record
from grpo.rundir.run_folder import model_path
from tests.grpo.rundir.interrupted import PLUGIN, QUIET, ROWS, prepared, resumed, rl, stopped, write
from tests.grpo.tiny_bases import save_tiny_base


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, rows and a reward."""
    return prepared(tmp_path, monkeypatch)


def prompts(run: Path, step: int) -> set[str]:
    return {line["prompt"] for line in ledger.read(run / "ledger", step)}


# Rows


def changes_of_rows(place: Path) -> dict[str, tuple[list[dict[str, Any]], str]]:
    other = [dict(row) for row in ROWS]
    other[4]["answer"] = "b"
    column = [dict(row) for row in ROWS]
    column[4]["n"] = 99
    return {
        "answer": (other, "1 of "),
        "column": (column, "1 of "),
        "gone": (ROWS[1:], "removed"),
        "more": ([*ROWS, {"prompt": "hgfe", "answer": "c"}], "1 added"),
        "order": (ROWS[::-1], "in another order"),
    }


@pytest.mark.parametrize("what", ["answer", "column", "gone", "more", "order"])
def test_changed_rows_are_refused_or_sampled_anew(place: Path, what: str) -> None:
    run = stopped(place)
    rows, said = changes_of_rows(place)[what]
    write(place / "d.jsonl", rows)
    with pytest.raises(RunError, match=said) as raised:
        resume_run(run, QUIET)
    for part in (str(place / "d.jsonl"), "the first that differs is row", "--accept-changes"):
        assert part in str(raised.value)
    assert "accepted: stage rl: data.source = 'file'" in resumed(run, accept_changes=True)
    assert any(said in change["what"] for change in record.read(run)["changes"])
    # whatever was learned from afterwards is of the file as it is now
    known = {row["prompt"]: row["answer"] for row in rows}
    for step in (3, 4):
        for line in ledger.read(run / "ledger", step):
            assert ord(known[line["prompt"]]) - 97 == line["value"] // 10


def test_what_was_sampled_ahead_is_dropped_and_its_tasks_are_drawn_again(place: Path) -> None:
    run = stopped(place)
    with gzip.open(run / "checkpoints" / "step_000002" / "rollouts.json.gz") as file:
        ahead = json.load(file)["ready"]
    assert ahead[0]["step"] == 3
    drawn = [group["position"] for group in ahead[0]["groups"]]
    write(place / "d.jsonl", [{**row, "answer": "b"} for row in ROWS])
    resumed(run, accept_changes=True)
    train_recipe(from_dict(rl(place, "new", at=0)), QUIET)
    assert drawn == [4, 5]
    assert [prompts(run, 3), prompts(run, 4)] == [prompts(place / "new", step) for step in (3, 4)]


def test_the_same_rows_spelled_otherwise_are_the_same(place: Path) -> None:
    run = stopped(place)
    lines = [json.dumps(dict(reversed(row.items())), indent=None) for row in ROWS]
    (place / "d.jsonl").write_text("\n\n".join(lines))
    resumed(run)


def test_an_accepted_change_is_accepted_once_also_over_a_kill(place: Path) -> None:
    run = stopped(place)
    write(place / "d.jsonl", ROWS[1:])
    edited_stop = rl(place)["callbacks"][0]["args"]
    assert edited_stop == {"at": 2}
    (place / "mine.py").write_text(PLUGIN.replace("step.step == self.at", "step.step == 3"))
    with pytest.raises(KeyboardInterrupt, match="saved at step 3"):
        resume_run(run, QUIET, accept_changes=True)
    resumed(run)
    whole = {row["prompt"] for row in ROWS[1:]}
    assert prompts(run, 3) | prompts(run, 4) <= whole


def test_damaged_hashes_of_rows_cost_only_the_detail(place: Path) -> None:
    run = stopped(place)
    (run / "rows" / "rl.json").write_text("{")
    write(place / "d.jsonl", ROWS[1:])
    with pytest.raises(RunError, match="training rows: they have changed"):
        resume_run(run, QUIET)


# Files


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("mine.py", r"rewards\.0\.name = '.*mine\.py:reward': mine\.py changed"),
        ("helper.py", r"mine\.py:reward': helper\.py changed"),
        ("base/config.json", r"model\.path = '.*base': config\.json changed"),
        ("base/tokenizer_config.json", r"tokenizer_config\.json changed"),
        ("base/model.safetensors", r"model\.safetensors changed"),
        ("base/chat_template.jinja", r"chat_template\.jinja added"),
    ],
)
def test_changed_code_and_models_are_refused_or_accepted(place: Path, file: str, said: str) -> None:
    run = stopped(place)
    path = place / file
    if file.endswith("safetensors"):
        save_tiny_base(place / "other", seed=1, max_position=32)
        path.write_bytes((place / "other" / "model.safetensors").read_bytes())
    else:
        old = path.read_text() if path.exists() else ""
        path.write_text(f"{old}\n")
    with pytest.raises(RunError, match=said):
        resume_run(run, QUIET)
    resumed(run, accept_changes=True)


def test_scores_of_an_older_reward_are_not_learned_from(place: Path) -> None:
    run = stopped(place)
    (place / "helper.py").write_text("def value(text):\n    return 7 + text.count('b') % 2\n")
    with pytest.raises(RunError, match=r"helper\.py changed"):
        resume_run(run, QUIET)
    resumed(run, accept_changes=True)
    assert all(line["value"] >= 7 for line in ledger.read(run / "ledger", 3))


# The other kinds of stages


def stages(place: Path) -> dict[str, dict[str, Any]]:
    """A stage of each kind that reads what it can from files; `a.jsonl` is its data."""
    write(place / "a.jsonl", ROWS)
    write(place / "b.jsonl", ROWS[:9])
    write(place / "s.jsonl", [{"prompt": "ab", "completion": c * 3} for c in "abcdefgh"])
    write(place / "t.jsonl", [{"prompt": "ba", "completion": c * 3} for c in "abcdefgh"])
    (place / "source.py").write_text(
        "import json, pathlib\nfrom grpo.data.table import file\nfrom grpo.data import SOURCES\n"
        "class Source:\n    def __init__(self):\n"
        "        here = pathlib.Path(__file__).parent\n"
        "        self.rows = file(path=str(here / 'a.jsonl'), heldout_fraction=0.3)\n"
        "    def size(self, split):\n        return self.rows.size(split)\n"
        "    def task(self, split, index):\n        return self.rows.task(split, index)\n"
        "    def alphabet(self):\n        return 'abcdefgh'\n"
        "    def demonstration(self, task, rng):\n        return task.answer\n"
    )
    model = {"path": str(place / "base")}
    rewards = [{"name": f"{place / 'mine.py'}:reward"}]
    args = {"path": str(place / "a.jsonl"), "heldout_path": str(place / "b.jsonl")}
    data = {"source": "file", "args": args, "template": "raw", "max_prompt_length": 8}
    rollout = {"prompts_per_step": 4, "num_generations": 2, "max_completion_length": 6}
    kept = {"num_tasks": 8, "min_reward": 0.0, "decontaminate": [str(place / "leaks.jsonl")]}
    write(place / "leaks.jsonl", [{"prompt": "zz", "n": n} for n in range(3)])
    part = {"name": "one", "source": "file", "args": {**args, "heldout_path": None}}
    own = {"source": f"{place / 'source.py'}:Source"}
    small = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    sft = {"path": str(place / "s.jsonl"), "mix": {str(place / "t.jsonl"): 0.5}}
    steps = {"learner": {"max_steps": 2, "batch_size": 4}}
    one = {**rl(place, at=0), "data": {**data, "source": "mixture", "args": {"parts": [part]}}}
    two = {**rl(place, at=0), "data": {**data, **own, "args": {}}}
    both = {key: value for key, value in one.items() if key not in ("name", "run")}
    theirs = {key: value for key, value in two.items() if key not in ("name", "run")}
    reject = {"model": model, "data": data, "rollout": rollout, "rewards": rewards, "filter": kept}
    return {
        "sft": {"kind": "sft", "model": model, "data": sft, **steps},
        "reject": {"kind": "reject", **reject},
        "distill": {"kind": "distill", "teacher": model, **reject, **steps},
        "pretrain": {"kind": "pretrain", "model": small, "data": own, **steps},
        "eval": {
            "kind": "eval",
            "models": [model["path"]],
            "data": data,
            "rewards": rewards,
            "num_tasks": 3,
            "num_samples": 2,
            "max_completion_length": 6,
        },
        "mixture": {"kind": "rl", **both},
        "own source": {"kind": "rl", **theirs},
    }


@pytest.mark.parametrize(
    ("kind", "file", "said"),
    [
        ("sft", "s.jsonl", r"data\.path = '.*s\.jsonl': 1 removed of 8 rows"),
        ("sft", "t.jsonl", r"data\.mix\..* = '.*t\.jsonl': 1 removed of 8 rows"),
        ("reject", "a.jsonl", r"path=.*a\.jsonl.*training rows: 1 removed"),
        ("distill", "a.jsonl", r"training rows: 1 removed"),
        ("reject", "leaks.jsonl", r"filter\.decontaminate\.0 = .*: leaks\.jsonl changed"),
        ("pretrain", "a.jsonl", r"source\.py:Source', training rows: 1 removed"),
        ("eval", "b.jsonl", r"held-out rows: 1 removed of 9 rows"),
        ("mixture", "a.jsonl", r"part 'one' of data\.source = 'mixture', .* 1 removed"),
        ("own source", "a.jsonl", r"source\.py:Source', .* 1 removed"),
        ("own source", "source.py", r"data\.source = .*: source\.py changed"),
        ("eval", "mine.py", r"rewards\.0\.name = .*: mine\.py changed"),
        ("eval", "base/config.json", r"models\.0 = .*: config\.json changed"),
        ("distill", "base/config.json", r"teacher\.path = .*: config\.json changed"),
    ],
)
def test_changed_inputs_of_every_kind_of_stage(
    place: Path, kind: str, file: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = {key: rl(place)[key] for key in ("name", "run")}
    settings = from_dict({**head, "stages": [stages(place)[kind]]})

    class Enough(Exception):
        pass

    def nothing(*_: Any) -> Any:
        raise Enough

    monkeypatch.setattr("grpo.commands.train._run_stage", nothing)
    with pytest.raises(Enough):
        train_recipe(settings, QUIET)
    with pytest.raises(Enough):
        resume_run(place / "run", QUIET)
    path = place / file
    text = path.read_text()
    path.write_text(text[: text.rindex("{")] if file.endswith("jsonl") else f"{text}\n")
    with pytest.raises(RunError, match=said):
        resume_run(place / "run", QUIET)
    with pytest.raises(Enough):
        resume_run(place / "run", QUIET, accept_changes=True)
    with pytest.raises(Enough):  # what was accepted is what the run is made of
        resume_run(place / "run", QUIET)


def test_a_source_that_changes_where_nobody_looked_is_met_at_the_saved_batch(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo.stages.inputs._places", lambda *_: range(0))
    run = stopped(place)
    write(place / "d.jsonl", [{**row, "answer": "b"} for row in ROWS])
    with pytest.raises(
        RunError, match=r"other tasks than those whose completions are saved for step 3"
    ):
        resume_run(run, QUIET)


def test_shards_of_changed_tasks_are_sampled_anew(place: Path) -> None:
    head = {key: rl(place)[key] for key in ("name", "run")}
    stage = stages(place)["reject"]
    stage["filter"]["min_reward"] = 9.0  # nothing is kept, and the shards stay
    settings = from_dict({**head, "stages": [stage]})
    with pytest.raises(GrpoError, match="kept none"):
        train_recipe(settings, QUIET)
    run = place / "run"
    before = (run / "shards" / "00000.jsonl").read_bytes()
    (place / "helper.py").write_text("def value(text):\n    return 9\n")
    with pytest.raises(RunError, match=r"helper\.py changed"):
        resume_run(run, QUIET)
    resumed(run, accept_changes=True)
    assert (run / "shards.replaced" / "00000.jsonl").read_bytes() == before
    assert json.loads((run / "data" / "counts.json").read_text())["rows"] > 0


def test_a_later_stage_is_compared_before_the_first_and_before_its_turn(place: Path) -> None:
    head = {key: rl(place)[key] for key in ("name", "run")}
    made = stages(place)
    first = {**made["sft"], "name": "first"}
    last = {**made["reject"], "name": "last", "model": {"path": "stage:first"}}
    recipe = from_dict({**head, "stages": [first, last]})
    calls: list[str] = []

    def run_stage(stage: Any, *rest: Any) -> Any:
        calls.append(stage.name)
        summary = _run_stage(stage, *rest)
        if stage.name == "first":  # meanwhile somebody edits the rows of the next stage
            write(place / "a.jsonl", ROWS[:-1])
        return summary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grpo.commands.train._run_stage", run_stage)
        with pytest.raises(RunError, match=r"stage last: .* 1 removed of 15 rows"):
            train_recipe(recipe, QUIET)
        assert calls == ["first"]
    with pytest.raises(RunError, match=r"stage last: .* 1 removed of 15 rows"):
        resume_run(place / "run", QUIET)
    resumed(place / "run", accept_changes=True)


def test_figures_of_other_rows_are_not_put_side_by_side(place: Path) -> None:
    """What was measured on held-out rows that have changed is measured again, from the start."""
    held = place / "held.jsonl"
    write(held, [{"prompt": c * 3, "answer": "a"} for c in "abc"])
    data = {"args": {"path": str(place / "d.jsonl"), "heldout_path": str(held)}}
    data = {"source": "file", "template": "raw", "max_prompt_length": 8, **data}
    run = stopped(place, data=data)
    write(held, [{"prompt": c * 2, "answer": "a"} for c in "fgh"])
    assert "evaluations so far were of other rows" in resumed(run, accept_changes=True)
    asked = {}
    for name in ("before", "after"):
        lines = (run / "eval" / f"{name}.jsonl").read_text().splitlines()
        asked[name] = {json.loads(line)["prompt"] for line in lines}
    assert asked["before"] == asked["after"] == {"ff", "gg", "hh"}
    gain = json.loads((run / "summary.json").read_text())["gain"]
    assert gain["ci"] is not None


def test_a_finished_run_does_without_what_it_was_made_from(place: Path) -> None:
    train_recipe(from_dict(rl(place, at=0)), QUIET)
    run = place / "run"
    (place / "base").rename(place / "elsewhere")
    (place / "d.jsonl").unlink()
    (place / "mine.py").unlink()
    before = (run / "summary.json").read_bytes()
    assert "done before" in resumed(run)
    assert model_path(str(run)) == str(run / "model")
    assert (run / "summary.json").read_bytes() == before
