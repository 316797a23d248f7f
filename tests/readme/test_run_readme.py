"""The README runner itself: it finds blocks, honors skips, and fails when a block fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FENCE = "```"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    path = Path(__file__).with_name("run_readme.py")
    found = importlib.util.spec_from_file_location("run_readme", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def write(folder: Path, *parts: str) -> Path:
    (folder / "here.txt").write_text("beside the README")
    readme = folder / "README.md"
    readme.write_text("\n".join(parts))
    return readme


def block(language: str, code: str) -> str:
    return f"{FENCE}{language}\n{code}\n{FENCE}"


def test_blocks_run_in_order_and_leave_nothing(runner: ModuleType, tmp_path: Path) -> None:
    readme = write(
        tmp_path,
        block("bash", "$ grep -q beside here.txt\n$ echo 4 > made.txt"),
        block("python", "assert open('made.txt').read().strip() == '4'"),
        block("text", "exit 1"),
    )
    assert runner.main(readme) == 0
    assert not (tmp_path / "made.txt").exists()


@pytest.mark.parametrize("bad", [block("bash", "false | true"), block("python", "1 / 0")])
def test_a_failing_block_fails_the_run(runner: ModuleType, tmp_path: Path, bad: str) -> None:
    assert runner.main(write(tmp_path, bad, block("bash", "true"))) == 1


def test_skips_need_a_reason_and_a_run_needs_a_block(
    runner: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skipped = "<!-- not run: needs a GPU -->\n" + block("bash", "exit 1")
    assert runner.main(write(tmp_path, skipped, block("bash", "true"))) == 0
    assert "README.md:2 (bash): not run: needs a GPU" in capsys.readouterr().out
    assert runner.main(write(tmp_path, skipped)) == 1
