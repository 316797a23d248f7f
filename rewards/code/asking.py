"""The tests' end of the channel to the program: requests, and what comes back made again.

Requests are {"do": "call" | "get" | "apply" | "next" | "iter" | "await" | "self" | "kinds", …}. An
answer is {"returned", "changed"}, {"raised", "changed"}, {"callable"} or {"stopped"}. Whatever else
comes back is the program's fault: it raises here, in the test that asked.
"""

from __future__ import annotations

import importlib
import operator
import socket
import types
from collections.abc import Callable, Sequence
from typing import Any, cast

from grpo.rewards.code import raising
from grpo.rewards.code.classes import Classes
from grpo.rewards.code.plain import Shared, pack
from grpo.rewards.code.raising import LONGEST, PASSED_ON
from grpo.rewards.code.rebuild import unpack, unpack_changes
from grpo.rewards.code.stubs import CandidateError, Remote, label_of, target_of
from grpo.rewards.sandbox import wire

# Where matchers are from (`pytest.approx`): frameworks of tests, and the text of the tests itself.
_COMPARING = frozenset(["tests", "pytest", "_pytest", "hypothesis"])


class TestsError(Exception):
    """The tests themselves cannot be run."""


class Asker:
    """One end of the channel to the program, and what the tests know of the objects there."""

    def __init__(self, channel: socket.socket, namespace: dict[str, Any]) -> None:
        self.channel = channel
        self.namespace = namespace
        self.asked = 0  # requests the tests made: before the first, no failure is the program's
        self.broken = ""  # why the tests cannot be run
        self.raised: BaseException | None = None  # the last that was the program's doing
        self.known = Classes(namespace)  # classes that the program has, too
        self.made_by: frozenset[str] = frozenset()  # names of classes that the tests make
        self.made: dict[int, Remote] = {}  # by number: objects of classes that the tests make
        self.seen: dict[int, Remote] = {}  # the others, so that `is` means there what it says here
        self.origins: dict[int, tuple[Shared, int]] = {}  # what its call was given
        self.exceptions: dict[str, type[Any]] = {}  # classes of the program's own
        self.on_request: frozenset[str] = frozenset()  # control flow that the tests name
        self.libraries: Callable[[], frozenset[str]] = frozenset  # packages that the tests import

    def ask(
        self, request: dict[str, Any], shared: Shared, count: int = 0, made: bool = False
    ) -> Any:
        """What the program answers. The first `count` objects of `shared` take on its changes.

        made: an object that comes back is one of a class that the tests make.
        """
        self.asked += 1
        wire.send(self.channel, request)
        answer = wire.receive(self.channel)
        if not isinstance(answer, dict):
            raise CandidateError("malformed answer")
        answer = cast("dict[str, Any]", answer)

        def opaque(body: Any) -> Any:
            return self._object(body, shared, count, made)

        if "stopped" in answer and request["do"] in ("next", "anext"):
            raise StopIteration  # of any other request it would end a loop over `map(f, …)`
        if "callable" in answer and request["do"] == "get":
            return Remote(self, [*request["target"], request["name"]])
        changes = unpack_changes(answer.get("changed", []), count, opaque, self.known, shared)
        if "returned" in answer:
            value = unpack(answer["returned"], opaque, self.known, shared, self.exceptions)
            changes()
            return value
        changes()
        self.raised = self._error(answer.get("raised"))
        raise self.raised

    def define(
        self, names: Sequence[str], classes: Sequence[str], caught: Sequence[str] = ()
    ) -> None:
        """Put what the program defines under `names` into the tests' namespace.

        Its exceptions become classes of the tests' own where they are among `caught`, so that they
        can be. Of any other class nothing would be left to ask the program for.
        """
        self.made_by = frozenset(classes)
        bases: Any = self.ask({"do": "kinds", "names": [*caught]}, Shared()) if caught else []
        self.asked = 0
        if type(bases) is not list or len(cast("list[Any]", bases)) != len(caught):
            raise CandidateError("malformed answer")
        above = dict(zip(caught, cast("list[Any]", bases), strict=True))
        # a class comes after those that it is made from
        for name in sorted((n for n in above if above[n] is not None), key=lambda n: len(above[n])):
            known = (self.exceptions.get(base) or PASSED_ON.get(base) for base in above[name])
            parent: Any = next(filter(None, known), Exception)
            self.exceptions[name] = cast("type[Exception]", type(name, (parent,), {}))
        self.place(names)

    def place(self, names: Sequence[str]) -> None:
        """Put stubs for `names` into the tests' namespace, over whatever is there."""
        for name in names:
            self.namespace[name] = self.exceptions.get(name) or Remote(self, [name])

    def know(self, names: Sequence[str]) -> None:
        """Note the classes that the setup has put into the namespace under `names`."""
        self.known = Classes(self.namespace, names)
        for name in names:
            kind = self.namespace.get(name)
            if isinstance(kind, type) and issubclass(kind, Exception):
                self.exceptions.setdefault(name, kind)

    def _object(self, body: Any, shared: Shared, count: int, made: bool) -> Any:
        number, kind, label = body
        if type(number) is not int or number < 0 or type(label) is not str:
            raise CandidateError("malformed answer")
        self.origins.setdefault(number, (shared, count))
        if kind == "coroutine":
            return self._awaited(number)
        if made and number not in self.made:
            self.made[number] = Remote(self, [number], made=True, label=label)
        # not `or`: an object that was made has a truth value of the program's
        if number in self.made:
            return self.made[number]
        if number not in self.seen:
            self.seen[number] = Remote(self, [number], label=label)
        return self.seen[number]

    async def _awaited(self, number: int) -> Any:
        return self.go_on("await", [number])

    def go_on(self, do: str, target: list[Any]) -> Any:
        """Go on with what a call began: the call's arguments may change once more."""
        origin, count = self.origins.get(target[0], (Shared(), 0))
        return self.ask({"do": do, "target": target}, origin.first(count), count)

    def _error(self, raised: Any) -> BaseException:
        """The exception to raise for what the program says that it raised."""
        try:

            def part_of(packed: Any) -> Any:
                return unpack(packed, self._lost, self.known, None, self.exceptions)

            found = raising.made(raised, self.exceptions, part_of, self.on_request)
            name, text = (str(part)[:LONGEST] for part in raised[:2])
            return found or CandidateError(f"{name}: {text}")
        except (TypeError, ValueError, LookupError, AttributeError, wire.WireError) as error:
            raise CandidateError("malformed answer") from error

    def _lost(self, body: Any) -> Any:
        raise wire.WireError("an exception holds what is not plain data")

    def packed(self, values: Any, shared: Shared) -> Any:
        """What a test gives, as plain data."""
        try:
            return pack(values, self.own_object, shared, self.known)
        except wire.WireError as error:
            if not self.asked:  # nothing of the program's is in it
                self.broken = f"a test passes what cannot be sent: {error}"
            raise

    def own_object(self, value: Any) -> Any:
        """How a test names to the program what is not plain data."""
        if isinstance(value, Remote):
            return target_of(value)
        if isinstance(value, types.CoroutineType):
            raise CandidateError("the candidate's coroutine cannot be given back")
        library = _library_name(value)
        if library is None:
            self.refuse(f"a test passes a {type(value).__name__}, which is not plain data")
        return library

    def refuse(self, reason: str) -> None:
        """Raises TestsError, and has the whole row unscored."""
        self.broken = self.broken or reason
        raise TestsError(self.broken)

    def beyond(self, value: Any) -> None:
        """Raises TestsError if a value of the program's is one that no program could bring across.

        That is an object of an installed package which the tests themselves import. Nobody's
        answer to such a row can be judged.
        """
        module, _, name = label_of(value).partition(":")
        if module.partition(".")[0] in self.libraries():
            self.refuse(f"the program returns a {name[:80]} of {module[:80]}, "
                        "which cannot be brought to the tests")  # fmt: skip

    def comparable(self, value: Any) -> None:
        """Raises TestsError if what a test expects is nothing that a program can return.

        An object that was made to be compared stands for plain data, which a program can.
        """
        kind = cast("type[Any]", type(value))
        matcher = kind.__module__.partition(".")[0] in _COMPARING
        if matcher and kind.__name__ not in self.known.names:
            return
        try:
            pack(value, None, None, self.known)
        except wire.WireError:
            self.refuse(f"a test expects a {type(value).__name__}, which is not plain data")


def _library_name(value: Any) -> dict[str, str] | None:
    """Where the program's process finds a function of the standard library."""
    holder = getattr(value, "__objclass__", value)  # str.upper, list.append
    module, name = getattr(holder, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module in ("tests", "__main__"):
        return None
    try:
        found = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return None
    return {"module": module, "name": name} if found is value else None
