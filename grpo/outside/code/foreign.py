"""Code that is not ours: where it went wrong, and what it may not leave changed.

A plug-in may raise anything. `SystemExit` would end a run silently with exit code 0, and a
`KeyboardInterrupt` of its own would look like Ctrl-C. Inside `guarded` both become one of our
errors, with the line of the user's file; only a signal counts as Ctrl-C. Settings of the whole
process that would change the training (torch's default type, say) are restored.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import FrameType
from typing import Any

from grpo.errors import GrpoError
from grpo.errors.places import place_of

logger = logging.getLogger(__name__)

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_told: set[tuple[str, str]] = set()


class Passing(BaseException):
    """Raised by us through a user's code: `guarded` lets it pass as it is."""


def said(error: BaseException) -> str:
    """What the code did: "raised KeyError: 'x' at my.py:3"."""
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        return f"called sys.exit({code}){place_of(error)}, and only you may end a run"
    text = error.msg if isinstance(error, SyntaxError) else str(error)  # the place follows
    words = f": {text}" if text else ""
    return f"raised {type(error).__name__}{words}{place_of(error)}"


@contextmanager
def guarded(
    who: str, fail: Callable[[BaseException], GrpoError], *, keep: bool = True
) -> Iterator[None]:
    """Run code of `who`, say "reward 'short'", inside; an error it raises becomes `fail(error)`.

    The KeyboardInterrupt of a signal passes, and so does `Passing`. Unless `keep`, settings of the
    process that the code changes stay changed.
    """
    with _signals() as arrived, _settings(who) if keep else nullcontext():
        try:
            yield
        except Passing:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and arrived:
                raise
            failed = fail(error)
            if failed is error:
                raise
            if isinstance(error, StopIteration):
                raise failed  # noqa: B904  (with a cause, `contextmanager` would let the cause out)
            raise failed from error


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that arrive inside, as a list that grows; their handlers are put back."""
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # no signal comes here
        yield arrived
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}
    handler = before[signal.SIGINT]

    def note(number: int, frame: FrameType | None) -> Any:
        arrived.append(number)
        return handler(number, frame)  # pyright: ignore[reportCallIssue, reportOptionalCall]

    if callable(handler):
        signal.signal(signal.SIGINT, note)
    try:
        yield arrived
    finally:
        for number, previous in before.items():
            if previous is not None and signal.getsignal(number) is not previous:
                signal.signal(number, previous)


@contextmanager
def _settings(who: str) -> Iterator[None]:
    """Restore the settings that `_known` lists, with a warning that names who changed them."""
    known = _known("torch" in sys.modules, "numpy" in sys.modules)
    before = [read() for _, read, _ in known]
    try:
        yield
    finally:
        for (what, read, write), value in zip(known, before, strict=True):
            if (now := read()) != value:
                write(value)
                if (who, what) not in _told:  # not once a group
                    _told.add((who, what))
                    logger.warning("%s left %s at %s; it is %s again", who, what, now, value)


@cache
def _known(
    with_torch: bool, with_numpy: bool
) -> tuple[tuple[str, Callable[[], Any], Callable[[Any], Any]], ...]:
    """(name, how to read it, how to set it) of each setting that would change our computation.

    Training does not depend on random generators (sampling noise is a hash, models have no
    dropout), environment variables or the locale, so they are not listed.
    """
    known: list[tuple[str, Callable[[], Any], Callable[[Any], Any]]] = [
        ("the working directory", _working_directory, lambda path: path and os.chdir(path))
    ]
    if with_numpy:
        numpy: Any = sys.modules["numpy"]
        known.append(("numpy's error state", numpy.geterr, lambda state: numpy.seterr(**state)))
    if with_torch:
        torch: Any = sys.modules["torch"]
        known += [
            ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
            (
                "torch's default device",
                torch.get_default_device,
                # setting the CPU would cost every operation a look at it
                lambda device: torch.set_default_device(None if device.type == "cpu" else device),
            ),
            ("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
            ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
            (
                "torch's precision of float32 products",
                torch.get_float32_matmul_precision,
                torch.set_float32_matmul_precision,
            ),
            (
                "torch's deterministic algorithms",
                lambda: (
                    torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled(),
                ),
                lambda how: torch.use_deterministic_algorithms(how[0], warn_only=how[1]),
            ),
        ]
    return tuple(known)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None
