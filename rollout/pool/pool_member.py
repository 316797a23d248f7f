"""One engine of a pool, to be asked alone; it, too, is replaced when it is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo.errors import EngineError
from grpo.types import Ack, Completion, Engine, InFlight, Metrics, Request, Version

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PoolMember:
    """An `Engine` that has its pool do everything, with one worker.

    `enqueue` queues requests for the worker alone. `ask` gives the worker's answer to a method in a
    list, which is empty where it was lost meanwhile.
    """

    name: str
    pool: Engine
    enqueue: Callable[[Sequence[Request]], None]
    ask: Callable[[str], list[Any]]

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests for this worker alone."""
        self.enqueue(requests)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """As the pool's."""
        return self.pool.poll(timeout)

    def cancel(self, uids: Sequence[str]) -> None:
        """As the pool's."""
        self.pool.cancel(uids)

    def load_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        version: Version,
        in_flight: InFlight = "finish",
    ) -> Ack:
        """Refused: the workers of a pool have the same weights. Raises EngineError."""
        raise EngineError(f"load weights into the pool, not into {self.name} alone")

    def take_metrics(self) -> Metrics:
        """The worker's own, which the pool then no longer counts."""
        found = self.ask("take_metrics")
        return found[0] if found else {}

    def sleep(self) -> None:
        """Put this worker to sleep."""
        self.ask("sleep")

    def wake(self) -> None:
        """Wake this worker."""
        self.ask("wake")

    def close(self) -> None:
        """Nothing: workers close with their pool."""
