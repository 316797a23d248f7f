"""What runs inside the sandbox for `code`: the candidate, the tests, or a stdio program.

The candidate lives alone in its process. It never sees tests, expected values or the channel of
the verdict; it is asked to call what it defined and answers with plain data (`plain`). The tests
run in a second process and reach the candidate through `stubs`. This is the only file of
the project that executes text, and it does so only after `zygote.confine`.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import importlib
import os
import socket
import sys
import textwrap
import threading
import types
from collections.abc import Callable
from types import CodeType
from typing import Any

from grpo.outside.rows.code_rows import definitions
from grpo.rewards.code import prelude, raising
from grpo.rewards.code.asking import Asker, TestsError
from grpo.rewards.code.classes import Classes
from grpo.rewards.code.names import (
    Names,
    Text,
    asks_for_classes,
    beyond_reach,
    caught,
    classes_of,
    libraries,
    names_under_test,
    read_text,
)
from grpo.rewards.code.program import Program, raised, sole_function
from grpo.rewards.code.raising import LONGEST, describe
from grpo.rewards.code.readings import SOLE
from grpo.rewards.code.rewrites import counted_asserts, expected_first
from grpo.rewards.sandbox import wire

_LOOPING = ("map", "filter", "filterfalse", "takewhile", "dropwhile", "accumulate", "groupby")


def _run(source: str, name: str, namespace: dict[str, Any]) -> None:
    _execute(compile(source, name, "exec", dont_inherit=True), namespace)


def _execute(program: CodeType, namespace: dict[str, Any]) -> None:
    exec(program, namespace)  # noqa: S102  (the one place, and only inside the sandbox)


def _module(name: str) -> dict[str, Any]:
    """The namespace of a new module that is found under its name, as pickle and dataclasses do."""
    module = sys.modules[name] = types.ModuleType(name)
    vars(module)["__builtins__"] = builtins
    return vars(module)


def trial() -> str:
    """What goes wrong with those parts of numpy that `import numpy` leaves on the disk, or ""."""
    import numpy

    for name in ("random", "linalg", "fft", "polynomial", "ma"):
        importlib.import_module(f"numpy.{name}")
    drawn = numpy.random.default_rng(0).integers(0, 10, 3).shape  # pyright: ignore
    inverse = numpy.linalg.inv(numpy.array([[2.0, 0.0], [0.0, 4.0]]))
    if drawn != (3,) or inverse.tolist() != [[0.5, 0.0], [0.0, 0.25]]:
        return f"numpy came out as {drawn}, {inverse.tolist()}"
    return ""


def serve_candidate(channel: socket.socket) -> None:
    """Load the code when the tests say so, then answer requests until the channel closes.

    The program's text runs only after the tests have told the host that it may: whatever fails
    from then on can be the program's doing.
    """
    wire.send(channel, {"confined": True})  # before any text runs: nothing can forge it
    given = wire.receive(channel)
    namespace = _module("candidate")
    namespace |= prelude.HEADER
    _execute(prelude.CODE, namespace)
    namespace |= prelude.MODULES
    with contextlib.suppress(BaseException):  # the tests' process reports a broken setup
        _run(given["setup"], "<setup>", namespace)
    told = wire.receive(channel)
    names: list[str] = told["names"]
    for name in names:  # a setup may hold the function without its body, the prelude a namesake
        namespace.pop(name, None)
    before = dict(namespace)
    try:
        _execute(_compiled(given["code"], given["setup"], given["entry"]), namespace)
    except BaseException as error:
        _answer(channel, {"raised": raised(error)})
        return
    if SOLE in names:
        namespace |= sole_function(before, namespace)
    _answer(channel, {"loaded": True, "missing": [n for n in names if n not in namespace]})
    program = Program(namespace, Classes(namespace, told["classes"]))
    while True:
        request = wire.receive(channel)
        _answer(channel, program.answer(request))


def _answer(channel: socket.socket, answer: dict[str, Any]) -> None:
    try:
        wire.send(channel, answer)
    except wire.WireError as error:
        wire.send(channel, {"raised": raised(ValueError(str(error)))})


def _compiled(code: str, setup: str, entry: str | None) -> CodeType:
    """The program, put behind the setup where it is only the body of the function asked for."""
    try:
        return compile(code, "<completion>", "exec", dont_inherit=True)
    except SyntaxError:
        # the first line of a body may have lost its indentation to the fence, or to the model
        for body in (textwrap.indent(code, "    "), "    " + code.lstrip()) if entry else ():
            with contextlib.suppress(SyntaxError):
                whole = f"{setup.rstrip()}\n{body}"
                return compile(whole, "<completion>", "exec", dont_inherit=True)
        raise


def run_tests(verdict: socket.socket, candidate: socket.socket) -> None:
    """Run a row's tests against the candidate; answer {"passed", "total", "detail"} or {"broken"}.

    On the way there {"started"} is said before the program's text runs, and {"passed", "total",
    "so_far"} after each assert where `partial` is set. `passed` counts asserts where the row lists
    them or `partial` is set, else it is 0 or 1.
    """
    given = wire.receive(verdict)
    tests = Tests(given, candidate, verdict)
    try:
        tests.prepare()
    except BaseException as error:
        wire.send(verdict, {"broken": "{}: {}".format(*describe(error))})
        return
    first = wire.receive(candidate)
    if "confined" not in first:
        wire.send(verdict, {"unconfined": str(first)[:LONGEST]})
        return
    wire.send(verdict, {"started": True})
    wire.send(candidate, {"names": tests.names.program, "classes": tests.setup_classes})
    found = {"passed": 0, "total": tests.total, "detail": tests.load()}
    if not found["detail"]:
        found = tests.run()
    wire.send(verdict, found)


class Tests:
    """The tests of one row, their namespace, and what became of each."""

    def __init__(self, given: dict[str, Any], candidate: socket.socket, verdict: socket.socket):
        self.given = given
        self.candidate = candidate
        self.verdict = verdict
        self.partial: bool = given["partial"]
        self.namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        self.asker = Asker(candidate, self.namespace)
        self.outcomes: list[str | None] = []  # None: passed; else why not
        self.names = Names(program=(), classes=(), in_setup=False)
        self.parts: list[CodeType] = []
        self.setup: CodeType | None = None  # still to be run, where it needs the program
        self.setup_classes: list[str] = []  # that both sides have
        self.caught: list[str] = []  # classes of the program's that may be exceptions
        self.total = 1

    def prepare(self) -> None:
        """Read the tests and run their setup. Raises what is wrong with the row."""
        defines: list[str] | None = self.given["defines"]
        if defines is None and self.given["reference"]:
            defines = definitions(self.given["reference"])
        _execute(prelude.CODE, self.namespace)
        setup = read_text(self.given["setup"], "<setup>")
        texts = [read_text(part, "<tests>") for part in self.given["parts"]]
        sources = [text.source for text in (setup, *texts)]
        if reason := beyond_reach(sources):
            raise TestsError(reason)
        self.names = names_under_test(
            setup=setup,
            parts=texts,
            entry=self.given["entry"],
            defines=defines,
            python={*self.namespace, *dir(builtins)},
        )
        self.caught = caught(self.names.classes, [text.tree for text in (setup, *texts)])
        if self.names.classes and asks_for_classes(sources, self.names.classes):
            raise TestsError("the tests look at a class of the program's, which stays there")
        every = "\n".join(sources)
        # an end of iteration would also end a loop over `map(candidate, …)`, and pass it
        looping = any(f"{name}(" in every for name in _LOOPING)
        ends = raising.EXITS if looping else raising.ON_REQUEST
        self.asker.on_request = frozenset(name for name in ends if name in every)
        self.asker.libraries = lambda: libraries(text.tree for text in (setup, *texts))
        own = set(self.names.program)
        self.setup_classes = sorted(set(classes_of(setup.tree)) - own)
        self.setup = setup.code if self.names.in_setup else None
        self.parts = [self.rewritten(text) for text in texts]
        self.total = max(1, len(texts))
        if self.partial and len(texts) == 1:
            self.total = sum(isinstance(n, ast.Assert) for n in ast.walk(texts[0].tree)) or 1
            counted = counted_asserts(texts[0].tree)
            self.parts = [compile(counted, "<tests>", "exec", dont_inherit=True)]
        self.namespace["__check__"] = self.check
        if not self.names.in_setup:
            _execute(setup.code, self.namespace)
            self.asker.know(self.setup_classes)

    def rewritten(self, text: Text) -> CodeType:
        tree = expected_first(text.tree, set(self.names.program), self.given["setup"])
        # a loop within the body of a class may not hold what the rewriting makes
        with contextlib.suppress(SyntaxError):
            return compile(tree, "<tests>", "exec", dont_inherit=True) if tree else text.code
        return text.code

    def load(self) -> str:
        """Have the program loaded; why that failed, "" if it did not."""
        try:
            answer = wire.receive(self.candidate)
            if answer.get("loaded") is not True:
                name, text = answer["raised"][:2]
                return f"{str(name)[:80]}: {str(text)[:LONGEST]}"
            names = self.names.program
            if all(name in answer["missing"] for name in names):
                return f"NameError: {', '.join(names)} is not defined"[:LONGEST]
            self.asker.define(names, self.names.classes, self.caught)
        except (EOFError, OSError):
            return "CandidateError: the candidate ended while it was loaded"
        except Exception as error:
            return "{}: {}".format(*describe(error))
        return ""

    def run(self) -> dict[str, Any]:
        """The verdict, with the program loaded."""
        if setup := self.setup:
            fault = self.failure(lambda: _execute(setup, self.namespace))
            self.asker.place(self.names.program)
            self.asker.know(self.setup_classes)
            if self.asker.broken or fault:
                return self.found(fault)
        for part in self.parts:
            before = len(self.outcomes)
            fault = self.failure(lambda part=part: _execute(part, self.namespace))
            if self.asker.broken:
                break
            if fault or len(self.outcomes) == before:
                self.note(fault or None)
            if not fault and len(self.parts) == 1:
                self.total = 1  # it ran to its end: the asserts that it passed by are none of it
            if fault and not self.partial:
                break
        return self.found("")

    def found(self, fault: str) -> dict[str, Any]:
        if not self.asker.broken and not self.asker.asked:
            reason = next(filter(None, self.outcomes), "they pass without it")
            self.asker.broken = f"the tests never call the program: {reason}"
        if self.asker.broken:
            return {"broken": self.asker.broken}
        faults = [fault, *self.outcomes]
        return self.counted() | {"detail": next(filter(None, faults), "")[:LONGEST]}

    def counted(self) -> dict[str, Any]:
        passed = sum(outcome is None for outcome in self.outcomes)
        return {"passed": passed, "total": max(len(self.outcomes), self.total)}

    def note(self, outcome: str | None) -> None:
        self.outcomes.append(outcome)
        if self.partial:
            wire.send(self.verdict, self.counted() | {"so_far": True})

    def check(self, test: Callable[[], Any]) -> None:
        """What an assert became where each is counted."""
        self.note(self.failure(lambda: _assert(test())) or None)

    def failure(self, test: Callable[[], Any]) -> str:
        """Why a test failed, "" if it passed. What the tests lack themselves is noted apart."""
        try:
            test()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return "the candidate ended"
        except BaseException as error:
            name, text = type(error).__name__[:80], describe(error)[1]
            reason = f"{name}: {text}" if text else name
            if isinstance(error, ImportError) and error is not self.asker.raised:
                self.asker.broken = self.asker.broken or reason
            return reason
        return ""


def _assert(truth: Any) -> None:
    assert truth


def run_script(control: socket.socket, stdin: socket.socket, stdout: socket.socket) -> int:
    """Run a whole program with its standard input and output on two sockets; its exit code."""
    wire.send(control, {"confined": True})  # before any text runs: nothing can forge it
    source = wire.receive(control)
    atexit._clear()  # type: ignore[attr-defined]  # what this process's own modules have registered
    sys.argv = ["main.py"]
    os.dup2(stdin.fileno(), 0)
    os.dup2(stdout.fileno(), 1)
    for channel in (control, stdin, stdout):
        channel.close()  # the last end of standard output is now the program's own
    namespace = _module("__main__")
    code = 0
    try:
        _run(source, "<completion>", namespace)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except MemoryError:
        code = 77
    except BaseException:
        code = 1
    try:  # as an ordinary exit does: threads, then exit handlers, then what is still to be written
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()  # type: ignore[attr-defined]
        for stream in (sys.stdout, sys.__stdout__):
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
    except BaseException:
        code = code or 1
    return code
