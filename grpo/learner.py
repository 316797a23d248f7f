"""The learner: rows in, a better policy out.

One `step` is one rollout batch: `num_iterations` passes over `num_minibatches` optimizer steps
(one and one by default), each accumulated over micro-batches of a token budget. Dividing is done
by the rows' weights, so accumulation only adds.

What is left out, and why. Old log-probs are recomputed only when a batch is used for more than
one optimizer step: with one, the policy that learns is the policy that sampled and the ratio is 1
in value. Dropout is off, so that the policy scored is the one that sampled. The learning rate is a
function of the step number, so the schedule has no state; it advances on every rollout batch, also
when every row of it was dead and no optimizer step was taken.

Weights and moments are float32 whatever the compute type: at learning rate 1e-6 an update is far
below the spacing of bfloat16 numbers and would be rounded away.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from grpo import learner_state
from grpo.batch import MicroBatch, micro_batches, split_minibatches
from grpo.canary import canary_logprob
from grpo.errors import LearnerError
from grpo.forward import (
    can_share_prompts,
    check_head,
    completion_logprobs,
    completion_surprise,
    disable_dropout,
)
from grpo.objective import Clip, LossInputs, find_objective, sampling_weights
from grpo.types import Metrics, Row, Sampling, Version
from grpo.weights import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo.schema import Algorithm
    from grpo.schema import Learner as LearnerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def learning_rate(config: LearnerConfig, step: int) -> float:
    """The rate of rollout batch `step` (from 0): linear warm-up, then the schedule down to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    match config.lr_scheduler_type:
        case "constant":
            return config.learning_rate
        case "linear":
            return config.learning_rate * max(0.0, 1.0 - progress)
        case "cosine":
            return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def load_policy(model: str | PreTrainedModel) -> PreTrainedModel:
    """A causal LM with float32 weights, from a Hugging Face folder or id, or the one given."""
    if isinstance(model, nn.Module):
        return model
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


class _LogProbs(nn.Module):
    """The forward pass as a module of its own, so that a data-parallel wrapper sees every use."""

    def __init__(
        self, model: PreTrainedModel, temperature: float, truncation: Sampling | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.truncation = truncation

    def forward(self, micro_batch: MicroBatch, want_entropy: bool) -> tuple[Tensor, Tensor | None]:
        return completion_logprobs(
            self.model, micro_batch, self.temperature, want_entropy, self.truncation
        )


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A micro-batch with what is computed once per rollout batch."""

    batch: MicroBatch
    logp_old: Tensor | None = None
    logp_ref: Tensor | None = None


class TorchLearner:
    """`grpo.types.Learner` on plain torch and accelerate, for any Hugging Face causal LM.

    model         folder, hub id or module (a module is trained in place, in its own dtype)
    dtype         compute type; float16 comes with loss scaling
    engine_dtype  type of the tensors `weights` gives; default: `dtype`
    temperature   of sampling; the loss uses the distribution that was sampled
    truncation    the same for top-k, top-p and min-p (None: off); the reference is never truncated
    reference     policy the KL term is measured from; default: `model` as it is now. Loaded only
                  when `algorithm.beta` > 0
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        algorithm: Algorithm,
        config: LearnerConfig,
        dtype: str = "float32",
        engine_dtype: str | None = None,
        temperature: float = 1.0,
        truncation: Sampling | None = None,
        seed: int = 0,
        reference: str | PreTrainedModel | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.algorithm, self.config = algorithm, config
        self.objective = find_objective(algorithm.loss_type)
        self.clip = Clip(
            epsilon=algorithm.epsilon,
            epsilon_high=algorithm.epsilon_high,
            delta=algorithm.delta,
            beta=algorithm.beta,
            kl_estimator=algorithm.kl_estimator,
        )
        self.compute_dtype = DTYPES[dtype]
        self.engine_dtype = DTYPES[engine_dtype or dtype]
        # Precision is handled here: accelerate would autocast only `forward`, and refuses float16
        # without a GPU.
        self.accelerator = Accelerator(mixed_precision="no")
        self.device = self.accelerator.device

        self.model = load_policy(model).to(self.device)
        disable_dropout(self.model)
        self.model.eval()
        self.share_prompts = config.share_prompts and can_share_prompts(self.model)
        check_head(self.model)
        self.ref: _LogProbs | None = None
        if algorithm.beta > 0:
            source = model if reference is None else reference
            ref = copy.deepcopy(source) if isinstance(source, nn.Module) else load_policy(source)
            disable_dropout(ref)
            self.ref = _LogProbs(ref.to(self.device).eval().requires_grad_(False), temperature)
        if config.gradient_checkpointing:
            _checkpoint_activations(self.model)

        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay),
            lr=config.learning_rate,
            betas=config.adam_betas,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.temperature, self.truncation = temperature, truncation
        scored = _LogProbs(self.model, temperature, truncation)
        self.policy = cast(nn.Module, self.accelerator.prepare(scored))
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.compute_dtype is torch.float16
        )
        self.steps = 0  # rollout batches seen
        self.updates = 0  # optimizer steps taken
        self._version: Version | None = None

    # -- learning ---------------------------------------------------------------------------

    def step(self, rows: Sequence[Row]) -> Metrics:
        """One rollout batch: every optimizer step the recipe asks for.

        Returns means over trained tokens under TRL's names, averaged over the optimizer steps.
        Optimizer steps without any row are skipped, not taken on a zero gradient (moments and
        weight decay would still move the weights). Raises LearnerError on a gradient that is not
        finite, except under float16, where the scaler skips that step and it is counted.
        """
        started = time.perf_counter()
        rate = learning_rate(self.config, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = [
            [rows[i] for i in part]
            for part in split_minibatches(rows, self.algorithm.num_minibatches)
        ]
        updates = self.algorithm.num_iterations * len(parts)
        prepared = [self._prepare(part, recompute=updates > 1) for part in parts]
        sums = _Sums()
        norms: list[float] = []
        taken = skipped = 0
        for iteration in range(self.algorithm.num_iterations):
            for part in prepared:
                if not part:
                    continue
                norm = self._update(part, sums, sampled=iteration == 0)
                skipped += not math.isfinite(norm)
                taken += math.isfinite(norm)
                norms.append(norm)
        self.steps += 1
        self.updates += taken
        if taken:
            self._version = None
        finite = [n for n in norms if math.isfinite(n)]
        seconds = time.perf_counter() - started
        return {
            **sums.metrics(self.accelerator, self.device, max(1, len(norms))),
            "grad_norm": sum(finite) / max(1, len(finite)),
            "learning_rate": rate,
            "optimizer_steps": float(taken),
            "optimizer_steps/overflow": float(skipped),
            "optimizer_steps/without_rows": float(updates - len(norms)),
            "learner/micro_batches": float(sum(map(len, prepared))),
            "learner/tokens_per_second": sum(len(r.prompt_ids) + len(r.ids) for r in rows)
            * self.algorithm.num_iterations
            / seconds,
        }

    def _prepare(self, rows: Sequence[Row], recompute: bool) -> list[_Prepared]:
        """Micro-batches of one optimizer step, with old and reference log-probs where needed.

        All ranks get the same number, so that their collectives meet: ranks that have fewer are
        given copies with zero weights. Empty when no rank has a row.
        """
        batches = self._cut(rows)
        counts = torch.tensor([len(batches)], device=self.device)
        most = int(cast(Tensor, self.accelerator.gather(counts)).max())
        if most > len(batches):
            filler = batches[-1] if batches else self._cut([_EMPTY_ROW])[0]
            filler = replace(
                filler,
                weights=np.zeros_like(filler.weights),
                advantages=np.zeros_like(filler.advantages),
            )
            batches += [filler] * (most - len(batches))
        if self.objective.per_micro_batch:
            batches = [replace(b, weights=_equal_weights(b.weights, most)) for b in batches]
        return [
            _Prepared(
                batch=batch,
                logp_old=self._score(self.policy, batch) if recompute else None,
                logp_ref=None if self.ref is None else self._score(self.ref, batch),
            )
            for batch in batches
        ]

    def _cut(self, rows: Sequence[Row]) -> list[MicroBatch]:
        budget = self.config.tokens_per_micro_batch
        return micro_batches(rows, budget, self.share_prompts, pad_id=0)

    @torch.no_grad()
    def _score(self, policy: nn.Module, batch: MicroBatch) -> Tensor:
        with self._autocast():
            return policy(batch, want_entropy=False)[0]

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.compute_dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def loss(self, prepared: _Prepared) -> tuple[Tensor, LossInputs, dict[str, Tensor]]:
        """The loss of one micro-batch, what it was computed from, and per-token quantities."""
        batch = prepared.batch
        with self._autocast():
            logp, entropy = self.policy(batch, want_entropy=True)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        logp_old = logp.detach() if prepared.logp_old is None else prepared.logp_old
        logp_sampler, completions = tensor(batch.logprobs), tensor(batch.completions)
        correction = sampling_weights(
            logp_old,
            logp_sampler,
            completions,
            self.algorithm.sampling_correction,
            self.algorithm.sampling_correction_cap,
        )
        inputs = LossInputs(
            logp=logp,
            logp_old=logp_old,
            logp_sampler=logp_sampler,
            logp_ref=prepared.logp_ref,
            # The surrogate is linear in the advantages, and the KL term must not be reweighted.
            advantages=tensor(batch.advantages) * correction,
            weights=tensor(batch.weights),
            entropy=entropy,
            completions=completions,
        )
        loss_N, metrics = self.objective.token_loss(inputs, self.clip)
        if self.algorithm.sampling_correction != "none":
            metrics["sampling/importance_sampling_ratio/mean"] = correction
            metrics[_SQUARED_RATIO] = correction.square()
        return (inputs.weights * loss_N).sum(), inputs, metrics

    def _update(self, part: Sequence[_Prepared], sums: _Sums, sampled: bool) -> float:
        """One optimizer step; returns the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros(())
        for index, prepared in enumerate(part):
            last = index == len(part) - 1
            wait = contextlib.nullcontext() if last else self.accelerator.no_sync(self.policy)
            with wait:
                loss, inputs, metrics = self.loss(prepared)
                # Data-parallel wrappers average gradients over ranks; the weights are already
                # global, so the sum is wanted.
                self.scaler.scale(loss * self.accelerator.num_processes).backward()
            sums.add(loss, inputs, metrics, sampled)
        self.scaler.unscale_(self.optimizer)
        limit = self.config.max_grad_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise LearnerError(
                f"step {self.steps + 1}: the gradient's norm is {norm}. The weights were not "
                "changed. Lower learner.learning_rate, or look for a loss that is not finite "
                f"(loss of the last micro-batch: {float(loss.detach())})."
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The policy's log-probs of each row's tokens, float32 [T]; NaN where not trained on."""
        found = [np.full(len(row.ids), np.nan, dtype=np.float32) for row in rows]
        for batch in self._cut(rows):
            logp_N = self._score(self.policy, batch).float().cpu().numpy()
            for place, index in enumerate(batch.rows):
                found[index][rows[index].mask] = logp_N[batch.completions == place]
        return found

    @torch.no_grad()
    def surprise(self, rows: Sequence[Row]) -> np.ndarray:
        """float64 [3, N] of the rows' trained tokens, row after row, in order.

        The policy's log-prob, the entropy it was drawn at and the variance of -log p there; see
        `forward.completion_surprise`.
        """
        found = [np.zeros((3, int(row.mask.sum()))) for row in rows]
        for batch in self._cut(rows):
            with self._autocast():
                parts = completion_surprise(self.model, batch, self.temperature, self.truncation)
            parts_3_N = torch.stack([p.double() for p in parts]).cpu().numpy()
            for place, index in enumerate(batch.rows):
                found[index] = parts_3_N[:, batch.completions == place]
        return np.concatenate(found, axis=1) if found else np.zeros((3, 0))

    # -- weights and state ------------------------------------------------------------------

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Named tensors of the policy in the engine's dtype; tied weights come once."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach().to(self.engine_dtype)

    def version(self) -> Version:
        """Optimizer steps taken, and the hash of what `weights` gives now."""
        if self._version is None:
            self._version = Version(step=self.updates, hash=content_hash(self.weights()))
        return self._version

    def canary(self) -> float:
        """Summed log-prob of the canary tokens, to compare with an engine's `Ack.canary`."""
        with self._autocast():
            return canary_logprob(self.model)

    def all_reduce(self, totals: np.ndarray) -> np.ndarray:
        """The sum of an integer array over all ranks, for `batch.make_rows`."""
        tensor = torch.from_numpy(totals).to(self.device)
        return cast(Tensor, self.accelerator.reduce(tensor, reduction="sum")).cpu().numpy()

    def save_model(self, path: str) -> None:
        """The model alone (float32), as `AutoModelForCausalLM.from_pretrained` loads it."""
        if self.accelerator.is_main_process:
            self.model.save_pretrained(path)
        self.accelerator.wait_for_everyone()

    def save(self, path: str) -> None:
        """Model in Hugging Face layout (float32), optimizer, step counts and RNG, under `path`."""
        self.save_model(path)
        if self.accelerator.is_main_process:
            learner_state.save(
                path, self.model, self.optimizer, self.scaler, self.steps, self.updates
            )
        self.accelerator.wait_for_everyone()

    def load(self, path: str) -> None:
        """The state `save` wrote; training goes on bit for bit. Raises RunError."""
        self.steps, self.updates = learner_state.load(path, self.model, self.optimizer, self.scaler)
        self._version = None


_SQUARED_RATIO = "sampling/importance_sampling_ratio/square"  # summed up, shown as the ESS

_EMPTY_ROW = Row(
    group=0,
    prompt_ids=(0,),
    ids=np.zeros(1, dtype=np.int64),
    mask=np.ones(1, dtype=np.bool_),
    logprobs=np.zeros(1, dtype=np.float32),
    advantages=np.zeros(1, dtype=np.float32),
    weights=np.zeros(1, dtype=np.float32),
)


def _checkpoint_activations(model: PreTrainedModel) -> None:
    # renamed in transformers 5.2x; the old name warns there
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    model.train()  # Hugging Face recomputes in training mode only


def _equal_weights(weights_N: np.ndarray, num_micro_batches: int) -> np.ndarray:
    """Weights of a mean over micro-batches of means over tokens; a filler's stay 0."""
    return (weights_N != 0) / np.float32(len(weights_N) * num_micro_batches)


def _parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; norms and biases do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


class _Sums:
    """Running sums over micro-batches, kept on the device: one transfer per rollout batch."""

    def __init__(self) -> None:
        self.loss: list[Tensor] = []
        self.tokens = 0
        self.sums: dict[str, list[Tensor]] = {}
        self.sampled_tokens = 0
        self.differences: list[Tensor] = []
        self.largest: list[Tensor] = []

    def add(
        self, loss: Tensor, inputs: LossInputs, metrics: dict[str, Tensor], sampled: bool
    ) -> None:
        """Add one micro-batch; `sampled`: its old log-probs are still to be compared."""
        real = (inputs.weights != 0).to(inputs.weights.dtype)
        self.loss.append(loss.detach())
        self.tokens += int(real.sum())
        for name, values in metrics.items():
            self.sums.setdefault(name, []).append((values * real).sum())
        if sampled:
            difference = (inputs.logp_old.detach() - inputs.logp_sampler).abs() * real
            self.sampled_tokens += int(real.sum())
            self.differences.append(difference.sum())
            self.largest.append(difference.max())

    def metrics(self, accelerator: Accelerator, device: torch.device, steps: int) -> Metrics:
        """Means over the tokens of all ranks; the loss is the mean over optimizer steps."""
        names = sorted(self.sums)
        if not self.loss and accelerator.num_processes == 1:
            return {"loss": 0.0}

        def total(values: Iterable[Tensor]) -> float:
            return float(sum(float(v) for v in values))

        local = torch.tensor(
            [
                total(self.loss),
                self.tokens,
                self.sampled_tokens,
                total(self.differences),
                *(total(self.sums[name]) for name in names),
            ],
            dtype=torch.float64 if device.type != "mps" else torch.float32,
            device=device,
        )
        loss, tokens, sampled, difference, *rest = cast(
            Tensor, accelerator.reduce(local, reduction="sum")
        ).tolist()
        largest = torch.tensor([max(map(float, self.largest), default=0.0)], device=device)
        means = {n: s / max(tokens, 1) for n, s in zip(names, rest, strict=True)}
        squared = means.pop(_SQUARED_RATIO, 0.0)
        if squared:  # the share of tokens that unweighted sampling would need for the same variance
            means["sampling/ess"] = means["sampling/importance_sampling_ratio/mean"] ** 2 / squared
        return {
            "loss": loss / steps,
            **means,
            "sampling/sampling_logp_difference/mean": difference / max(sampled, 1),
            "sampling/sampling_logp_difference/max": float(
                cast(Tensor, accelerator.gather(largest)).max()
            ),
        }
