"""What a pool of engines keeps of each worker and of each request."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo.types import Ack, Request


class Worker(Protocol):
    """An engine elsewhere, carrying out the calls made to it one after another."""

    name: str  # in messages, say "ray worker 1 (torch)"

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Begin a call; returns at once. The future raises what the engine raised.

        Methods are the engine's own, and `start`, which makes the engine and is called first.
        `load_weights` gets what `publish` made of the weights, the version and `in_flight`.
        """
        ...

    def kill(self) -> None:
        """End it, whatever it is doing; returns at once."""
        ...


@dataclass(kw_only=True, eq=False)
class Ticket:
    """A request that is not finished, and who has it."""

    request: Request
    seat: int | None  # the only worker that may serve it; None: any
    cost: float  # expected tokens of one sample, prompt included
    missing: set[int]
    wire: str = ""  # the id of its latest issue
    failures: int = 0


@dataclass(kw_only=True, frozen=True)
class PendingCall:
    method: str
    begun: float
    detail: Any = None


@dataclass(kw_only=True, eq=False)
class Seat:
    """A worker's place; its occupant changes when it is replaced."""

    index: int
    worker: Worker
    first: bool = True  # its first engine is still being made
    up: bool = False
    ack: Ack | None = None  # of the weights it now has, None before any were loaded
    loaded: int = 0  # the publication they came with, 0 before any
    failures: int = 0  # without a completion in between
    refusals: int = 0  # failures to load the weights published last
    empty_polls: int = 0
    completions: int = 0
    owed: dict[str, Ticket] = field(default_factory=dict)  # by wire id
    calls: dict[Future[Any], PendingCall] = field(default_factory=dict)

    @property
    def load(self) -> float:
        return sum(ticket.cost * len(ticket.missing) for ticket in self.owed.values())

    def has_room(self, samples: int, window: int) -> bool:
        held = sum(len(ticket.missing) for ticket in self.owed.values())
        return not held or held + samples <= window

    def waits_for(self, method: str) -> bool:
        return any(call.method == method for call in self.calls.values())
