"""The embedded engine: continuous batching on plain torch, for any Hugging Face causal LM.

Everything happens inside `poll`, on the caller's thread: admit waiting samples into free rows
(their prompt is read once and its keys and values copied), decode one token for every row, retire
the rows that ended. Rows in use always form a dense prefix of the cache.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grpo.errors import EngineError
from grpo.model import pretrained
from grpo.model.adapter import add_adapter
from grpo.model.canary import canary_logprob
from grpo.model.filters import Plan, make_plan
from grpo.model.quantize import round_base
from grpo.model.transfer import to_host
from grpo.rollout.base import LocalEngine
from grpo.rollout.embedded.decoder import make_decoder
from grpo.rollout.embedded.engine_weights import (
    copy_weights,
    own_weights,
    private_copy,
    resident_hash,
)
from grpo.rollout.embedded.rows import RunningRows
from grpo.rollout.embedded.sampling import sample, uniforms, workspace
from grpo.rollout.embedded.ways import ways_on
from grpo.rollout.samples import Job, Sample, put_back
from grpo.rollout.settings import TorchSettings
from grpo.rollout.texts import completion_text, cut
from grpo.types import Ack, EngineSpec, FinishReason, InFlight, LoraSpec, Version

_STOP_MARGIN = 8  # tokens decoded beyond the stop string's bytes: some tokens have no text


class TorchEngine(LocalEngine):
    """An `Engine` over its own copy of `model`.

    `max_rows` completions are decoded at a time. `dtype` (a torch dtype or its name) is what the
    copy is cast to; None keeps the model's. With `share_storage` no copy is made of parameters
    already in that dtype: updating the model in place then updates the engine, and `load_weights`
    with the model's own tensors only confirms it. `packed` (default: where storage is not shared)
    keeps a second copy of the weights in the layout the CPU multiplies fastest, where model and
    machine allow it; only `load_weights` changes that one. `compile` decodes with the model's own
    code under torch.compile, for GPUs (minutes at the first step). `tokenizer` needs
    `decode(ids, skip_special_tokens=...)`. With `lora`, the copy gets that adapter, and
    `load_weights` takes its tensors alone.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        version: Version,
        max_rows: int = TorchSettings.max_rows,
        dtype: torch.dtype | str | None = None,
        share_storage: bool = False,
        packed: bool | None = None,
        compile: bool = TorchSettings.compile,
        lora: LoraSpec | None = None,
    ) -> None:
        if max_rows < 1:
            raise EngineError(f"max_rows must be at least 1, not {max_rows}")
        cast: torch.dtype | None = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.model = private_copy(model, cast, share_storage)
        if lora:
            add_adapter(self.model, lora)
            self.model.to(cast).requires_grad_(False)
        self._has_adapter = lora is not None
        self.tokenizer = tokenizer
        config: Any = self.model.config
        super().__init__(
            version,
            vocab_size=config.vocab_size,
            max_length=getattr(config, "max_position_embeddings", None),
        )
        self._ways = ways_on(next(self.model.parameters()).device)
        self._decoder = make_decoder(
            self.model,
            self._ways,
            packed=not share_storage if packed is None else packed,
            compiled=compile,
        )
        self._rows = RunningRows(max_rows)
        self._plan: Plan | None = None  # of all running rows; None once they change
        self._room: Tensor | None = None  # of `sample`

    @classmethod
    def from_spec(cls, spec: EngineSpec, settings: TorchSettings) -> TorchEngine:
        """The engine of `spec`, on the device accelerate gives this process."""
        from accelerate import PartialState

        dtype = getattr(torch, spec.dtype)
        if spec.threads:
            torch.set_num_threads(spec.threads)
        model = pretrained.load_model(spec.model, dtype)
        tokenizer = pretrained.tokenizer(spec.model)
        if spec.quantization == "nf4":
            round_base(model)
        nn.Module.to(model, PartialState().device)  # where accelerate puts the learner
        return cls(
            model,
            tokenizer,
            version=spec.version,
            max_rows=settings.max_rows,
            share_storage=True,  # with nobody: the model is the engine's alone
            packed=True,
            compile=settings.compile,
            lora=spec.lora,
        )

    # The Engine protocol

    def sleep(self) -> None:
        """Free the cache. Raises EngineError while completions are under way."""
        super().sleep()
        self._free()

    def close(self) -> None:
        """Drop requests, cache and model."""
        super().close()
        self._rows.truncate(0)
        self._free()
        self.model = nn.Module()

    # Weights

    def _settle(self, in_flight: InFlight) -> None:
        rows = self._rows
        while in_flight == "finish" and rows.count:
            self._step()
        # Rows that were given another sample in the last step have no token of it yet.
        fresh = np.flatnonzero(rows.made[: rows.count] == 0).tolist()
        put_back(self._queue, [rows.owners[row] for row in fresh])
        self._remove(fresh)
        # Waiting samples must have their prompt read again: it was read by other weights. They get
        # new jobs, as running rows of the old ones hold the stale prompt.
        old, self._queue = self._queue, deque()
        for job in old:
            self._queue.append(Job(request=job.request, waiting=deque(job.waiting)))
            job.waiting.clear()

    def _load(self, weights: Iterable[tuple[str, Tensor]], version: Version) -> Ack:
        """Copy `weights` in by name. The hash is that of what the module holds afterwards."""
        own = own_weights(self.model, self._has_adapter)
        dtypes = copy_weights(own, weights)
        self._decoder.refresh()
        self._rows.mark(version)
        with self._ways.forward():
            canary = canary_logprob(self.model)
        return Ack(
            version=Version(step=version.step, hash=resident_hash(own, dtypes)),
            tensors=len(dtypes),
            canary=canary,
        )

    def _free(self) -> None:
        self._decoder.free()
        self._room = None

    # Queue

    def _running(self) -> list[Sample]:
        return self._rows.owners

    def _drop(self, gone: set[str]) -> None:
        super()._drop(gone)
        owners = self._rows.owners
        rows = [r for r, owner in enumerate(owners) if owner.job.request.uid in gone]
        for row in rows:
            owners[row].job.waiting.clear()
        self._remove(rows)

    def _advance(self, end: float | None) -> None:
        """Expire, admit, decode one token for every row."""
        self._expire()
        if not (self._decoder.lockstep and self._rows.count):
            self._admit()
        self._step()

    def _expire(self) -> None:
        """Abort what is past its deadline, begun or not."""
        super()._expire()
        rows = np.flatnonzero(self._rows.deadline[: self._rows.count] < time.monotonic())
        self._finish({int(r): "abort" for r in rows})

    def _admit(self) -> None:
        """Start waiting samples in the free rows, oldest request first.

        The first sample of an unread request gets the row its prompt is read into; the others
        get copies of that row's prompt.
        """
        rows = self._rows
        unread: dict[int, Job] = {}
        copies: list[tuple[int, int, int]] = []  # from row, to row, tokens
        while self._queue and rows.count < rows.capacity:
            job = self._queue[0]
            homes = (r for r, owner in enumerate(rows.owners) if owner.job is job)
            home = None if job.first is None else next(homes, None)
            if home is None:
                home = rows.count
                unread[home] = job
            start = rows.count
            while job.waiting and rows.count < rows.capacity:
                rows.set(rows.count, job, job.waiting.popleft(), self.version)
            length = len(job.request.ids)
            copies += [(home, r, length) for r in range(start, rows.count) if r != home]
            if not job.waiting:
                self._queue.popleft()
            if self._decoder.lockstep:
                break
            self._plan = None
        if unread:
            prompts = [job.request.ids for job in unread.values()]
            logits = self._decoder.prefill(prompts, list(unread))
            for job, first in zip(unread.values(), logits, strict=True):
                job.first = first
        if copies:
            self._decoder.copy(*zip(*copies, strict=True))

    # Decoding

    def _step(self) -> None:
        """One token for every running row, after the first token of those that have none."""
        rows = self._rows
        # A first token may end its completion, and the row then starts on another.
        while len(new := np.flatnonzero(rows.made[: rows.count] == 0)):
            jobs = [rows.owners[r].job for r in new]
            logits = torch.stack([j.first for j in jobs if j.first is not None])
            for job in jobs:
                if not job.waiting:
                    job.first = None
            self._draw(new, logits, self._plan_for(new, logits))
        if not rows.count:
            return
        at = np.arange(rows.count)
        made = rows.made[at]
        logits = self._decoder.decode(rows.tokens[at, made - 1], rows.prompt[at] + made - 1)
        if self._plan is None:
            self._plan = self._plan_for(at, logits)
        self._draw(at, logits, self._plan)

    def _plan_for(self, at: np.ndarray, logits: Tensor) -> Plan:
        samplings = [self._rows.owners[r].job.request.sampling for r in at]
        return make_plan(samplings, logits.shape[1], logits.device)

    def _draw(self, at: np.ndarray, logits: Tensor, plan: Plan) -> None:
        """Sample a token for rows `at` from `logits`, and retire the rows that ended."""
        rows = self._rows
        with torch.inference_mode():
            noise = uniforms(rows.noise[at], rows.made[at])
            if self._room is None or self._room.shape[1] < len(logits):
                self._room = workspace(logits)
            tokens, logprobs = sample(logits, noise, plan, self._room)
        # One copy, as each is a wait for the device.
        drawn, found = to_host(tokens, logprobs)
        rows.append(at, drawn, found)
        stopped = (rows.eos[at] == drawn[:, None]).any(1)
        full = rows.made[at] >= rows.limit[at]
        ended: dict[int, FinishReason] = {
            int(r): "stop" if s else "length"
            for r, s in zip(at[stopped | full], stopped[stopped | full], strict=True)
        }
        texts: dict[int, str] = {}
        # An eos ends a completion before its text is looked at.
        for row in map(int, at[rows.reads[at] & ~stopped]):
            text = self._stopped(row)
            if text is not None:
                ended[row], texts[row] = "stop", text
        if ended:
            self._finish(ended, texts)

    def _stopped(self, row: int) -> str | None:
        """The text up to and including the first stop string, None if there is none yet."""
        rows = self._rows
        stops = rows.owners[row].job.request.sampling.stop
        made = int(rows.made[row])
        tail = max(len(s.encode()) for s in stops) + _STOP_MARGIN
        if cut(self._text(row, max(0, made - tail), made), stops) is None:
            return None
        return cut(self._text(row, 0, made), stops)

    def _text(self, row: int, start: int, end: int) -> str:
        ids = self._rows.tokens[row, start:end].tolist()
        eos_ids = self._rows.owners[row].job.request.sampling.eos_ids
        return completion_text(self.tokenizer, ids, eos_ids)

    def _finish(self, ended: dict[int, FinishReason], texts: dict[int, str] | None = None) -> None:
        """Give out the completions of rows `ended`; their rows serve waiting samples, or close."""
        closed: list[int] = []
        for row, reason in ended.items():
            text = (texts or {}).get(row)
            if text is None:
                text = self._text(row, 0, int(self._rows.made[row]))
            self._done.append(self._rows.completion(row, text, reason))
            job = self._rows.owners[row].job
            # The prompt of a request with samples left is in this row already.
            if job.waiting and reason != "abort" and not self._decoder.lockstep:
                self._rows.set(row, job, job.waiting.popleft(), self.version)
                if not job.waiting:
                    self._queue.remove(job)
            else:
                closed.append(row)
        self._remove(closed)

    def _remove(self, gone: Sequence[int]) -> None:
        """Close rows `gone`; the last rows move into their places."""
        if not gone:
            return
        rows = self._rows
        left = rows.count - len(gone)
        closed = set(gone)
        holes = [r for r in sorted(closed) if r < left]
        movers = [r for r in range(left, rows.count) if r not in closed]
        moves = list(zip(movers, holes, strict=True))
        # The newest token of a row is not in the cache before the next step reads it.
        length = max((int(rows.prompt[r] + max(rows.made[r] - 1, 0)) for r in movers), default=0)
        self._decoder.compact(moves, left, length)
        for source, target in moves:
            rows.move(source, target)
        rows.truncate(left)
        self._plan = None
