"""An engine that samples nothing: it plays completions from a script, for tests of what uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo.rollout.base import LocalEngine
from grpo.rollout.texts import completion_text
from grpo.types import Ack, Completion, Request, Segment, Version

if TYPE_CHECKING:
    from torch import Tensor

Script = Callable[[Request, int], str | Sequence[int]]


class FakeEngine(LocalEngine):
    """An `Engine` whose completion of sample `index` of a request is `script(request, index)`.

    FakeEngine(lambda request, index: "<answer>4</answer>", tokenizer, version=version)

    The script gives text (the tokenizer's `encode` makes the ids, and the request's first eos id
    is appended) or token ids as they are. More than `max_tokens` ids are cut (finish "length").
    Every token has log-prob `logprob`. `batch` completions are handed out per poll, last submitted
    first if `reverse`. `versions` lists every version ever loaded, the initial one first;
    `canary` is what `load_weights` acknowledges.
    """

    def __init__(
        self,
        script: Script,
        tokenizer: Any,
        *,
        version: Version,
        batch: int = 1,
        reverse: bool = False,
        logprob: float = -1.0,
        canary: float = 0.0,
    ) -> None:
        super().__init__(version)
        self.script = script
        self.tokenizer = tokenizer
        self.versions = [version]
        self.requests: list[Request] = []
        self.asleep = False
        self._batch = batch
        self._reverse = reverse
        self._logprob = logprob
        self._canary = canary

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, and remember them in `requests`."""
        super().submit(requests)
        self.requests += requests

    def sleep(self) -> None:
        """Remember that it sleeps (`asleep`)."""
        self.asleep = True

    def wake(self) -> None:
        """Undo `sleep`."""
        self.asleep = False

    def _advance(self, end: float | None) -> None:
        """Play the next `batch` samples."""
        self._expire()
        for _ in range(self._batch):
            if not self._queue:
                break
            job = self._queue[-1 if self._reverse else 0]
            index = job.waiting.pop() if self._reverse else job.waiting.popleft()
            if not job.waiting:
                self._queue.remove(job)
            self._done.append(self._completion(job.request, index))

    def _completion(self, request: Request, index: int) -> Completion:
        sampling = request.sampling
        played = self.script(request, index)
        if isinstance(played, str):
            ids = [*self.tokenizer.encode(played, add_special_tokens=False), *sampling.eos_ids[:1]]
        else:
            ids = list(played)
        cut = len(ids) > sampling.max_tokens
        array = np.array(ids[: sampling.max_tokens], dtype=np.int64)
        logprobs = np.full(len(array), self._logprob, dtype=np.float32)
        return Completion(
            request=request.uid,
            index=index,
            segments=(Segment(ids=array, version=self.versions[-1], logprobs=logprobs),),
            text=completion_text(self.tokenizer, array.tolist(), sampling.eos_ids),
            finish="length" if cut else "stop",
        )

    def _load(self, weights: Iterable[tuple[str, Tensor]], version: Version) -> Ack:
        """Count the tensors; completions given out from now on carry `version`."""
        tensors = sum(1 for _ in weights)
        self.versions.append(version)
        return Ack(version=version, tensors=tensors, canary=self._canary)
