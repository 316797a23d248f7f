"""The program's side of `asking`: what it defined, and the objects that the tests know of.

It answers one request after another, whatever the program does; nothing here runs text.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from typing import Any, cast

from grpo.rewards.code import raising
from grpo.rewards.code.classes import Classes
from grpo.rewards.code.plain import Shared, pack, pack_changes
from grpo.rewards.code.raising import LONGEST, PASSED_ON
from grpo.rewards.code.readings import SOLE
from grpo.rewards.code.rebuild import unpack
from grpo.rewards.code.stubs import OPERATIONS


def raised(error: BaseException, known: Classes | None = None) -> list[Any]:
    """An exception as `raising.taken` has it, without what is not plain data."""
    return raising.taken(error, lambda value: pack(value, None, None, known or Classes({})))


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


class Program:
    """The candidate's side of `stubs`: its names, and the objects that the tests know of."""

    def __init__(self, namespace: dict[str, Any], known: Classes) -> None:
        self.namespace = namespace
        self.known = known
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.origins: dict[int, tuple[Shared, int]] = {}  # what a call's arguments share
        self.loop: Any = None  # in which its coroutines run

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked. Never raises what the program raises."""
        shared = Shared()
        arguments: Any = None
        root: Any = request["target"][0] if "target" in request else None
        if request["do"] in ("next", "iter", "anext", "await", "self") and root in self.origins:
            origin, count = self.origins[root]
            shared = origin.first(count)
        try:
            if "arguments" in request:
                packed = request["arguments"]
                arguments = unpack(packed, self.resolve, self.known, shared, self.namespace)
        except BaseException as error:
            return {"raised": raised(error)}
        count, before = len(shared.objects), shared.contents()

        def opaque(value: Any) -> list[Any]:
            return self.register(value, shared, count)

        answer: dict[str, Any] = {}
        try:
            result = self.perform(request, arguments)
            if request["do"] == "get" and callable(result):
                return {"callable": True}
            if changed := pack_changes(before, opaque, shared, self.known):
                answer["changed"] = changed
            kept = request.get("keep") and _stays(result)
            packed = {"o": opaque(result)} if kept else pack(result, opaque, shared, self.known)
            answer["returned"] = packed
        except BaseException as error:
            ends = isinstance(error, StopIteration | StopAsyncIteration)
            if ends and request["do"] in ("next", "anext"):
                return {"stopped": True}
            answer.pop("returned", None)
            answer["raised"] = raised(error, self.known)
            with contextlib.suppress(BaseException):
                if "changed" not in answer:
                    answer["changed"] = pack_changes(before, opaque, shared, self.known)
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

    def register(self, value: Any, shared: Shared, count: int) -> list[Any]:
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
    """Whether an object that a class of the program's made stays here although it is plain data.

    A container with methods of its own does. LeetCode's nodes, numbers and text cross.
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
