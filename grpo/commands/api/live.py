"""A run in a notebook cell: one output that is drawn anew while the call works.

It is the notebook's `View` (`grpo/outside/terminal/view.py`). The output appears before torch is
imported, is updated at most four times a second, and what it shows at the end is what the notebook
keeps. Outside a notebook nothing here does anything.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from grpo.commands.api import html, output
from grpo.outside.terminal.console import Console
from grpo.outside.terminal.view import StepDone

PAUSE = 0.25  # seconds between two drawings
KEPT = 300  # messages
HOW = "continue with: "  # begins the message that says how to go on
_TIMED = 8  # steps that the time left is estimated from
_BAR = '<progress style="width:100%;height:.7em;accent-color:#4a90d9" {}></progress>'
_CURVES = ("reward", "loss", "accuracy")


class Interrupted(KeyboardInterrupt):
    """An interrupt that a notebook shows as one sentence instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


@contextmanager
def watched(title: str) -> Iterator[CellView | None]:
    """The view of a call in a notebook; None elsewhere.

    What libraries write to standard error meanwhile is shown as messages. An interrupt leaves as
    one sentence with what there is to do.
    """
    here = output.shell()
    if here is None:
        yield None
        return
    view = CellView(title, here)
    try:
        with redirect_stderr(_Messages(view, sys.stderr)):  # pyright: ignore[reportArgumentType]
            yield view
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or "interrupted"
        view.close(said)
        interrupted = Interrupted(f"{said}. {view.how()}")
    except BaseException as error:
        view.close(f"stopped by {type(error).__name__}")
        raise
    else:
        view.close("")
        return
    raise interrupted from None


class CellView:
    """What one call shows: activity, bars, curve, figures, two completions, messages."""

    def __init__(self, title: str, here: Any) -> None:
        self.title = title
        self._activity, self._ended, self._failed = "starting", False, ""
        self._bars: dict[str, tuple[int, int | None]] = {}
        self._stage, self._done, self._of = "", 0, 0
        self._step: StepDone | None = None
        self._history: dict[str, list[float]] = {}
        self._warned: dict[str, str] = {}  # metric -> its first warning, with the step
        self._messages: list[str] = []  # HTML
        self._began, self._drawn = time.monotonic(), 0.0
        self._times: list[float] = []  # of the last steps
        self._folder, self._how = "", ""
        self.console = Console(view=self, width=200)
        self._handle = output.begun(here, self.drawn())
        self._lock, self._over = threading.Lock(), threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)
        self._clock.start()

    def named(self, folder: Path, *, instead: bool = False) -> Console:
        """The console of the run in a folder. instead: of a run that was there before."""
        said = ", in place of the run that was there" if instead else ""
        self._folder = _near(str(folder))
        self.title += f" → {self._folder}{said}"
        return self.console

    # -- what it is told --------------------------------------------------------------------

    def doing(self, what: str) -> None:
        """What begins now, until the next thing does."""
        self._activity = what
        self._draw(now=True)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """How far a long piece of work is; total is None where nobody knows."""
        new = what not in self._bars
        self._bars[what] = done, total
        self._draw(now=new)

    def over(self, what: str) -> None:
        """A long piece of work has ended."""
        self._bars.pop(what, None)
        self._times.clear()  # it may have come between two steps
        self._draw()

    def begin(self, stage: str, done: int, of: int) -> None:
        """A stage begins, of which `done` steps were done before."""
        self._stage, self._done, self._of, self._activity = stage, done, of, ""
        self._step, self._history, self._times = None, {}, []
        self._draw()

    def step(self, step: StepDone) -> None:
        """A training step is done."""
        self._step, self._done, self._activity = step, step.step, ""
        for heading, value in step.figures.items():
            self._history.setdefault(heading, []).append(value)
        for metric, warning in step.warnings.items():
            self._warned.setdefault(metric, f"{step.stage} step {step.step}: {warning}")
        self._times = [*self._times[-_TIMED:], time.monotonic()]
        self._draw()

    def say(self, text: str) -> None:
        """A message, whole lines."""
        for line in text.splitlines():
            if line.startswith(HOW):
                self._how = _near(line.removeprefix(HOW))
            elif line.strip():
                self._add(html.line(_near(line)))
        self._draw()

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of texts."""
        self._add(html.small(html.safe(_near(title))) + html.table(headings, rows))
        self._draw()

    # -- what it shows ----------------------------------------------------------------------

    def close(self, failed: str) -> None:
        """The state that stays. failed: why the call did not finish; "" where it did.

        Of a call that failed before anything was done nothing stays: the error says it all.
        """
        self._over.set()
        self._clock.join()
        self._ended, self._failed = True, failed
        if failed and self._step is None and not self._messages:
            output.update(self._handle, "")
        else:
            self._draw(now=True)

    def how(self) -> str:
        """What to do after an interrupt."""
        if not self._how:
            return "Nothing was saved; run the cell again to start over"
        here = f"grpo.load_run({self._folder!r}).resume()"
        return f"Go on with: run = {self._how if 'load_run' in self._how else here}"

    def drawn(self) -> str:
        """The page as it is now."""
        parts = [self._heading(), self._progress(), self._warnings()]
        step = self._step
        name = next((n for n in _CURVES if n in self._history), "")
        if step is not None and name:
            parts.append(html.curve(name, self._history[name]))
        if step is not None and not self._ended:
            parts.append(_figures(step.figures))
            parts.append(
                "".join(html.sample(s.label, s.prompt, s.completion) for s in step.samples)
            )
        parts.append(html.scroll(self._messages))
        return html.box("grpo-live", parts)

    def _heading(self) -> str:
        seconds = f"{time.monotonic() - self._began:.0f} s"
        said = f"{self._failed or 'finished'} after {seconds}" if self._ended else seconds
        how = f"<div>{html.safe(self.how())}</div>" if self._failed and self._how else ""
        return f"<b>{html.safe(self.title)}</b> {html.safe(said)}{how}"

    def _progress(self) -> str:
        if self._ended:
            return ""
        parts: list[str] = []
        if self._stage:
            said = f"{self._stage}: step {self._done} of {self._of}{self._left()}"
            parts += [html.safe(said), _BAR.format(f'value="{self._done}" max="{self._of}"')]
        for what, (done, total) in self._bars.items():
            parts.append(html.safe(f"{what}: {done}{f' of {total}' if total else ''}"))
            parts.append(_BAR.format(f'value="{done}" max="{total}"' if total else ""))
        if self._activity and not self._bars:
            parts += [html.safe(f"{self._activity} …"), "" if self._stage else _BAR.format("")]
        return "".join(f"<div>{part}</div>" for part in parts if part)

    def _left(self) -> str:
        """How long the rest of the steps will take, once that can be said."""
        if len(self._times) < 3 or self._done >= self._of:
            return ""
        each = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        seconds = round(each * (self._of - self._done))
        minutes, rest = divmod(seconds, 60)
        return f", about {f'{minutes} min {rest} s' if minutes else f'{rest} s'} left"

    def _warnings(self) -> str:
        bar = "border-left:4px solid #d9a400;padding-left:.6em"
        return "".join(
            f'<div style="{bar}">{html.safe(said)}</div>' for said in self._warned.values()
        )

    def _add(self, message: str) -> None:
        if self._messages[-1:] != [message]:
            self._messages = [*self._messages[-KEPT:], message]

    def _draw(self, *, now: bool = False) -> None:
        with self._lock:
            clock = time.monotonic()
            if now or clock - self._drawn >= PAUSE:
                self._drawn = clock
                output.update(self._handle, self.drawn())

    def _tick(self) -> None:
        """Draw once a second, also what came too soon after the last drawing."""
        while not self._over.wait(1.0):
            self._draw()


class _Messages:
    """A stream whose lines are messages of a view."""

    def __init__(self, view: CellView, raw: Any) -> None:
        self._view, self._raw, self._begun = view, raw, ""

    def write(self, text: str) -> int:
        """Show every whole line; of what a library redraws in place only what it says last."""
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self._view.say(line.rpartition("\r")[2])
        return len(text)

    def flush(self) -> None:
        """Nothing waits but a line that is not whole."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _figures(figures: Mapping[str, float]) -> str:
    return html.table(list(figures), [[f"{value:.4g}" for value in figures.values()]])


def _near(text: str) -> str:
    """A text with paths as they are seen from the working directory."""
    return text.replace(f"{Path.cwd()}/", "")
