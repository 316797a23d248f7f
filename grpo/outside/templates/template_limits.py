"""What a chat template, a program from outside, may do, and for how long.

transformers runs it in Jinja's sandbox for immutable data: no attribute that begins with an
underscore, no file, no change of its arguments, no `range` beyond 100,000. The sandbox does not
limit time: two nested loops run for hours, and a power of powers never ends. So a rendering has a
deadline, and a template with powers is refused. Memory is not limited: a template that doubles a
text often enough ends the process.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

SECONDS = 10.0  # of one rendering, which takes less than a millisecond
_LOOK = 0.2
_TAGS = re.compile(r"\{%-?\s{0,9}(end)?generation\s{0,9}-?%\}")  # known to transformers alone


class LateTemplateError(ValueError):
    """A chat template that did not end in time."""

    def __str__(self) -> str:
        return f"it was not done after {SECONDS:g} s"


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """The text of messages by the tokenizer's chat template.

    Raises ValueError for one that takes too long or computes powers, and what it raises itself.
    """
    chosen = options.get("chat_template") or getattr(tokenizer, "chat_template", None)
    for source in chosen.values() if isinstance(chosen, Mapping) else (chosen,):
        if isinstance(source, str):
            _check_powers(source)
    with bounded():
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except (ArithmeticError, LookupError, RecursionError) as error:
            if isinstance(error, KeyError):
                raise
            raise ValueError(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=64)
def _check_powers(source: str) -> None:
    """Raise ValueError for `**`, which may never end and which no deadline can interrupt."""
    if "**" not in source:
        return
    from jinja2 import Environment, TemplateSyntaxError, nodes

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_TAGS.sub("", source))
    except (TemplateSyntaxError, RecursionError):  # transformers says it better
        return
    for power in tree.find_all(nodes.Pow):
        raise ValueError(f"line {power.lineno} computes a power (**), which no template needs")


@contextmanager
def bounded(seconds: float | None = None) -> Iterator[None]:
    """Raise LateTemplateError inside, after `seconds` (None: `SECONDS`)."""
    me = threading.get_ident()
    _watch()
    with _lock:
        _deadlines[me] = time.monotonic() + (SECONDS if seconds is None else seconds)
    try:
        yield
    finally:
        try:
            _leave(me)
        except LateTemplateError:  # it arrived here
            _leave(me)
            raise


_deadlines: dict[int, float] = {}  # thread -> when it is late
_lock = threading.Lock()
_watchdog: threading.Thread | None = None


def _leave(thread: int) -> None:
    with _lock:
        _deadlines.pop(thread, None)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)


def _watch() -> None:
    global _watchdog
    if _watchdog is None or not _watchdog.is_alive():
        _watchdog = threading.Thread(target=_keep_watch, name="grpo-templates", daemon=True)
        _watchdog.start()


def _keep_watch() -> None:
    while True:
        time.sleep(_LOOK)
        now = time.monotonic()
        with _lock:
            for thread, deadline in _deadlines.items():
                if now >= deadline:
                    _deadlines[thread] = now + 1  # again, in case something caught the error
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(LateTemplateError)
                    )


def _forget() -> None:
    # a forked child has none of the threads
    global _watchdog, _lock
    _watchdog, _lock = None, threading.Lock()
    _deadlines.clear()


os.register_at_fork(after_in_child=_forget)
