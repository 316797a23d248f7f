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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo.errors import EngineError, WeightsError
from grpo.model import pretrained
from grpo.model.canary import canary_ids
from grpo.model.content_hash import content_hash
from grpo.rollout.base import LocalEngine
from grpo.rollout.samples import Sample, finished, is_late, put_back
from grpo.rollout.settings import VllmSettings
from grpo.rollout.vllm import arguments, compat, lora, readback
from grpo.rollout.vllm.speculation import Speculation
from grpo.types import Ack, EngineSpec, FinishReason, InFlight, Metrics, Request, Version

_SCORED = "scored"  # id of a request for log-probs; those of samples are numbers


class VllmEngine(LocalEngine):
    """An `Engine` over one in-process `LLMEngine`; settings as in docs/vllm.md.

    `llm` is the LLMEngine, which the engine owns; `tokenizer` is ours, and makes all texts. `rows`:
    the most samples under way.
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
        vocab_size = int(llm.model_config.get_vocab_size())
        super().__init__(spec.version, vocab_size=vocab_size, max_length=max_length)
        self.llm: Any = llm
        self.tokenizer = tokenizer
        self.rows = rows
        self.speculation = speculation
        self.adapter = lora.Adapter(spec.lora) if spec.lora else None
        self._can_sleep = can_sleep
        self._asleep = False
        # vLLM request id -> samples under way, by their place in it
        self._chunks: dict[str, dict[int, Sample]] = {}
        self._canary = canary_ids(vocab_size)
        self._scored: Any = None
        self._serial = 0

    @classmethod
    def from_spec(cls, spec: EngineSpec, settings: VllmSettings) -> VllmEngine:
        """The engine of `spec`. Raises EngineError with vLLM's reason where it does not start."""
        started = time.monotonic()
        print("vLLM starts; this takes 10 to 50 s", file=sys.stderr, flush=True)
        compat.import_vllm()
        cpu = compat.is_cpu()
        if spec.threads and cpu:
            torch.set_num_threads(spec.threads)
        speculation = arguments.speculation_of(settings)
        chosen = arguments.chosen(spec, settings, speculation, cpu=cpu)
        llm = compat.make_engine(chosen)
        print(f"vLLM is up after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        return cls(
            llm,
            pretrained.tokenizer(spec.model),
            spec=spec,
            max_length=chosen["max_model_len"],
            rows=settings.max_num_seqs,
            speculation=speculation,
            can_sleep=settings.enable_sleep_mode and not cpu,
        )

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
        super().sleep()
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
        super().close()
        self._chunks.clear()
        if self.adapter is not None:
            self.adapter.close()
        with compat.undisturbed():
            compat.destroy(self.llm)
        self.llm = None

    # Weights

    def load_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        version: Version,
        in_flight: InFlight = "finish",
    ) -> Ack:
        """As `BaseEngine`; samples carry the version that arrived, whatever was announced."""
        ack = super().load_weights(weights, version, in_flight)
        self.version = ack.version
        return ack

    def _settle(self, in_flight: InFlight) -> None:
        self.wake()
        for name, samples in list(self._chunks.items()):
            progress = self._progress(name)
            fresh = [i for i in samples if not progress[i][1]]
            if fresh:
                # Their prompt may have been read by the old weights.
                self.llm.abort_request([progress[i][0] for i in fresh], internal=True)
                put_back(self._queue, [samples.pop(i) for i in fresh])
                if not samples:
                    del self._chunks[name]
        while in_flight == "finish" and self._chunks:
            self._step()

    def _load(self, weights: Iterable[tuple[str, Tensor]], version: Version) -> Ack:
        """Load `weights` (the adapter, where there is spec.lora) and read them back.

        The acknowledgment's hash is that of the tensors that came here; that these are resident is
        proven by reading them back, and that vLLM computes with them by the canary. Samples that
        go on keep their keys and values; no prompt reuses those of old weights. Raises WeightsError
        with the name of the first tensor that is not resident.
        """
        sent = {name: tensor.detach() for name, tensor in weights}
        arrived = Version(step=version.step, hash=content_hash(sent.items()))
        if self.adapter is not None:
            self.adapter.load(self.llm, sent, arrived, running=bool(self._chunks))
        else:
            self._load_full(sent, arrived)
        self.version = arrived
        for name, samples in self._chunks.items():
            for index, (_, ids, _) in self._progress(name).items():
                samples[index].mark(len(ids), arrived)
        # Blocks in use cannot be dropped; the salt of every new prompt keeps it from them.
        self.llm.reset_prefix_cache()
        if self.speculation is not None:
            self.speculation.restart(self.llm)
        canary = float(self.logprobs(self._canary).astype(np.float64).sum())
        return Ack(version=arrived, tensors=len(sent), canary=canary)

    def _load_full(self, sent: dict[str, Tensor], version: Version) -> None:
        """Full weights: check the set, load it, read it back. Raises WeightsError."""
        if self.llm.vllm_config.parallel_config.tensor_parallel_size > 1:
            # Shards lie in other processes; there the canary is the proof.
            self.llm.collective_rpc(readback.load, args=(sent,))
            return
        worker = compat.worker(self.llm)
        readback.check_complete(worker.model_runner.get_model(), sent)
        with compat.undisturbed():
            readback.load(worker, sent)
        model = compat.worker(self.llm).model_runner.get_model()
        wrong = readback.find_difference(model, sent, version.hash)
        if wrong is not None:
            raise WeightsError(
                f"{wrong} is not what was sent: vLLM holds other values after loading weights "
                f"{version}; rollouts from it would train on wrong log-probs"
            )

    # Queue

    def _problem(self, request: Request) -> str | None:
        if request.sampling.top_p < 1 and request.sampling.min_p > 0:
            return (
                "asks for top_p and min_p together, which vLLM applies in another order than the "
                "learner; use one of them"
            )
        return super()._problem(request)

    def _running(self) -> list[Sample]:
        return [sample for samples in self._chunks.values() for sample in samples.values()]

    def _advance(self, end: float | None) -> None:
        self._expire()
        self._admit()
        self._step()

    def _drop(self, gone: set[str]) -> None:
        super()._drop(gone)
        for name, samples in list(self._chunks.items()):
            if _request_of(samples).uid in gone:
                del self._chunks[name]
                self.llm.abort_request([name])

    def _expire(self) -> None:
        """Abort what is past its deadline, begun or not."""
        super()._expire()
        now = time.monotonic()
        for name, samples in list(self._chunks.items()):
            if is_late(_request_of(samples), now):
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
        free = self.rows - len(self._running())
        while self._queue and free > 0:
            job = self._queue[0]
            first = job.waiting.popleft()
            taken = [first]
            # vLLM numbers the seeds of one request on from the first.
            while job.waiting and len(taken) < free and job.waiting[0] == taken[-1] + 1:
                taken.append(job.waiting.popleft())
            self._serial += 1
            name = str(self._serial)
            self._chunks[name] = {
                place: Sample(job=job, index=index, marks=[(0, self.version)])
                for place, index in enumerate(taken)
            }
            self._add(
                name, job.request.ids, arguments.sampling_params(job.request, first, len(taken))
            )
            free -= len(taken)
            if not job.waiting:
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

    def _finish(self, sample: Sample, reason: FinishReason, stopped: bool = False) -> None:
        if len(sample.logprobs) != len(sample.ids):
            raise EngineError(
                f"vLLM returned {len(sample.logprobs)} log-probs for {len(sample.ids)} tokens of "
                f"request {sample.job.request.uid!r}"
            )
        self._done.append(finished(sample, self.tokenizer, reason, stopped=stopped))


def _request_of(samples: Mapping[int, Sample]) -> Request:
    """The request that all `samples` of one vLLM request belong to."""
    return next(iter(samples.values())).job.request
