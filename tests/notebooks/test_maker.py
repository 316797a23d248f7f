"""What benchmarks/notebooks.py does with a script, and with a notebook that does not run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import notebooks
import pytest

SCRIPT = """\
# ---
# jupyter:
#   grpo:
#     small:
#       steps: 2
# ---

# %% [markdown]
# # Title
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)

# %% tags=["parameters"]
steps = 40

# %%
import os
import sys

print(os.getcwd(), "\\x1b[31mred\\x1b[0m", steps)
seen = globals().get("seen", 0) + 1
print(seen)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A notebook's script of three cells."""
    path = tmp_path / "01-title.py"
    path.write_text(SCRIPT)
    return path


def test_small_settings_come_after_the_parameters(script: Path) -> None:
    cells = notebooks.inject_small(notebooks.read(script)).cells
    assert [cell.source for cell in cells[1:3]] == ["steps = 40", "steps = 2"]
    assert len(notebooks.read(script).cells) == len(cells) - 1


def test_small_settings_without_a_tagged_cell_are_refused(script: Path) -> None:
    script.write_text(SCRIPT.replace(' tags=["parameters"]', ""))
    with pytest.raises(notebooks.NotebookError, match="has 0 cells tagged `parameters`"):
        notebooks.inject_small(notebooks.read(script))


def test_two_passes_in_one_kernel_and_outputs_of_the_first(script: Path) -> None:
    made = notebooks.make(script, small=True, passes=2, limit=60)
    assert len(made.seconds) == 2
    last = made.notebook.cells[-1]
    assert last.outputs[0]["text"] == ". red 2\n1\n"
    assert [cell.get("execution_count") for cell in made.notebook.cells] == [None, 1, 2, 3]


def test_the_same_script_and_outputs_are_the_same_bytes(script: Path) -> None:
    notebooks.write(notebooks.read(script), script)
    first = script.with_suffix(".ipynb").read_bytes()
    notebooks.write(notebooks.read(script), script)
    assert script.with_suffix(".ipynb").read_bytes() == first
    assert nbformat.reads(first.decode(), as_version=4).metadata.grpo.small.steps == 2


def test_a_cell_that_fails_is_named_with_its_error(script: Path) -> None:
    script.write_text(SCRIPT + '\n# %%\nprint("so far")\n1 / 0\n')
    with pytest.raises(notebooks.NotebookError) as error:
        notebooks.make(script, limit=60)
    assert str(error.value).startswith(
        'code cell 3, `print("so far")`: ZeroDivisionError: division'
    )
    assert "so far\n" in str(error.value)


def test_a_notebook_beyond_its_time_is_stopped(script: Path) -> None:
    script.write_text(SCRIPT + "\n# %%\nimport time\n\ntime.sleep(100)\n")
    with pytest.raises(notebooks.NotebookError, match="`import time`: not done after 3 s"):
        notebooks.make(script, limit=3)


def test_no_notebook_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(notebooks.NotebookError, match="no notebook"):
        notebooks.scripts([], tmp_path)
    with pytest.raises(notebooks.NotebookError, match="'09' is no notebook"):
        notebooks.scripts(["09"], tmp_path)


def test_a_badge_is_pointed_to_a_repository_and_to_another(script: Path) -> None:
    for repository in ("owner/name", "other/fork"):
        notebooks.point_badge(script, repository)
        address = f"{notebooks.COLAB}/github/{repository}/blob/main/recipes/notebooks"
        badge = f"{notebooks.COLAB}/assets/colab-badge.svg)]({address}/01-title.ipynb)"
        assert badge in script.read_text()
    with pytest.raises(notebooks.NotebookError, match="it is written owner/name"):
        notebooks.point_badge(script, "https://example.org/a")


def test_text_that_was_changed_keeps_the_outputs(script: Path) -> None:
    made = notebooks.make(script, limit=60).notebook
    notebooks.write(made, script)
    script.write_text(SCRIPT.replace("# # Title", "# # Other title"))
    notebooks.take_over_text(script)
    kept = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert kept.cells[0].source.startswith("# Other title")
    assert kept.cells[1:] == made.cells[1:]
    script.write_text(SCRIPT.replace("steps = 40", "steps = 41"))
    with pytest.raises(notebooks.NotebookError, match="code has changed"):
        notebooks.take_over_text(script)
