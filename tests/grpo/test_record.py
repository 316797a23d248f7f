"""What a run was started with is compared when it goes on: settings, process, rows, files."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from grpo import ledger, record
from grpo.config import from_dict
from grpo.errors import GrpoError, RecipeError, RunError
from grpo.evaluation import evaluate_model
from grpo.kernels import native
from grpo.run import resume_run, train_recipe
from grpo.show import print_run

from .tiny_bases import save_tiny_base

QUIET = Console(quiet=True)
ROWS = [{"prompt": "abcdefgh"[i % 8] * (i // 8 + 1), "answer": "a", "n": i} for i in range(24)]
PLUGIN = """
import os, signal
import torch
from helper import value

def reward(completions, answer, **_):
    # tens say which answer the row had
    return [value(c) + 10.0 * (ord(a) - 97) for c, a in zip(completions, answer, strict=True)]

class Stop:
    def __init__(self, at, log=None):
        self.at, self.log = at, log

    def __call__(self, step):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{step.step} {torch.get_num_threads()}\\n")
        if step.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)
"""
HELPER = "def value(text):\n    return text.count('a') % 3\n"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def filled(folder: Path) -> Path:
    """A folder with a model, rows and a reward."""
    save_tiny_base(folder / "base", max_position=32)
    write(folder / "d.jsonl", ROWS)
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "helper.py").write_text(HELPER)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Such a folder, whose modules can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    return filled(tmp_path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was interrupted, for tests that do not go on with it."""
    folder = filled(tmp_path_factory.mktemp("begun"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "helper", raising=False)
        return stopped(folder)


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(begun, tmp_path / "copy"))


def rl(place: Path, name: str = "run", at: int = 2, **sections: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "run": {"dir": str(place / name), "threads": 1, "save_steps": 0, "seed": 5},
        "model": {"path": str(place / "base")},
        "data": {
            "source": "jsonl",
            "args": {"path": str(place / "d.jsonl"), "heldout_fraction": 0.3},
            "template": "raw",
            "max_prompt_length": 8,
        },
        "rollout": {"prompts_per_step": 2, "num_generations": 4, "max_completion_length": 6},
        "schedule": {"mode": "one_step_off"},
        "rewards": [{"name": f"{place / 'mine.py'}:reward"}],
        "learner": {"max_steps": 4, "learning_rate": 1e-3},
        "eval": {"num_tasks": 3, "num_samples": 2},
        "callbacks": [{"name": f"{place / 'mine.py'}:Stop", "args": {"at": at}}],
        **sections,
    }


def stopped(place: Path, **sections: Any) -> Path:
    """The folder of a run that was interrupted after its second step."""
    with pytest.raises(KeyboardInterrupt, match="saved at step 2"):
        train_recipe(from_dict(rl(place, **sections)), QUIET)
    return place / "run"


def resumed(run: Path, **options: Any) -> str:
    """What a resume says."""
    said = Console(file=io.StringIO(), width=10_000)
    resume_run(run, said, **options)
    return said.file.getvalue()  # type: ignore[attr-defined]


def edited(file: Path, change: Callable[[Any], Any]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def prompts(run: Path, step: int) -> set[str]:
    return {line["prompt"] for line in ledger.read(run / "ledger", step)}


# Settings


def set_in(tree: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    node = tree if path[0] in ("run", "ray") else tree["stages"][0]
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[last] = value


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("run.seed", 6, "5"),
        ("run.threads", 2, "1"),
        ("learner.learning_rate", 0.5, "0.001"),
        ("learner.max_grad_norm", 0.1, "1.0"),
        ("learner.tokens_per_micro_batch", 1024, "16384"),
        ("rollout.prompts_per_step", 4, "2"),
        ("rollout.num_generations", 8, "4"),
        ("rollout.temperature", 0.5, "1.0"),
        ("rewards.0.weight", 2.0, "1.0"),
        ("rewards.0.name", "accuracy", "mine.py:reward"),
        ("algorithm.beta", 0.1, "0.0"),
        ("schedule.mode", "sync", "one_step_off"),
        ("data.args.heldout_fraction", 0.2, "0.3"),
        ("data.template", "r1_zero", "raw"),
        ("model.lora_rank", 4, "0"),
        ("learner.learning_rate", "much", "0.001"),
        ("eval.num_tasks", True, "3"),
    ],
)
def test_an_edited_setting_is_named(run: Path, name: str, value: Any, was: str) -> None:
    edited(run / "resolved.json", lambda tree: set_in(tree, name, value))
    said = rf"{re.escape(name)} = {re.escape(json.dumps(value))} \(was .*{re.escape(was)}"
    with pytest.raises(RunError, match=said):
        resume_run(run, QUIET)
    with pytest.raises(RunError, match=said):  # inputs may be accepted, settings not
        resume_run(run, QUIET, accept_changes=True)


def test_what_changes_no_number_may_be_edited_and_is_said_once(place: Path) -> None:
    run = stopped(place)
    whole = rl(place, "whole", at=0)
    whole["learner"]["max_steps"] = 5
    train_recipe(from_dict(whole), QUIET)
    for name, value in (("run.save_steps", 1), ("learner.max_steps", 5)):
        edited(run / "resolved.json", lambda tree, n=name, v=value: set_in(tree, n, v))
    said = resumed(run)
    assert "resolved.json: run.save_steps = 1 (was 0)" in said
    assert "resolved.json: learner.max_steps = 5 (was 4)" in said
    changes = record.read(run)["changes"]
    assert ["run.save_steps" in changes[0]["what"], len(changes)] == [True, 2]
    ours, theirs = (r / "model" / "model.safetensors" for r in (run, place / "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert "was 0" not in resumed(run)


def test_the_length_is_fixed_where_the_learning_rate_depends_on_it(place: Path) -> None:
    run = stopped(
        place, learner={"max_steps": 4, "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
    )
    edited(run / "resolved.json", lambda tree: set_in(tree, "learner.max_steps", 5))
    with pytest.raises(RunError, match=r"learner.max_steps = 5 \(was 4\)"):
        resume_run(run, QUIET)


def test_moved_files_are_found_under_their_new_paths(place: Path) -> None:
    run = stopped(place)
    (place / "there").mkdir()
    for name in ("base", "d.jsonl", "mine.py", "helper.py"):
        (place / name).rename(place / "there" / name)
    text = (run / "resolved.json").read_text()
    (run / "resolved.json").write_text(text.replace(f'"{place}/', f'"{place}/there/'))
    edited(run / "resolved.json", lambda tree: tree["run"].__setitem__("dir", str(run)))
    with (place / "there" / "d.jsonl").open("a") as file:
        file.write('{"prompt": "hhhhhh", "answer": "a"}\n')
    with pytest.raises(RunError, match="1 added"):
        resume_run(run, QUIET)
    write(place / "there" / "d.jsonl", ROWS)
    resumed(run)
    assert any("model.path" in change["what"] for change in record.read(run)["changes"])


# Damage


@pytest.mark.parametrize("file", ["resolved.json", "provenance.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda old: b"",
        lambda old: old[: len(old) // 2],
        lambda old: b"\0" * len(old),
        lambda old: b"\xff\xfe" + old,
        lambda old: b"[]",
        lambda old: b"null",
        lambda old: b'"text"',
        lambda old: b"[" * 100_000,
        lambda old: old.replace(b"0.001", b"0.003"),
        lambda old: old.replace(b'"stages"', b'"stage"'),
        lambda old: old.replace(b'"seed": 5', b'"seed": 7'),
        None,
    ],
)
def test_a_damaged_record_is_one_sentence(run: Path, file: str, damage: Any) -> None:
    path = run / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError) as raised:
        resume_run(run, QUIET)
    assert file in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_command_says_which_file_is_damaged(run: Path, capsys: Any) -> None:
    from grpo import cli

    (run / "resolved.json").write_text("{")
    for words in (["train", "--resume"], ["eval"], ["show"]):
        assert cli.main([*words, str(run)]) == 2, words
        assert "resolved.json is damaged: it is not JSON" in capsys.readouterr().err


def test_flipped_bits_of_the_record_never_pass_for_a_change(run: Path) -> None:
    whole = (run / "provenance.json").read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        (run / "provenance.json").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(ValueError):  # a space of the layout became another, say
            if json.loads((run / "provenance.json").read_bytes()) == json.loads(whole):
                continue
        with pytest.raises(RunError, match=r"provenance\.json is damaged"):
            record.read(run)


def test_a_run_of_an_older_version_goes_on_and_is_recorded(place: Path) -> None:
    run = stopped(place)
    old = record.read(run)
    kept = {name: old[name] for name in ("versions", "commit", "machine", "command")}
    (run / "provenance.json").write_text(json.dumps(kept))
    assert "did not record its data and files" in resumed(run)
    assert record.read(run)["stages"]["rl"]["rows"]


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
    assert "accepted: stage rl: data.source = 'jsonl'" in resumed(run, accept_changes=True)
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


# The process


def test_a_run_keeps_its_number_of_threads(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = place / "log"
    callback = {"name": f"{place / 'mine.py'}:Stop", "args": {"at": 2, "log": str(log)}}
    settings = rl(place, callbacks=[callback])
    settings["run"]["threads"] = 0  # all cores
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(from_dict(settings), QUIET)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    torch.set_num_threads(1)
    said = resumed(place / "run")
    assert "started with 2 threads" in said
    assert "1 cores" in said
    assert log.read_text().split() == ["1", "2", "2", "2", "3", "2", "4", "2"]
    torch.set_num_threads(1)


def test_kernels_stay_as_they_were(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    native.library.cache_clear()
    train_recipe(from_dict(rl(place, "whole", at=0)), QUIET)
    run = stopped(place)
    monkeypatch.setenv(native.SWITCH, "1")
    native.library.cache_clear()
    said = resumed(run)
    assert "compiled kernels are off (GRPO_NATIVE=0), as the run was started" in said
    ours, theirs = (r / "model" / "model.safetensors" for r in (run, place / "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert os.environ[native.SWITCH] == "1"


def test_other_versions_are_said_once(place: Path) -> None:
    run = stopped(place)
    data = record.read(run)
    data["versions"]["torch"] = "1.0"
    data["computes"]["compiler"] = "another"
    record.write(run, data)
    (run / "summary.json").unlink(missing_ok=True)
    said = resumed(run)
    assert f"torch {torch.__version__} (was 1.0)" in said
    assert "(was another)" in said
    assert "was 1.0" not in resumed(run)


@pytest.mark.parametrize(("name", "value"), [("ranks", 2), ("device", "cuda")])
def test_other_ranks_and_devices_are_refused_or_accepted(
    place: Path, name: str, value: Any
) -> None:
    run = stopped(place)
    data = record.read(run)
    data["process"][name] = value
    record.write(run, data)
    with pytest.raises(RunError, match=rf"{name} = .* \(was {value}\); .*--accept-changes"):
        resume_run(run, QUIET)
    assert f"(was {value})" in resumed(run, accept_changes=True)


# The other kinds of stages


def stages(place: Path) -> dict[str, dict[str, Any]]:
    """A stage of each kind that reads what it can from files; `a.jsonl` is its data."""
    write(place / "a.jsonl", ROWS)
    write(place / "b.jsonl", ROWS[:9])
    write(place / "s.jsonl", [{"prompt": "ab", "completion": c * 3} for c in "abcdefgh"])
    write(place / "t.jsonl", [{"prompt": "ba", "completion": c * 3} for c in "abcdefgh"])
    (place / "source.py").write_text(
        "import json, pathlib\nfrom grpo.data.jsonl import jsonl\nfrom grpo.data import SOURCES\n"
        "class Source:\n    def __init__(self):\n"
        "        here = pathlib.Path(__file__).parent\n"
        "        self.rows = jsonl(path=str(here / 'a.jsonl'), heldout_fraction=0.3)\n"
        "        self.size, self.task = self.rows.size, self.rows.task\n"
        "    def alphabet(self):\n        return 'abcdefgh'\n"
        "    def demonstration(self, task, rng):\n        return task.answer\n"
    )
    (place / "mix.py").write_text("")
    model = {"path": str(place / "base")}
    rewards = [{"name": f"{place / 'mine.py'}:reward"}]
    args = {"path": str(place / "a.jsonl"), "heldout_path": str(place / "b.jsonl")}
    data = {"source": "jsonl", "args": args, "template": "raw", "max_prompt_length": 8}
    rollout = {"prompts_per_step": 4, "num_generations": 2, "max_completion_length": 6}
    kept = {"num_tasks": 8, "min_reward": 0.0, "decontaminate": [str(place / "leaks.jsonl")]}
    write(place / "leaks.jsonl", [{"prompt": "zz", "n": n} for n in range(3)])
    part = {"name": "one", "source": "jsonl", "args": {**args, "heldout_path": None}}
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

    monkeypatch.setattr("grpo.run._run_stage", nothing)
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
    (place / "swap.py").write_text("")
    recipe = from_dict({**head, "stages": [first, last]})
    calls: list[str] = []
    real = __import__("grpo.run", fromlist=["x"])._run_stage

    def run_stage(stage: Any, *rest: Any) -> Any:
        calls.append(stage.name)
        summary = real(stage, *rest)
        if stage.name == "first":  # meanwhile somebody edits the rows of the next stage
            write(place / "a.jsonl", ROWS[:-1])
        return summary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grpo.run._run_stage", run_stage)
        with pytest.raises(RunError, match=r"stage last: .* 1 removed of 15 rows"):
            train_recipe(recipe, QUIET)
        assert calls == ["first"]
    with pytest.raises(RunError, match=r"stage last: .* 1 removed of 15 rows"):
        resume_run(place / "run", QUIET)
    resumed(place / "run", accept_changes=True)


# Real processes


def started(place: Path, name: str, *words: str) -> subprocess.Popen[bytes]:
    """`grpo train` with some words; what it says is in a file called `name`."""
    command = [sys.executable, "-m", "grpo.cli", "train", *words]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
    with (place / name).open("wb") as said:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=env)


def steps(run: Path) -> list[int]:
    log = run / "metrics.jsonl"
    if not log.exists():
        return []
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


def test_two_that_start_at_once_and_a_kill_with_an_immediate_resume(place: Path) -> None:
    settings = rl(place, at=0)
    settings["learner"]["max_steps"] = 10_000
    settings["run"]["save_steps"] = 2
    run, recipe = place / "run", place / "tiny.yaml"
    recipe.write_text(json.dumps(settings))
    both = {name: started(place, name, str(recipe)) for name in ("a", "b")}
    deadline = time.monotonic() + 120
    while all(process.poll() is None for process in both.values()) or len(steps(run)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    refused, one = sorted(both, key=lambda name: both[name].poll() is None)
    assert both[refused].returncode == 2
    said = (place / refused).read_text()
    assert f"is being trained by process {both[one].pid} on" in said
    assert said.count("\n") == 1
    print_run(run, QUIET)  # looking is allowed
    with pytest.raises(RunError, match="no trained model yet"):
        evaluate_model(run, from_dict(json.loads((run / "resolved.json").read_text())), QUIET)
    both[one].kill()
    again = started(place, "again", "--resume", str(run))
    done = len(steps(run))
    while len(steps(run)) <= done + 2:
        assert again.poll() is None, (place / "again").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    again.send_signal(signal.SIGINT)
    assert again.wait() == 130
    assert steps(run) == list(range(1, len(steps(run)) + 1))
    assert not (run / "run.lock").exists()
    both[one].wait()


def test_accepting_is_for_a_resume(place: Path) -> None:
    from grpo import cli

    (place / "tiny.yaml").write_text(json.dumps(rl(place)))
    assert cli.main(["train", str(place / "tiny.yaml"), "--accept-changes"]) == 2
    with pytest.raises(RecipeError, match="--accept-changes"):
        cli._train(cli._parse(["train", str(place / "tiny.yaml"), "--accept-changes"]))
