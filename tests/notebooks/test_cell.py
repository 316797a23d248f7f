"""A run in a cell of a real kernel: one output, an interrupt that is resumed, words of a reward."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import notebooks
import pytest
from nbclient import NotebookClient

SETTINGS = "num_generations=4, rollout={'prompts_per_step': 4}, eval={'num_tasks': %d}"
CELLS = [
    # what was shown before torch was there
    """
import sys
from IPython.display import DisplayHandle
import IPython.display as page
import grpo

early, own = [], page.display
def display(*objects, **options):
    early.append(("torch" in sys.modules, objects[0].data))
    return own(*objects, **options)
page.display = display
grpo.generate
page.display = own
early
""",
    f"""
import warnings
def short(completions, **_):
    print("a reward speaks")
    warnings.warn("a reward warns")
    return [-float(len(text)) for text in completions]

run = grpo.train("parity-r1-zero", rewards=short, max_steps=3, {SETTINGS % 4}, dir="runs/a")
""",
    f"""
import os, signal
def stops(completions, **_):
    global asked
    asked += 1
    if asked == 12:  # of the third step
        os.kill(os.getpid(), signal.SIGINT)
    return [float(len(text) % 5) for text in completions]

settings = dict(rewards=stops, max_steps=5, {SETTINGS % 0})
asked = -1000
whole = grpo.train("parity-r1-zero", **settings, dir="runs/whole", overwrite=True)
asked = 0
grpo.train("parity-r1-zero", **settings, dir="runs/stopped", overwrite=True)
""",
    """
stopped = grpo.load_run("runs/stopped")
print(stopped.state)
asked = -1000
stopped = stopped.resume(rewards=stops)
from safetensors.torch import load_file
a, b = (load_file(run.folder / "model" / "model.safetensors") for run in (whole, stopped))
print(stopped.state, all((a[name] == b[name]).all() for name in a))
import threading
print([thread.name for thread in threading.enumerate() if "_tick" in thread.name])
""",
    """
def bad(completions, **_):
    return [1 / 0 for _ in completions]

grpo.score(rewards=bad, dataset=[{"prompt": "<i>", "completion": "b"}])
""",
    "run.completions(99)",
    "%tb",
    "grpo.train('parity-r1-zero', max_stepps=3)",
    "%%time\nx = 1\ngrpo.load_run('nowhere')",
    "%%capture\nx = 1\ngrpo.load_run('nowhere')",
    "x = 1\n%time grpo.load_run('nowhere')",
    "try:\n    {}['a']\nexcept KeyError:\n    grpo.load_run('nowhere')",
    """
def long(completions, **_):
    raise ValueError("http://me:hunter2@host \\x1b[2J \\u202e <b> " + "long" * 50_000)

grpo.score(rewards=long, dataset=[{"prompt": "a", "completion": "b"}])
""",
    "figure = whole.plot()\nfigure",
    "%matplotlib inline\nimport matplotlib.pyplot\nfigure",
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells after they ran, one after the other, in one kernel."""
    work = tmp_path_factory.mktemp("cell")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS]
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        allow_errors=True,
        coalesce_streams=True,
        extra_arguments=["--HistoryManager.enabled=False", "--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(work)}},
    )
    with client.setup_kernel(env=notebooks.environment(Path(work)), cwd=str(work)):
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
    return notebook.cells


def pages(cell: Any) -> list[str]:
    """The HTML of each output of a cell."""
    return [
        output.data["text/html"] for output in cell.outputs if "text/html" in output.get("data", {})
    ]


def text(page: str) -> str:
    """What a person reads."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)).strip()


def printed(cell: Any) -> str:
    """What a cell printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_the_first_word_comes_before_torch(cells: list[Any]) -> None:
    result = next(o for o in cells[0].outputs if o.output_type == "execute_result")
    found = ast.literal_eval(result.data["text/plain"])
    assert [(there, text(page)) for there, page in found] == [(False, "loading torch …")]


def test_a_run_is_one_output_and_a_reward_may_print(cells: list[Any]) -> None:
    (page,) = pages(cells[1])
    said = text(page)
    assert said.startswith("grpo.train → runs/a finished after")
    assert "reward of 3 steps" in said
    assert "a reward warns" in said
    assert "pass@1" not in said or "before" in said
    assert "a reward speaks" in printed(cells[1])
    assert {output.get("name", "stdout") for output in cells[1].outputs} == {"stdout"}


def test_an_interrupted_cell_says_how_to_go_on_and_it_goes_on_to_the_same_bits(
    cells: list[Any],
) -> None:
    error = next(output for output in cells[2].outputs if output.output_type == "error")
    assert "\n".join(error.traceback) == (
        "KeyboardInterrupt: interrupted; saved at step 3. Go on with: run = "
        "grpo.load_run('runs/stopped').resume(rewards=[stops])"
    )
    assert "interrupted; saved at step 3" in text(pages(cells[2])[-1])
    state, done, threads = printed(cells[3]).splitlines()
    assert state == "stopped (rl step 3 of 5)"
    assert done == "finished True"
    assert threads == "[]"


def error_of(cell: Any) -> str:
    """What a cell prints of its error, without colors."""
    error = next(output for output in cell.outputs if output.output_type == "error")
    return notebooks.ANSI.sub("", "\n".join(error.traceback))


def test_an_error_is_a_sentence_the_users_lines_and_a_folded_trace(cells: list[Any]) -> None:
    assert error_of(cells[4]).splitlines() == [
        "RewardError: reward 'bad' raised ZeroDivisionError: division by zero at In[5], line 2",
        "",
        "In[5], line 4",
        '    grpo.score(rewards=bad, dataset=[{"prompt": "<i>", "completion": "b"}])',
        "",
        "In[5], line 2, in bad",
        "    return [1 / 0 for _ in completions]",
    ]
    (trace,) = pages(cells[4])
    assert trace.startswith("<details")
    assert "ZeroDivisionError" in trace
    assert trace.count("call last") == 2
    assert "<i>" not in trace


def test_an_error_of_a_runs_method_looks_the_same_and_tb_shows_it_again(cells: list[Any]) -> None:
    for cell in cells[5:7]:
        said = error_of(cell).splitlines()
        assert said[0].startswith("RunError: the run ")
        assert said[1:] == ["", "In[6], line 1", "    run.completions(99)"]
        assert len(pages(cell)) == 1


def test_a_wrong_word_is_one_sentence_without_an_output_of_the_run(cells: list[Any]) -> None:
    said = error_of(cells[7]).splitlines()
    assert said[0].startswith("RecipeError: there is no setting 'max_stepps'. Did you mean")
    assert said[0].endswith("(grpo.train at In[8], line 1)")
    assert len(said) == 4
    assert [page for page in pages(cells[7]) if not page.startswith("<details")] == [""]


def test_a_cell_with_a_magic_is_named_as_the_page_counts(cells: list[Any]) -> None:
    call = "grpo.load_run('nowhere')"
    for number, line, source in [(9, 3, call), (10, 3, call), (11, 2, f"%time {call}")]:
        said = error_of(cells[number - 1]).splitlines()
        assert said[0].endswith(f"(grpo.load_run at In[{number}], line {line})")
        assert said[1:] == ["", f"In[{number}], line {line}", f"    {source}"]


def test_an_error_that_was_being_handled_is_in_the_trace_only(cells: list[Any]) -> None:
    assert error_of(cells[11]).splitlines()[1:] == [
        "",
        "In[12], line 4",
        "    grpo.load_run('nowhere')",
    ]
    assert "KeyError" in pages(cells[11])[-1]


def test_a_hostile_message_is_written_out_and_cut_wherever_it_is_shown(cells: list[Any]) -> None:
    (trace,) = [page for page in pages(cells[12]) if page]
    said = error_of(cells[12])
    for text in (said, trace):
        assert "hunter2@host" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "\\x1b[2J \\u202e <b> longlong" in said
    assert len(said) < 3000
    assert "<b>" not in trace
    assert len(trace) < 60_000
    assert "call last" in trace
    assert "In[13], line 2, in long" in said


def test_a_figure_is_shown_once_and_clear_whoever_else_draws_figures(cells: list[Any]) -> None:
    shown = [[output.get("data", {}) for output in cell.outputs] for cell in cells[13:15]]
    ((plain,), (inline,)) = shown
    assert plain["image/png"] == inline["image/png"]
    assert len(plain["image/png"]) < 120_000
