"""What runs inside the sandbox for `code`: the candidate, the tests, or a stdio program.

The candidate lives alone in its process. It never sees tests, expected values or the channel of
the verdict; it is asked to call what it defined and answers with plain data (`wire`). The tests
run in a second process and reach the candidate through stubs. This is the only file of the
project that executes text, and it does so only after `zygote.confine`.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, cast

from grpo.rewards import wire

# LeetCode-style code expects these without importing them; the classes are LeetCode's own.
PRELUDE = """
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import inf
from typing import *
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def is_same_list(a, b):
    while a and b and a.val == b.val:
        a, b = a.next, b.next
    return a is None and b is None
def tree_node(values):
    if not values:
        return None
    root = TreeNode(values[0])
    waiting, rest = [root], iter(values[1:])
    for node in waiting:
        for side in ("left", "right"):
            value = next(rest, None)
            if value is not None:
                child = TreeNode(value)
                setattr(node, side, child)
                waiting.append(child)
    return root
def is_same_tree(a, b):
    waiting = [(a, b)]
    for a, b in waiting:
        if a is None or b is None:
            if a is not b:
                return False
        elif a.val != b.val:
            return False
        else:
            waiting += [(a.left, b.left), (a.right, b.right)]
    return True
"""
# Exceptions a candidate may raise in the tests. Control flow (StopIteration would end a loop over
# `map(candidate, …)` early, and pass it) and exits are not among them.
_EXCEPTIONS = """
ArithmeticError AssertionError AttributeError BufferError EOFError IndexError KeyError LookupError
MemoryError NameError NotImplementedError OSError OverflowError RecursionError RuntimeError
TypeError UnicodeError ValueError ZeroDivisionError
"""
_PASSED_ON = frozenset(_EXCEPTIONS.split())


def _describe(error: BaseException) -> tuple[str, str]:
    name = type(error).__name__
    for base in type(error).__mro__:
        if base.__name__ in _PASSED_ON and getattr(builtins, base.__name__, None) is base:
            name = base.__name__
            break
    try:
        text = str.__str__(str(error))[:200]
    except BaseException:
        text = ""
    return name, text


def _run(source: str, name: str, namespace: dict[str, Any]) -> None:
    _execute(compile(source, name, "exec", dont_inherit=True), namespace)


def _execute(program: CodeType, namespace: dict[str, Any]) -> None:
    exec(program, namespace)  # noqa: S102  (the one place, and only inside the sandbox)


def serve_candidate(channel: socket.socket) -> None:
    """Load the code, then answer calls until the channel closes."""
    wire.send(channel, {"confined": True})  # before any text runs: nothing can forge it
    given = wire.receive(channel)
    namespace: dict[str, Any] = {"__name__": "candidate", "__builtins__": builtins}
    objects: list[Any] = []
    try:
        _run(PRELUDE, "<prelude>", namespace)
        with contextlib.suppress(Exception):  # the tests' process reports a broken setup
            _run(given["setup"], "<setup>", namespace)
        if given["entry"]:
            namespace.pop(given["entry"], None)  # a setup may hold the function without its body
        _run(given["code"], "<completion>", namespace)
    except BaseException as error:
        wire.send(channel, {"raised": _describe(error)})
        return
    wire.send(channel, {"loaded": True})

    def opaque(value: Any) -> list[Any]:
        objects.append(value)
        return [len(objects) - 1, type(value).__name__[:80], hasattr(value, "__next__")]

    while True:
        request = wire.receive(channel)
        try:
            target: Any = _find(namespace, objects, request["target"])
            if request["do"] == "next":
                result = next(target)
            else:
                args, kwargs = wire.unpack(request["arguments"], objects.__getitem__, namespace)
                result = target(*args, **kwargs)
            answer = {"returned": wire.pack(result, opaque)}
        except BaseException as error:
            stopped = request["do"] == "next" and isinstance(error, StopIteration)
            answer = {"stopped": True} if stopped else {"raised": _describe(error)}
        try:
            wire.send(channel, answer)
        except wire.WireError as error:
            wire.send(channel, {"raised": ("ValueError", str(error))})


def _find(namespace: dict[str, Any], objects: list[Any], target: list[Any]) -> Any:
    root, *path = target
    found = objects[root] if isinstance(root, int) else namespace.get(root, _Missing)
    if found is _Missing:
        raise NameError(f"name {root!r} is not defined")
    for name in path:
        found = getattr(found, name)
    return found


class _Missing:
    """No such name in the candidate."""


class CandidateError(Exception):
    """The candidate ended, broke the protocol, or raised something that tests must not catch."""


class Remote:
    """The tests' view of something in the candidate: it can be called, and iterated if it is an
    iterator. It has no truth value, equals nothing and compares with nothing: all of these raise.

    `methods` may be called on names (`Solution`, a module) and on what a class (a capitalised
    name) made, not on what a function returned: that has to be plain data.
    """

    def __init__(
        self, ask: Callable[[dict[str, Any]], Any], target: list[Any], methods: bool = False
    ) -> None:
        self.__dict__["_Remote__ask"] = ask
        self.__dict__["_Remote__target"] = target
        self.__dict__["_Remote__methods"] = methods

    def __getattr__(self, name: str) -> Remote:
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.__methods:
            self.__refuse()
        return Remote(self.__ask, [*self.__target, name])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        packed = wire.pack((args, kwargs), _own_object)
        return self.__ask({"do": "call", "target": self.__target, "arguments": packed})

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                item = self.__ask({"do": "next", "target": self.__target})
            except StopIteration:
                return
            yield item

    def __refuse(self, *_: Any) -> Any:
        raise CandidateError("the candidate returned something that is not plain data")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __refuse
    __bool__ = __hash__ = __contains__ = __refuse  # type: ignore[assignment]


def _own_object(value: Any) -> Any:
    if isinstance(value, Remote):
        return value.__dict__["_Remote__target"][0]
    raise TestsError(f"a test passes a {type(value).__name__}, which is not plain data")


class TestsError(Exception):
    """The tests themselves cannot be run."""


def _asker(channel: socket.socket, namespace: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """A function that has the candidate do something and returns plain data."""

    def ask(request: dict[str, Any]) -> Any:
        wire.send(channel, request)
        answer = wire.receive(channel)
        if not isinstance(answer, dict):
            raise CandidateError("malformed answer")
        answer = cast("dict[str, Any]", answer)
        if "returned" in answer:
            root, *path = request["target"]
            made = isinstance(root, str) and not path and root[:1].isupper()
            return wire.unpack(answer["returned"], instance if made else remote, namespace)
        if "stopped" in answer:
            if request["do"] == "next":
                raise StopIteration
            raise CandidateError("malformed answer")
        try:
            name, text = map(str, answer["raised"])
        except (LookupError, TypeError, ValueError) as error:
            raise CandidateError("malformed answer") from error
        if name in _PASSED_ON:
            raise getattr(builtins, name)(text)
        raise CandidateError(f"{name}: {text}")

    def remote(body: Any) -> Remote:
        return Remote(ask, [int(body[0])])

    def instance(body: Any) -> Remote:
        return Remote(ask, [int(body[0])], methods=True)

    return ask


def run_tests(verdict: socket.socket, candidate: socket.socket) -> None:
    """Run a row's tests against the candidate; answer {"passed", "total", "detail"} or {"broken"}.

    `passed` counts asserts where the row lists them or `partial` is set, else it is 0 or 1.
    """
    given = wire.receive(verdict)
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    ask = _asker(candidate, namespace)
    try:
        _run(PRELUDE, "<prelude>", namespace)
        _run(given["setup"], "<setup>", namespace)
        parts = [ast.parse(source) for source in given["parts"]]
        for name in {name for part in parts for name in _free_names(part)}:
            if name not in namespace and not hasattr(builtins, name):
                namespace[name] = Remote(ask, [name], methods=True)
        if given["entry"]:
            namespace[given["entry"]] = Remote(ask, [given["entry"]])
    except BaseException as error:
        wire.send(verdict, {"broken": "{}: {}".format(*_describe(error))})
        return
    outcomes: list[str | None] = []  # None: passed; else why not
    first = wire.receive(candidate)
    if "confined" not in first:
        wire.send(verdict, {"unconfined": str(first)[:200]})
        return
    try:
        loaded = wire.receive(candidate)
        error = None if loaded == {"loaded": True} else loaded["raised"]
        error = error and (str(error[0]), str(error[1]))
    except (EOFError, OSError, wire.WireError, LookupError, TypeError):
        error = ("CandidateError", "the candidate ended while it was loaded")
    if error:
        failed = {"passed": 0, "total": max(1, len(parts)), "detail": f"{error[0]}: {error[1]}"}
        wire.send(verdict, failed)
        return

    def check(test: Callable[[], Any]) -> None:
        outcomes.append(_failure(lambda: _assert(test())))

    namespace["__check__"] = check
    broken = None
    for part in parts:
        if given["partial"] and len(parts) == 1:
            part = ast.fix_missing_locations(_CountAsserts().visit(part))
        code = compile(part, "<tests>", "exec", dont_inherit=True)
        before = len(outcomes)
        try:
            fault = _failure(lambda code=code: _execute(code, namespace))
        except TestsError as error:
            broken = str(error)
            break
        if fault or len(outcomes) == before:
            outcomes.append(fault)
        if fault and not given["partial"]:
            break
    if broken is not None:
        wire.send(verdict, {"broken": broken})
        return
    faults = [fault for fault in outcomes if fault]
    total = max(len(outcomes), len(parts))
    detail = faults[0] if faults else ""
    wire.send(verdict, {"passed": total - len(faults), "total": total, "detail": detail})


def _assert(truth: Any) -> None:
    assert truth


def _failure(test: Callable[[], Any]) -> str | None:
    try:
        test()
    except TestsError:
        raise
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return "the candidate ended"
    except BaseException as error:
        name = type(error).__name__
        return f"{name}: {_describe(error)[1]}" if str(error) else name
    return None


class _CountAsserts(ast.NodeTransformer):
    """`assert x` becomes `__check__(lambda: x)`, so that one failure does not hide the others."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        arguments = ast.arguments(
            posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[]
        )
        test = ast.Lambda(args=arguments, body=node.test)
        call = ast.Call(ast.Name("__check__", ast.Load()), args=[test], keywords=[])
        return ast.copy_location(ast.Expr(call), node)


def _free_names(tree: ast.AST) -> set[str]:
    """Names that the tests read and nothing in them defines."""
    read: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.arg(arg=name):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add((other or name).partition(".")[0])
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case _:
                pass
    return read - bound


def run_script(control: socket.socket, stdin: socket.socket, stdout: socket.socket) -> int:
    """Run a whole program with its standard input and output on two sockets; its exit code."""
    source = wire.receive(control)
    os.dup2(stdin.fileno(), 0)
    os.dup2(stdout.fileno(), 1)
    for channel in (control, stdin, stdout):
        channel.close()  # the last end of standard output is now the program's own
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    code = 0
    try:
        _run(source, "<completion>", namespace)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except MemoryError:
        code = 77
    except BaseException:
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads as an ordinary exit does
        sys.stdout.flush()
    except BaseException:
        code = code or 1
    return code
