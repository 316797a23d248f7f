"""Names that become files stay in the folder that they are meant for."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo import cli
from grpo.errors import RecipeError
from grpo.outside.files.durable import write_json
from grpo.outside.files.file_names import check_file_name, folder_name
from grpo.stages.eval import model_names

OUTSIDE = (
    "../../evil",
    "/etc/evil",
    "..",
    ".",
    "a/b",
    "a\\b",
    "",
    "-rf",
    ".hidden",
    "a\nb",
    "a\0b",
)
HOSTILE = (*OUTSIDE, "a\x1b]0;t\x07", "a\u202eb", "a b", "x" * 300, "é" * 60)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_elsewhere_or_hide_something_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="becomes the name of a file"):
        check_file_name(name, "the task of --data")


def test_names_of_files_that_are_taken() -> None:
    for name in ("mine", "gsm8k", "数学", "Mine_2.1-a", "aime@2024", "0"):
        assert check_file_name(name, "x") == name


def test_a_task_of_ones_own_cannot_write_outside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("rows.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    assert cli.main(["eval", "m", "--data", "../../evil=rows.jsonl", "--out", "out"]) == 2
    assert "the task of --data '../../evil' becomes the name of a file" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("out").exists()


def test_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "base" / "inside"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    paths = ["..", ".", "/r/zero/model", "org/Name-1.5B", "model", "../..", "../"]
    names = ["base", "inside", "zero", "Name-1.5B", "model", tmp_path.name, "base"]
    assert [folder_name(path) for path in paths] == names
    assert model_names(paths[:3]) == names[:3]


def test_a_file_written_aside_does_not_follow_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "summary.tmp").symlink_to(victim)
    write_json(tmp_path / "summary.json", {"a": 1})
    assert victim.read_text() == "mine"
    assert (tmp_path / "summary.json").read_text() == '{\n "a": 1\n}\n'
