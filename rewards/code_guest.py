"""What runs inside the sandbox for `code`: the candidate, the tests, or a stdio program.

The candidate lives alone in its process. It never sees tests, expected values or the channel of
the verdict; it is asked to call what it defined and answers with plain data (`wire`). The tests
run in a second process and reach the candidate through stubs (`remote`). This is the only file of
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
from typing import Any, cast

from grpo.code_rows import definitions
from grpo.rewards import prelude, raising, wire
from grpo.rewards.asking import Asker, TestsError
from grpo.rewards.classes import Classes
from grpo.rewards.names import Names, Text, classes_of, names_under_test, read_text
from grpo.rewards.raising import LONGEST, PASSED_ON, describe
from grpo.rewards.readings import SOLE
from grpo.rewards.remote import OPERATIONS
from grpo.rewards.rewrites import counted_asserts, expected_first
from grpo.rewards.unjudged import asks_for_classes, beyond_reach, libraries

def _run(source: str, name: str, namespace: dict[str, Any]) -> None:
    _execute(compile(source, name, "exec", dont_inherit=True), namespace)


def _execute(program: CodeType, namespace: dict[str, Any]) -> None:
    exec(program, namespace)  # noqa: S102  (the one place, and only inside the sandbox)


def _module(name: str) -> dict[str, Any]:
    """The namespace of a new module that is found under its name, as pickle and dataclasses do."""
    module = sys.modules[name] = types.ModuleType(name)
    vars(module)["__builtins__"] = builtins
    return vars(module)


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
        _answer(channel, {"raised": _raised(error)})
        return
    if SOLE in names:
        namespace |= sole_function(before, namespace)
    _answer(channel, {"loaded": True, "missing": [n for n in names if n not in namespace]})
    program = Program(namespace, Classes(namespace, told["classes"]))
    while True:
        request = wire.receive(channel)
        _answer(channel, program.answer(request))


def sole_function(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The only function that a program defines, as SOLE; nothing if there is none, or several.

    With LeetCode's class it is the only method that has a name of its own there.
    """
    made = [name for name, value in after.items() if before.get(name) is not value]
    own = [after[name] for name in made if getattr(after[name], "__module__", "") == "candidate"]
    functions = [value for value in own if callable(value) and not isinstance(value, type)]
    solution = after.get("Solution")
    if isinstance(solution, type):
        methods = [name for name in vars(solution) if name[0] != "_"]
        methods = [n for n in methods if isinstance(getattr(solution, n), types.FunctionType)]
        functions = [getattr(solution(), name) for name in methods]
    return {SOLE: functions[0]} if len(functions) == 1 else {}


def _answer(channel: socket.socket, answer: dict[str, Any]) -> None:
    try:
        wire.send(channel, answer)
    except wire.WireError as error:
        wire.send(channel, {"raised": _raised(ValueError(str(error)))})


def _raised(error: BaseException, known: Classes | None = None) -> list[Any]:
    """An exception as `raising.taken` has it, without what is not plain data."""
    return raising.taken(error, lambda value: wire.pack(value, None, None, known or Classes({})))


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


class Program:
    """The candidate's side of `remote`: its names, and the objects that the tests know of."""

    def __init__(self, namespace: dict[str, Any], known: Classes) -> None:
        self.namespace = namespace
        self.known = known
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.origins: dict[int, tuple[wire.Shared, int]] = {}  # what a call's arguments share
        self.loop: Any = None  # in which its coroutines run

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked. Never raises what the program raises."""
        shared = wire.Shared()
        arguments: Any = None
        root: Any = request["target"][0] if "target" in request else None
        if request["do"] in ("next", "iter", "anext", "await", "self") and root in self.origins:
            origin, count = self.origins[root]
            shared = origin.first(count)
        try:
            if "arguments" in request:
                packed = request["arguments"]
                arguments = wire.unpack(
                    packed, self.resolve, self.known, shared, self.namespace
                )
        except BaseException as error:
            return {"raised": _raised(error)}
        count, before = len(shared.objects), shared.contents()

        def opaque(value: Any) -> list[Any]:
            return self.register(value, shared, count)

        answer: dict[str, Any] = {}
        try:
            result = self.perform(request, arguments)
            if request["do"] == "get" and callable(result):
                return {"callable": True}
            if changed := wire.pack_changes(before, opaque, shared, self.known):
                answer["changed"] = changed
            kept = request.get("keep") and _stays(result)
            answer["returned"] = (
                {"o": opaque(result)} if kept else wire.pack(result, opaque, shared, self.known)
            )
        except BaseException as error:
            if request["do"] in ("next", "anext") and (
                isinstance(error, StopIteration | StopAsyncIteration)
            ):
                return {"stopped": True}
            answer.pop("returned", None)
            answer["raised"] = _raised(error, self.known)
            with contextlib.suppress(BaseException):
                if "changed" not in answer:
                    answer["changed"] = wire.pack_changes(before, opaque, shared, self.known)
        return answer

    def perform(self, request: dict[str, Any], arguments: Any) -> Any:
        match request["do"]:
            case "call":
                args, kwargs = arguments
                return self.find(request["target"])(*args, **kwargs)
            case "get":
                return getattr(self.find(request["target"]), request["name"])
            case "apply":
                return OPERATIONS[request["name"]](*arguments)
            case "next":
                return next(self.find(request["target"]))
            case "iter":
                return iter(self.find(request["target"]))
            case "self":
                return self.find(request["target"])
            case "await":
                return self.awaited(self.find(request["target"]))
            case "anext":
                return self.awaited(anext(self.find(request["target"])))
            case _:
                return [_bases_of(self.namespace.get(name)) for name in request["names"]]

    def awaited(self, coroutine: Any) -> Any:
        """What a coroutine gives, all of them in one loop: a lock belongs to the loop it met."""
        import asyncio

        async def step() -> Any:
            return await coroutine

        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        return self.loop.run_until_complete(step())

    def find(self, target: list[Any]) -> Any:
        root, *path = target
        if isinstance(root, int):
            found = self.objects[root]
        elif root in self.namespace:
            found = self.namespace[root]
        else:
            raise NameError(f"name {root!r} is not defined")
        for name in path:
            found = getattr(found, name)
        return found

    def resolve(self, body: Any) -> Any:
        """What a test gave: something of the program's, or a function of the library."""
        if isinstance(body, list):
            return self.find(cast("list[Any]", body))
        found: Any = importlib.import_module(body["module"])
        for name in body["name"].split("."):
            found = getattr(found, name)
        return found

    def register(self, value: Any, shared: wire.Shared, count: int) -> list[Any]:
        """[number, kind, class] of an object that stays here."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        number = self.numbers[id(value)]
        self.origins.setdefault(number, (shared, count))
        kind = cast("type[Any]", type(value))
        label = f"{kind.__module__}:{kind.__qualname__}"[:LONGEST]
        return [number, "coroutine" if isinstance(value, types.CoroutineType) else "", label]


def _stays(value: Any) -> bool:
    """Whether what a class made stays here although it is plain data: a container with members.

    LeetCode's nodes and what is made from a number or text cross as what they are.
    """
    kind = cast("type[Any]", type(value))
    if kind.__module__ != "candidate" or kind.__name__ in ("ListNode", "TreeNode"):
        return False
    return not isinstance(value, int | float | complex | str | bytes)


def _bases_of(value: Any) -> list[str] | None:
    """Names of an exception's classes up to Python's own; None for other classes."""
    if not isinstance(value, type) or not issubclass(value, Exception):
        return None
    names: list[str] = []
    for base in value.__mro__[1:20]:
        names.append(base.__name__[:80])
        if base.__module__ == "builtins" and base.__name__ in PASSED_ON:
            break
    return names


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
        if self.names.classes and asks_for_classes(sources, self.names.classes):
            raise TestsError("the tests look at a class of the program's, which stays there")
        every = "\n".join(sources)
        # an end of iteration would also end a loop over `map(candidate, …)`, and pass it
        ends = raising.ON_REQUEST if "map(" not in every else raising.EXITS
        self.asker.on_request = frozenset(name for name in ends if name in every)
        if "import" in every:
            self.asker.libraries = libraries(text.tree for text in (setup, *texts))
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
            self.asker.define(names, self.names.classes)
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
            if isinstance(error, ImportError):  # the program's never come through as one
                self.asker.broken = self.asker.broken or reason
            return reason
        return ""


def _assert(truth: Any) -> None:
    assert truth


def run_script(control: socket.socket, stdin: socket.socket, stdout: socket.socket) -> int:
    """Run a whole program with its standard input and output on two sockets; its exit code."""
    wire.send(control, {"confined": True})  # before any text runs: nothing can forge it
    source = wire.receive(control)
    atexit._clear()  # what this process's own modules have registered
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
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.__stdout__):
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
    except BaseException:
        code = code or 1
    return code
