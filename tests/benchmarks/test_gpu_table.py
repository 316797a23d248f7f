"""Tables of the GPU measurements: figures, reasons, and what was not run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import record as record_of
from gpu import home, results, runner, table
from gpu.sections import SECTIONS, load
from gpu.state import State, claim_kind
from kit import bundle
from kit.work import Work
from staged import plan

from grpo.errors import RunError

ROOT = Path(__file__).parents[2]
STAGED = {"mixed": "staged_mixed"}


def record(status: str, reason: str = "", commit: str = "a" * 40, **result):
    fixed = {"seconds": 30.0, "date": "2026-01-02T03:04:05+00:00", "commit": commit}
    return {"status": status, "reason": reason, "result": result, **fixed}


WHERE = {
    "command": "test",
    "versions": {"torch": "2.11.0"},
    "card": {"name": "NVIDIA H200", "memory GiB": 139.8, "driver": "580"},
}
STEPS = {
    "first": record("done", answer="FIRST"),
    "bad": record("failed", "ValueError: no | luck"),
    "card": record("not run", "torch sees no card"),
    "partly": record("failed", "one of two is wrong", "b" * 40, answer="HALF"),
}


@pytest.fixture
def state(tmp_path: Path) -> State:
    state = State.of(plan(tmp_path).setup, "mixed")
    state.write("_from", WHERE)
    for name, found in STEPS.items():
        state.write(name, found)
    return state


def gathered(state: State, ending: str = "stopped at its limit"):
    setup = plan(state.folder.parents[1]).setup
    return results.gather(load("staged_mixed").steps(setup), state, ending)


def test_rows_without_figures_say_why(state: State) -> None:
    made = table.table({"mixed": gathered(state)}, STAGED)
    assert made == (
        "### Mixed\n\n| step | answer |\n|---|---|\n| first | FIRST |\n"
        "| bad | failed: ValueError: no \\| luck |\n| second | not run |\n| crash | not run |\n"
        "| card | not run: torch sees no card |\n| partly | failed: one of two is wrong |\n"
        "| last | not run |\n\n"
        "`mixed`: stopped at its limit after 4 of 7 steps (2 failed, 1 not run); 2.0 minutes; "
        "2026-01-02, commit aaaaaaaaaa, bbbbbbbbbb; NVIDIA H200, 139.8 GiB, driver 580; "
        "torch 2.11.0."
    )


def test_a_section_that_was_never_run_has_its_rows(state: State) -> None:
    made = table.table({}, STAGED)
    assert made.count("| not run |") == 7
    assert made.endswith("`mixed`: not run; about 1 min on an H200, estimated.")


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_has_a_table_before_it_is_run(name: str) -> None:
    made = table.part(name, SECTIONS[name], {})
    assert "not run" in made
    assert "No table" not in made
    assert 0 < load(SECTIONS[name]).minutes <= 8


@pytest.mark.parametrize("name", SECTIONS)
def test_steps_are_listed_without_torch_and_have_names_for_files(name: str) -> None:
    code = (
        "import sys; from gpu.sections import load; from staged import plan; "
        "from pathlib import Path; "
        f"print(*[s.name for s in load({SECTIONS[name]!r}).steps(plan(Path('x')).setup)]); "
        "sys.exit('torch' in sys.modules)"
    )
    paths = [str(ROOT), str(ROOT / "benchmarks"), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    names = done.stdout.decode().split()
    assert len(set(names)) == len(names) > 0
    assert all(set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for each in names)


def test_a_broken_table_hides_no_other(state: State) -> None:
    sections = {"missing": "staged_missing", **STAGED}
    made = table.table({"mixed": gathered(state)}, sections)
    assert "### missing\n\nNo table: ModuleNotFoundError" in made
    assert "| first | FIRST |" in made


def test_what_a_lost_call_has_measured_is_shown_before_it_is_in_the_results(state: State) -> None:
    asked = plan(state.folder.parents[1], "staged_mixed")
    found = results.so_far(asked.results, asked.setup, asked.sections)
    assert found["mixed"]["status"] == "unfinished after 4 of 7 steps (2 failed, 1 not run)"
    assert not asked.results.exists()
    asked.results.write_text(json.dumps({"mixed": gathered(state, "interrupted")}))
    found = results.so_far(asked.results, asked.setup, asked.sections)
    assert found["mixed"]["status"].startswith("interrupted")


def test_figures_are_taken_home_newer_ones_only(state: State, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "home.json"
    asked = plan(state.folder.parents[1], "staged_mixed")
    work = Work.at(tmp_path / "work")
    with pytest.raises(RunError, match=r"has no state.tar.xz; name what `run.sh results` has left"):
        home.take(tmp_path, asked.setup, file, asked.sections)
    shutil.copytree(asked.setup.folder, work.run)
    bundle.bundle(work, out)
    with pytest.raises(RunError, match="nothing was measured there"):
        home.take(out, asked.setup, file, asked.sections)
    claim_kind(replace(asked.setup, folder=work.run), "a card", "2.11.0")
    bundle.bundle(work, out)
    with pytest.raises(RunError, match=r"has measurements of .*, and this call is for"):
        home.take(out, replace(asked.setup, tiny=not asked.setup.tiny), file, asked.sections)

    other = {"steps": {"x": {"date": "2026-01-01"}}, "from": {}}
    file.write_text(
        json.dumps({"other": other, "mixed": other})
    )  # an older one of the same section
    assert home.take(out, asked.setup, file, asked.sections) == ["mixed"]
    found = json.loads(file.read_text())
    assert found["other"] == other
    assert found["mixed"]["status"] == "unfinished after 4 of 7 steps (2 failed, 1 not run)"
    assert home.take(out, asked.setup, file, asked.sections) == []


def test_the_page_is_changed_between_its_markers_only(state: State, tmp_path: Path) -> None:
    file, page = tmp_path / "found.json", tmp_path / "page.md"
    file.write_text(json.dumps({"mixed": gathered(state)}))
    page.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n")
    table.write_table(file, page, STAGED)
    text = page.read_text()
    assert text.startswith(f"before\n{table.START}\n### Mixed\n")
    assert text.endswith(f"torch 2.11.0.\n{table.END}\nafter\n")
    assert "old" not in text
    page.write_text("no markers")
    with pytest.raises(RunError, match="put both lines where the tables belong"):
        table.write_table(file, page, STAGED)
    assert page.read_text() == "no markers"


def test_a_copy_without_git_says_the_commit_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_of, "COMMIT", tmp_path / "COMMIT")
    assert record_of.commit() != "c0ffee with uncommitted changes"
    (tmp_path / "COMMIT").write_text("c0ffee with uncommitted changes\n")
    assert record_of.commit() == "c0ffee with uncommitted changes"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/bench_gpu.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_rehearsals_do_not_reach_the_results_and_docs(tmp_path: Path) -> None:
    for name in ("--results=benchmarks/results/gpu.json", "--page=docs/gpu.md"):
        done = bench("card", "--device=cpu", "--tiny", f"--folder={tmp_path}", name)
        assert done.returncode == 2
        assert "figures of --tiny or --device cpu do not go to" in done.stderr
    done = bench("nothing", "--list")
    assert done.returncode == 2
    assert "unknown section 'nothing'; valid: card, learner" in done.stderr


def test_the_page_shows_what_the_results_file_has() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text()
    shown = text.partition(table.START)[2].partition(table.END)[0]
    known = results.read(ROOT / "benchmarks" / "results" / "gpu.json")
    assert shown == f"\n{table.table(known, SECTIONS)}\n", "benchmarks/bench_gpu.py --table"


def test_without_a_gpu_it_is_said_before_anything_is_installed(tmp_path: Path) -> None:
    none = tmp_path / "nvidia-smi"
    none.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    none.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["make", "gpu", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("make: nvidia-smi shows no GPU here; a rehearsal on the CPU: ")
    assert not (tmp_path / "venv").exists()


def test_a_torch_that_could_see_no_card_is_named() -> None:
    assert runner.without_cuda({"name": "", "CUDA": "13.0"}) == ""
    assert "built without CUDA: `make gpu VENV=.venv-gpu`" in runner.without_cuda({"CUDA": None})


def test_the_list_has_steps_needs_and_the_sum() -> None:
    done = bench("card", "profile", "--list", "--device=cpu", "--tiny")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "card: The card; about 1 min"
    assert "   learner.smollm2-135m (needs smollm2)" in lines
    assert lines[-1] == "together about 3.5 min"
