"""The view of a run in a notebook cell, without a kernel: what is drawn, when, and how it ends."""

from __future__ import annotations

import re
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

import grpo
from grpo.commands.api import live, output
from grpo.outside.terminal.console import Console
from grpo.outside.terminal.view import SampledText
from grpo.rundir.log import RunLog

HOSTILE = '<script>alert(1)</script>\x1b]0;t\x07 $x$ "quoted"'


class Page:
    """What a kernel would show: the content of each output, oldest first."""

    def __init__(self) -> None:
        self.outputs: list[list[str]] = []

    def handle(self, _here: Any, content: str) -> int:
        self.outputs.append([content])
        return len(self.outputs) - 1

    def update(self, handle: int, content: str) -> None:
        self.outputs[handle].append(content)

    @property
    def last(self) -> str:
        return self.outputs[-1][-1]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    """A notebook without a kernel."""
    shown = Page()
    monkeypatch.setattr(output, "shell", lambda: types.SimpleNamespace(execution_count=7))
    monkeypatch.setattr(output, "begun", shown.handle)
    monkeypatch.setattr(output, "update", shown.update)
    return shown


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def text(page: str) -> str:
    """What a person reads."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)).strip()


def test_outside_a_notebook_there_is_no_view() -> None:
    with live.watched("grpo.train") as view:
        assert view is None
    with output.loading("loading torch"):
        pass
    assert "IPython.core.display" not in sys.modules or output.shell() is None


def test_a_call_is_one_output_from_its_first_word_to_its_last(page: Page, tmp_path: Path) -> None:
    with live.watched("grpo.train") as view:
        assert view is not None
        assert text(page.last).startswith("grpo.train 0 s starting")
        console = view.named(tmp_path / "runs" / "a")
        console.doing("rl: loading")
        assert "rl: loading" in text(page.last)
        with console.status("rl: drawing tasks"):
            assert "rl: drawing tasks" in text(page.last)
        with RunLog(tmp_path, title="rl", max_steps=3, console=console) as log:
            with log.task("held-out evaluation (before)") as progress:
                progress(3, 8)
                assert "held-out evaluation (before): 3 of 8" in text(page.last)
            log.step(
                1, {"reward": 0.25}, [SampledText(label="wrong 0", prompt="p", completion="c")]
            )
            log.step(2, {"reward": 0.75})
            assert "step 2 of 3" in text(view.drawn())
            log.step(3, {"reward": 0.5})
        console.print("before: math: greedy 0.500")
    assert len(page.outputs) == 1
    assert "finished" in text(page.last)
    assert "reward of 3 steps: 0.25 to 0.5 (lowest 0.25, highest 0.75)" in text(page.last)
    assert text(page.last).endswith("before: math: greedy 0.500")
    assert "<progress" not in page.last


def test_steps_in_a_hurry_are_not_all_drawn_but_the_last_is(page: Page, tmp_path: Path) -> None:
    with live.watched("grpo.train") as view:
        assert view is not None
        with RunLog(tmp_path, title="rl", max_steps=500, console=view.console) as log:
            for step in range(500):
                log.step(step + 1, {"reward": float(step)})
    assert len(page.outputs[0]) < 50
    assert "reward of 500 steps: 0 to 499" in text(page.last)


def test_what_models_and_rewards_say_is_text(page: Page, tmp_path: Path) -> None:
    sample = SampledText(label=HOSTILE, prompt=HOSTILE, completion=HOSTILE)
    with live.watched(HOSTILE) as view:
        assert view is not None
        with RunLog(tmp_path, title=HOSTILE, max_steps=2, console=view.console) as log:
            log.step(1, {"reward": 1.0, f"accuracy/{HOSTILE}": 0.0}, [sample])
            log.say(HOSTILE)
            view.console.print(Table(HOSTILE, title=HOSTILE))
            with log.task(HOSTILE) as progress:
                progress(1, 2)
                drawn = view.drawn()
    for shown in (drawn, page.last):
        assert "<script" not in shown
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "mathjax_ignore" in shown
    assert drawn.count("&lt;script&gt;") >= 8


def test_a_table_keeps_its_columns(page: Page) -> None:
    with live.watched("grpo.evaluate") as view:
        assert view is not None
        table = Table("", "before", "after", title="held-out")
        table.add_row("pass@1", "0.250", "0.500")
        view.console.print(table)
    assert "<td" in page.last
    assert text(page.last).endswith("held-out before after pass@1 0.250 0.500")


def test_warnings_of_libraries_are_messages_and_said_once_in_a_row(page: Page) -> None:
    with live.watched("grpo.train"):
        for _ in range(3):
            print("loading 10%\rloading 100%", file=sys.stderr)
    assert text(page.last).count("loading 100%") == 1
    assert "10% " not in text(page.last)


def test_a_warning_of_a_step_stays_with_the_step_where_it_came(page: Page, tmp_path: Path) -> None:
    with live.watched("grpo.train") as view:
        assert view is not None
        with RunLog(tmp_path, title="rl", max_steps=9, console=view.console) as log:
            for step, share in enumerate([0.1, 0.7, 0.9, 0.2], 1):
                log.step(step, {"reward": 0.0, "sentinel/empty_thoughts": share})
    said = text(page.last)
    assert said.count("answers come without any thought") == 1
    assert "rl step 2: look at some completions: sentinel/empty_thoughts = 0.70" in said


def test_what_fails_before_it_began_leaves_the_error_alone(page: Page) -> None:
    with pytest.raises(grpo.GrpoError, match="no such setting"), live.watched("grpo.train"):
        raise grpo.GrpoError("no such setting")
    assert page.last == ""


def test_what_fails_later_stays_to_be_read(page: Page, tmp_path: Path) -> None:
    def call() -> None:
        with live.watched("grpo.train") as view:
            assert view is not None
            with RunLog(tmp_path, title="rl", max_steps=3, console=view.console) as log:
                log.step(1, {"reward": 0.25})
                _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        call()
    assert "stopped by ZeroDivisionError" in text(page.last)


@pytest.mark.parametrize(
    ("said", "how"),
    [
        ("grpo train --resume {folder}", "grpo.load_run('runs/a').resume()"),
        ("grpo.load_run('{folder}').resume(rewards=[short])", None),
    ],
)
def test_an_interrupt_is_one_sentence_with_what_to_do(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, how: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path.cwd() / "runs" / "a"

    def call() -> None:
        with live.watched("grpo.train") as view:
            assert view is not None
            view.named(folder).print(f"continue with: {said.format(folder=folder)}")
            raise KeyboardInterrupt("interrupted; saved at step 4")

    with pytest.raises(KeyboardInterrupt) as stopped:
        call()
    how = how or "grpo.load_run('runs/a').resume(rewards=[short])"
    sentence = f"interrupted; saved at step 4. Go on with: run = {how}"
    assert str(stopped.value) == sentence
    assert stopped.value._render_traceback_() == [f"KeyboardInterrupt: {sentence}"]  # type: ignore[attr-defined]
    assert stopped.value.__suppress_context__


def test_an_interrupt_before_anything_was_saved(page: Page) -> None:
    with pytest.raises(KeyboardInterrupt, match="Nothing was saved"), live.watched("grpo.train"):
        raise KeyboardInterrupt


def test_a_console_without_a_view_prints() -> None:
    console = Console(record=True, quiet=False, width=80)
    console.doing("nothing to see")
    console.print("seen")
    assert console.export_text() == "seen\n"
