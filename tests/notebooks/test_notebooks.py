"""The committed notebooks: made from their scripts, readable as pages, the same on any machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import notebooks
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = notebooks.scripts([])
FOREIGN = re.compile(r"(?<![\w.<])/(?:home|root|tmp|work|usr|opt|content|Users|var)/")
LARGEST = 1_000_000  # bytes
EXTRAS = re.compile(r"^EXTRAS = .*$", re.MULTILINE)

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def committed(script: Path) -> nbformat.NotebookNode:
    """The notebook beside a script."""
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Its cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(output: Any) -> str:
    """All text of an output; pictures are left out."""
    data = output.get("data", {})
    texts = [text for kind, text in data.items() if not kind.startswith("image/")]
    return "\n".join([output.get("text", ""), *map(str, texts)])


@each_script
def test_a_notebook_has_the_cells_of_its_script(script: Path) -> None:
    made, kept = notebooks.read(script), committed(script)
    assert [(cell.cell_type, cell.source, cell.metadata) for cell in kept.cells] == [
        (cell.cell_type, cell.source, cell.metadata) for cell in made.cells
    ]
    assert kept.metadata == made.metadata


@each_script
def test_outputs_are_those_of_one_run_from_top_to_bottom(script: Path) -> None:
    cells = code(committed(script))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


@each_script
def test_outputs_name_no_machine(script: Path) -> None:
    for number, cell in enumerate(code(committed(script)), 1):
        for output in cell.outputs:
            text = shown(output)
            where = f"code cell {number} shows {text[:300]!r}"
            assert output.get("name") != "stderr", where
            assert not FOREIGN.search(text), where
            assert "\x1b[" not in text, where


@each_script
def test_a_notebook_is_small_enough_to_be_looked_at(script: Path) -> None:
    assert script.with_suffix(".ipynb").stat().st_size <= LARGEST


@each_script
def test_the_first_cell_is_the_one_of_all_notebooks(script: Path) -> None:
    first = (notebooks.FOLDER / "first_cell.py").read_text(encoding="utf-8").strip()
    own = code(notebooks.read(script))[0].source
    assert EXTRAS.sub("", own) == EXTRAS.sub("", first)


@each_script
def test_title_badge_parameters_and_one_thing_to_try(script: Path) -> None:
    cells = notebooks.read(script).cells
    title = cells[0].source
    assert cells[0].cell_type == "markdown"
    assert title.startswith("# ")
    badge = rf"\[!\[[^]]*\]\({notebooks.COLAB}/assets/colab-badge.svg\)\]\(([^)]*)\)"
    target = re.search(badge, title)
    assert target
    if "/github/" in target[1]:
        assert target[1].endswith(f"/recipes/notebooks/{script.stem}.ipynb")
    assert "minute" in title
    assert cells[1].cell_type == "code"
    assert cells[2].metadata.get("tags") == ["parameters"]
    headings = [
        line
        for cell in cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    assert headings[-1] == "## One thing to try"


@each_script
def test_small_settings_are_parameters(script: Path) -> None:
    notebook = notebooks.read(script)
    small = notebook.metadata["grpo"]["small"]
    assigned = {
        target.id
        for statement in ast.parse(notebook.cells[2].source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    assert small
    assert set(small) <= assigned


@each_script
def test_no_shell_and_no_magic_after_the_first_cell(script: Path) -> None:
    # What IPython would rewrite is no Python; jupytext keeps such lines as comments in a script.
    for cell in code(notebooks.read(script))[1:]:
        ast.parse(cell.source)


def test_every_notebook_has_a_script() -> None:
    made = {script.stem for script in SCRIPTS}
    assert {file.stem for file in notebooks.FOLDER.glob("*.ipynb")} <= made


@each_script
def test_every_notebook_is_listed(script: Path) -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    title = notebooks.read(script).cells[0].source.splitlines()[0].removeprefix("# ")
    assert f"[{title}](../recipes/notebooks/{script.stem}.ipynb)" in page


def test_the_readme_leads_to_the_notebooks() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "docs/notebooks.md" in readme
    assert "docs/notebook.png" in readme
    assert (ROOT / "docs" / "notebook.png").stat().st_size <= 300_000
