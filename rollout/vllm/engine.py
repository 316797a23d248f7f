"""The vLLM engine: vLLM's scheduler and kernels in this process, tokens in and tokens out.

Samples wait here, not inside vLLM: a request goes in only as far as there are free rows, so that
what has not begun is in our hands when weights change. One vLLM request carries all samples of a
group that fit. Everything happens inside `poll` and `load_weights`, on the caller's thread.

Weights are believed when they have been read back (readback.py), adapters when their stacks
have been and every output says it was sampled with them (lora.py).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo.errors import EngineError, WeightsError
from grpo.model import pretrained
from grpo.model.canary import canary_ids
from grpo.model.content_hash import content_hash
from grpo.rollout.vllm import arguments, compat, lora, readback
from grpo.rollout.vllm.requests import (
    QueuedRequest,
    RunningSample,
    completion_of,
    late,
    refusal,
    sampling_params,
)
from grpo.rollout.vllm.speculation import Speculation
from grpo.types import (
    Ack,
    Completion,
    EngineSpec,
    FinishReason,
    InFlight,
    Metrics,
    Request,
    Version,
)

_SCORED = "scored"  # id of a request for log-probs; those of samples are numbers


class VllmEngine:
    """An `Engine` over one in-process `LLMEngine`; settings as in docs/vllm.md.

    `llm` is the LLMEngine, `tokenizer` ours (texts are decoded once, with it), `rows` the most
    samples under way. The engine owns `llm`.
    """

    def __init__(
        self,
        llm: Any,
        tokenizer: Any,
        *,
        spec: EngineSpec,
        max_length: int,
        rows: int,
        speculation: Speculation | None = None,
        can_sleep: bool = False,
    ) -> None:
        self.llm: Any = llm
        self.tokenizer = tokenizer
        self.spec = spec
        self.version = spec.version
        self.max_length = max_length
        self.rows = rows
        self.speculation = speculation
        self.adapter = lora.Adapter(rank=spec.lora_rank) if spec.lora_rank else None
        self._can_sleep = can_sleep
        self._asleep = False
        self._vocab_size = int(llm.model_config.get_vocab_size())
        self._queue: deque[QueuedRequest] = deque()
        self._chunks: dict[
            str, dict[int, RunningSample]
        ] = {}  # vLLM request id -> samples under way
        self._done: list[Completion] = []
        self._scored: Any = None
        self._serial = 0
        self._broken = False

    @classmethod
    def from_spec(
        cls,
        spec: EngineSpec,
        *,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.45,
        max_model_len: int = 0,
        max_num_batched_tokens: int = 0,
        max_num_seqs: int = 256,
        kv_cache_gib: float = 0.0,
        kv_cache_dtype: str = "auto",
        head_dtype: str = "",
        enforce_eager: bool | None = None,
        enable_prefix_caching: bool = True,
        enable_sleep_mode: bool = False,
        speculative_tokens: int = 0,
        speculative_model: str = "",
    ) -> VllmEngine:
        """The engine of `spec`. Raises EngineError with vLLM's reason where it does not start."""
        started = time.monotonic()
        print("vLLM starts; this takes 10 to 50 s", file=sys.stderr, flush=True)
        compat.import_vllm()
        cpu = compat.is_cpu()
        if spec.threads and cpu:
            torch.set_num_threads(spec.threads)
        config = pretrained.config(spec.model)
        positions = getattr(config, "max_position_embeddings", None) or spec.max_length
        # Room for the canary and one token after it.
        length = min(max(max_model_len or spec.max_length, 17), positions)
        speculation = arguments.speculation_of(speculative_tokens, speculative_model)
        chosen: dict[str, Any] = {
            **arguments.fixed(spec, length, speculation),
            "max_num_seqs": max_num_seqs,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "kv_cache_dtype": kv_cache_dtype,
            "enforce_eager": cpu if enforce_eager is None else enforce_eager,
            "enable_prefix_caching": enable_prefix_caching,
            **arguments.step_size(max_num_batched_tokens, length, max_num_seqs),
        }
        if kv_cache_gib or cpu:
            chosen["kv_cache_memory_bytes"] = int((kv_cache_gib or 1.0) * 2**30)
        if compilation := compat.compilation_config(config):
            chosen["compilation_config"] = compilation
        if enable_sleep_mode and not cpu:
            chosen["enable_sleep_mode"] = True
        if head_dtype:
            chosen["hf_overrides"] = {"head_dtype": head_dtype}
        llm = compat.make_engine(chosen)
        print(f"vLLM is up after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        return cls(
            llm,
            pretrained.tokenizer(spec.model),
            spec=spec,
            max_length=length,
            rows=max_num_seqs,
            speculation=speculation,
            can_sleep=enable_sleep_mode and not cpu,
        )

    # The Engine protocol

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; EngineError (and none is queued) if one cannot be sampled."""
        active = self._active()
        for request in requests:
            problem = "is queued already" if request.uid in active else None
            problem = problem or refusal(request, self._vocab_size, self.max_length)
            if problem:
                raise EngineError(f"request {request.uid!r} {problem}")
            active.add(request.uid)
        self._queue.extend(QueuedRequest(request=r, waiting=deque(range(r.n))) for r in requests)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Step until a completion has finished or `timeout` seconds are over (one step at least).

        Returns [] at once when nothing is queued.
        """
        if self._broken:
            raise WeightsError("the last load_weights failed half-way; load a full set first")
        end = None if timeout is None else time.monotonic() + timeout
        while not self._done and (self._queue or self._chunks):
            self._expire()
            self._admit()
            self._step()
            if end is not None and time.monotonic() >= end:
                break
        done, self._done = self._done, []
        return done

    def cancel(self, uids: Sequence[str]) -> None:
        """Forget requests and their finished completions; unknown uids are ignored."""
        gone = set(uids)
        self._queue = deque(j for j in self._queue if j.request.uid not in gone)
        self._done = [c for c in self._done if c.request not in gone]
        for name, samples in list(self._chunks.items()):
            if next(iter(samples.values())).queued.request.uid in gone:
                del self._chunks[name]
                self.llm.abort_request([name])

    def load_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        version: Version,
        in_flight: InFlight = "finish",
    ) -> Ack:
        """Load `weights` (the adapter, where spec.lora_rank > 0) and read them back.

        The acknowledgment's hash is that of the tensors that came here; that these are resident is
        proven by reading them back, and that vLLM computes with them by the canary. Samples under
        way: "finish" them under the old weights; "continue" them with the new ones (a new segment;
        their keys and values stay). Samples without a token yet start again under the new weights,
        and no prompt reuses keys and values of old ones. Raises WeightsError with the name of the
        first tensor that is not resident.
        """
        if in_flight not in ("finish", "continue"):
            raise EngineError(f"unknown in_flight {in_flight!r}. Valid: continue, finish.")
        self.wake()
        self._settle(in_flight)
        sent = {name: tensor.detach() for name, tensor in weights}
        arrived = Version(step=version.step, hash=content_hash(sent.items()))
        self._broken = True
        if self.adapter is not None:
            self.adapter.load(self.llm, sent, arrived, running=bool(self._chunks))
        else:
            self._load(sent, arrived)
        self._broken = False
        self.version = arrived
        for name, samples in self._chunks.items():
            for index, (_, ids, _) in self._progress(name).items():
                samples[index].marks.append((len(ids), arrived))
        # Blocks in use cannot be dropped; the salt of every new prompt keeps it from them.
        self.llm.reset_prefix_cache()
        if self.speculation is not None:
            self.speculation.restart(self.llm)
        canary = float(self.logprobs(canary_ids(self._vocab_size)).astype(np.float64).sum())
        return Ack(version=arrived, tensors=len(sent), canary=canary)

    def logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [len(ids) - 1]: log p of each token after the first, at temperature 1.

        By the forward pass, kernels and adapter of rollouts; one token is generated besides.
        """
        vllm = compat.import_vllm()
        params = vllm.SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, ignore_eos=True
        )
        self._scored = None
        self._add(_SCORED, ids, params)
        while self._scored is None:
            self._step()
        rows = self._scored.prompt_logprobs[1:]
        found = [row[i].logprob for row, i in zip(rows, ids[1:], strict=True)]
        return np.array(found, dtype=np.float32)

    def take_metrics(self) -> Metrics:
        """Of speculation since the last call: acceptance, tokens per draft, whether it is off."""
        return {} if self.speculation is None else self.speculation.take_metrics(self.llm)

    def sleep(self) -> None:
        """On GPUs with enable_sleep_mode: weights to host memory, cache freed; else nothing.

        vLLM's CPU worker has no such state to release: its cache is of fixed size. Raises
        EngineError while completions are under way.
        """
        if self._chunks:
            count = sum(map(len, self._chunks.values()))
            raise EngineError(f"{count} completions are under way; poll or cancel them first")
        if self._can_sleep and not self._asleep:
            self.llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """Undo `sleep`."""
        if self._asleep:
            self.llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Drop requests, model and process group; the process is left as a start found it."""
        if self.llm is None:
            return
        self._queue.clear()
        self._done.clear()
        self._chunks.clear()
        if self.adapter is not None:
            self.adapter.close()
        with compat.undisturbed():
            compat.destroy(self.llm)
        self.llm = None

    # Weights

    def _load(self, sent: dict[str, Tensor], version: Version) -> None:
        """Full weights: check the set, load it, read it back. Raises WeightsError."""
        if self.llm.vllm_config.parallel_config.tensor_parallel_size > 1:
            # Shards lie in other processes; there the canary is the proof.
            self.llm.collective_rpc(readback.load, args=(sent,))
            return
        worker = compat.worker(self.llm)
        readback.check_complete(worker.model_runner.get_model(), sent)
        with compat.undisturbed():
            readback.load(worker, sent)
        wrong = self._not_resident(sent, version)
        if wrong is not None:
            raise WeightsError(
                f"{wrong} is not what was sent: vLLM holds other values after loading weights "
                f"{version}; rollouts from it would train on wrong log-probs"
            )

    def _not_resident(self, sent: dict[str, Tensor], version: Version) -> str | None:
        model = compat.worker(self.llm).model_runner.get_model()
        return readback.find_difference(model, sent, version.hash)

    def _settle(self, in_flight: str) -> None:
        """Bring samples under way into the state in which weights may change."""
        for name, samples in list(self._chunks.items()):
            progress = self._progress(name)
            fresh = [i for i in samples if not progress[i][1]]
            if fresh:
                # Their prompt may have been read by the old weights.
                self.llm.abort_request([progress[i][0] for i in fresh], internal=True)
                self._requeue([samples.pop(i) for i in fresh])
                if not samples:
                    del self._chunks[name]
        while in_flight == "finish" and self._chunks:
            self._step()

    def _requeue(self, samples: Sequence[RunningSample]) -> None:
        for sample in reversed(samples):
            sample.queued.waiting.appendleft(sample.index)
            if sample.queued not in self._queue:
                self._queue.appendleft(sample.queued)

    # Queue

    def _active(self) -> set[str]:
        running = (s.queued for samples in self._chunks.values() for s in samples.values())
        jobs = {j.request.uid for j in (*self._queue, *running)}
        return jobs | {c.request for c in self._done}

    def _expire(self) -> None:
        """Abort what is over its deadline, begun or not."""
        now = time.monotonic()
        for queued in [j for j in self._queue if late(j.request, now)]:
            self._queue.remove(queued)
            for index in queued.waiting:
                sample = RunningSample(queued=queued, index=index, marks=[(0, self.version)])
                self._finish(sample, "abort")
            queued.waiting.clear()
        for name, samples in list(self._chunks.items()):
            if late(next(iter(samples.values())).queued.request, now):
                self._abort(name)

    def _abort(self, name: str) -> None:
        """Give out the samples of a vLLM request as they stand."""
        progress = self._progress(name)
        for index, sample in self._chunks.pop(name).items():
            _, sample.ids, sample.logprobs = progress[index]
            self._finish(sample, "abort")
        self.llm.abort_request([name])

    def _progress(self, name: str) -> dict[int, tuple[str, list[int], list[float]]]:
        found = compat.progress(self.llm)
        return {i: state for (request, i), state in found.items() if request == name}

    def _admit(self) -> None:
        """Hand waiting samples to vLLM, oldest request first, as far as there are free rows."""
        free = self.rows - sum(map(len, self._chunks.values()))
        while self._queue and free > 0:
            queued = self._queue[0]
            first = queued.waiting.popleft()
            taken = [first]
            # vLLM numbers the seeds of one request on from the first.
            while queued.waiting and len(taken) < free and queued.waiting[0] == taken[-1] + 1:
                taken.append(queued.waiting.popleft())
            self._serial += 1
            name = str(self._serial)
            self._chunks[name] = {
                place: RunningSample(queued=queued, index=index, marks=[(0, self.version)])
                for place, index in enumerate(taken)
            }
            self._add(name, queued.request.ids, sampling_params(queued.request, first, len(taken)))
            free -= len(taken)
            if not queued.waiting:
                self._queue.popleft()

    def _add(self, name: str, ids: Sequence[int], params: Any) -> None:
        prompt = {"prompt_token_ids": list(ids), "cache_salt": self.version.hash}
        adapter = None if self.adapter is None else self.adapter.request
        try:
            self.llm.add_request(name, prompt, params, lora_request=adapter)
        except ValueError as error:
            raise EngineError(f"vLLM refused a request: {error}") from error

    # Results

    def _step(self) -> None:
        """One step of vLLM; completions that ended are in `_done` afterwards."""
        with compat.own_randomness():
            started = time.perf_counter()
            outputs = self.llm.step()
            seconds = time.perf_counter() - started
        made = 0
        for output in outputs:
            if self.adapter is not None:
                self.adapter.check(output)
            if output.request_id == _SCORED:
                self._scored = output
                continue
            samples = self._chunks.get(output.request_id)
            if samples is None:  # canceled
                continue
            for part in output.outputs:
                sample = samples[part.index]
                sample.ids.extend(part.token_ids)
                made += len(part.token_ids)
                sample.logprobs.extend(part.logprobs.logprobs if part.logprobs else ())
                if part.finish_reason is not None:
                    del samples[part.index]
                    stopped = isinstance(part.stop_reason, str)
                    reason = "length" if part.finish_reason == "length" else "stop"
                    self._finish(sample, reason, stopped=stopped)
            if not samples:
                del self._chunks[output.request_id]
        if self.speculation is not None:
            self.speculation.observe(self.llm, made, seconds)

    def _finish(self, sample: RunningSample, reason: FinishReason, stopped: bool = False) -> None:
        self._done.append(completion_of(sample, self.tokenizer, reason, stopped))
