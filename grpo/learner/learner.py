"""The learner: rows in, a better policy out.

One `step` is one rollout batch: `num_iterations` passes over `num_minibatches` optimizer steps
(one and one by default), each accumulated over micro-batches of a token budget. Dividing is done
by the rows' weights, so accumulation only adds.

What is left out, and why. Old log-probs are recomputed only when a batch is used for more than
one optimizer step: with one, the policy that learns is the policy that sampled and the ratio is 1
in value. Dropout is off, so that the policy scored is the one that sampled. The learning rate is a
function of the step number, so the schedule has no state; it advances on every rollout batch (or by
all its optimizer steps), also when every row of it was dead and no optimizer step was taken.

Weights and moments are float32 whatever the compute type: at learning rate 1e-6 an update is far
below the spacing of bfloat16 numbers and would be rounded away. With LoRA that holds for the
adapter; the base is frozen and kept in the compute type.

With several ranks (`grpo/model/ranks.py`) every method is collective: all ranks call it, in the
same order. `step` takes each rank's own share of the rows (`weighted_rows.rank_share`); gradients
are summed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from grpo.errors import LearnerError
from grpo.learner import state
from grpo.learner.forward import Policy, can_share_prompts, check_model
from grpo.learner.optimizers import check_sharding, learning_rate, make_optimizer, set_rate
from grpo.learner.packing import (
    MicroBatch,
    Placed,
    equal_weights,
    even_micro_batches,
    place,
    split_minibatches,
)
from grpo.learner.policy import (
    blocks,
    checkpoint_activations,
    frozen_copy,
    load_trained,
    trained_parameters,
)
from grpo.learner.saved import save_policy
from grpo.learner.scoring import Scorer
from grpo.learner.step_sums import Sums
from grpo.method.entropy import chosen
from grpo.method.losses import Clip, LossInputs, loss_of
from grpo.method.table import find_objective
from grpo.model import ranks
from grpo.model.casts import autocast_off, casts_kept
from grpo.model.content_hash import content_hash
from grpo.model.transfer import to_device, to_host
from grpo.types import LoraSpec, Metrics, Row, Sampling, Version

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo.config.schema import Algorithm
    from grpo.config.schema import Learner as LearnerConfig

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchLearner:
    """`grpo.types.Learner` on plain torch and accelerate, for any Hugging Face causal LM.

    model         folder, hub id or module (a module is trained in place, in its own dtype)
    dtype         compute type; float16 comes with loss scaling
    engine_dtype  type of the tensors `weights` gives; default: `dtype`
    temperature   of sampling, where a row names no other; the loss uses what was sampled from
    truncation    the same for top-k, top-p and min-p (None: off); the reference is never truncated
    reference     policy the KL term is measured from; default: `model` as it is now. Loaded only
                  when `algorithm.beta` > 0, and never for an adapter, whose base it is
    lora          train this adapter on linear layers instead of the weights
    quantization  nf4: the base under the adapter in four bits
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
        lora: LoraSpec | None = None,
        quantization: str = "none",
    ) -> None:
        torch.manual_seed(seed)
        self.algorithm, self.config = algorithm, config
        self.base = model if isinstance(model, str) else None  # what an adapter belongs to
        self.objective = find_objective(algorithm.loss_type, algorithm.loss_args)
        constants = ("epsilon", "epsilon_high", "delta", "beta")
        self.clip = Clip(**{name: getattr(algorithm, name) for name in constants})
        self.compute_dtype = DTYPES[dtype]
        self.engine_dtype = DTYPES[engine_dtype or dtype]
        self.ranks = ranks.join()
        self.device = self.ranks.device
        self.rank, self.num_ranks = self.ranks.rank, self.ranks.count
        self.lora = lora
        if self.ranks.sharding:
            check_sharding(quantization, config.optim)
        self.ref: nn.Module | None = None
        self.refreshed: dict[str, nn.Parameter] = {}  # a reference that follows the policy
        if algorithm.beta > 0 and (reference is not None or not lora):
            self._add_reference(model if reference is None else reference)
        self.model = load_trained(model, self.device, lora, self.compute_dtype, seed, quantization)
        check_model(self.model)
        self.share_prompts = config.share_prompts and can_share_prompts(self.model)
        if config.gradient_checkpointing:
            checkpoint_activations(self.model)
        self.scorer = Scorer(
            model=self.model,
            policy=self.ranks.wrap(Policy(self.model), blocks(self.model), Policy.PASSES),
            reference=self.ref,
            ranks=self.ranks,
            compute_dtype=self.compute_dtype,
            temperature=temperature,
            truncation=truncation,
        )
        self.trained = trained_parameters(self.model, has_adapter=bool(lora))
        self.optimizer = make_optimizer(self.model, config, self.device)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.compute_dtype is torch.float16
        )
        self.steps = 0  # rollout batches seen
        self.updates = 0  # optimizer steps taken
        self._version: Version | None = None

    def _add_reference(self, source: str | PreTrainedModel) -> None:
        ref = frozen_copy(source, self.device)
        self.ref = self.ranks.wrap(Policy(ref), blocks(ref))
        if self.algorithm.ref_model_sync_steps:
            self.refreshed = dict(ref.named_parameters())

    # -- learning ---------------------------------------------------------------------------

    def step(self, rows: Sequence[Row]) -> Metrics:
        """One rollout batch: every optimizer step the recipe asks for.

        Returns means over trained tokens under TRL's names, averaged over the optimizer steps.
        Optimizer steps without any row are skipped, not taken on a zero gradient (moments and
        weight decay would still move the weights). Raises LearnerError on a gradient that is not
        finite, except under float16, where the scaler skips that step and it is counted.
        """
        started = time.perf_counter()
        tokens = sum(self.gather([sum(len(r.prompt_ids) + len(r.ids) for r in rows)]))
        split = split_minibatches(rows, self.algorithm.num_minibatches)
        parts = [[rows[i] for i in part] for part in split]
        updates = self.algorithm.num_iterations * len(parts)
        rates = [learning_rate(self.config, self.steps, i, updates) for i in range(updates)]
        prepared = [self._prepare(part, recompute=updates > 1) for part in parts]
        sums = Sums()
        norms: list[float] = []
        taken = skipped = 0
        for iteration in range(self.algorithm.num_iterations):
            for index, part in enumerate(prepared):
                set_rate(self.optimizer, rates[iteration * len(parts) + index])
                if not part:
                    continue
                norm = self._update(part, sums, sampled=iteration == 0)
                skipped += not math.isfinite(norm)
                taken += math.isfinite(norm)
                norms.append(norm)
        self.steps += 1
        self.updates += taken
        if self.refreshed and self.steps % self.algorithm.ref_model_sync_steps == 0:
            state.copy(self.trained, self.refreshed)
        if taken:
            self._version = None
        finite = [n for n in norms if math.isfinite(n)]
        metrics = sums.metrics(self.ranks, max(1, len(norms)))
        # Read first: on a card that is when the last optimizer step is known to be over.
        seconds = time.perf_counter() - started
        return {
            **metrics,
            "grad_norm": sum(finite) / max(1, len(finite)),
            "learning_rate": rates[0],
            "optimizer_steps": float(taken),
            "optimizer_steps/overflow": float(skipped),
            "optimizer_steps/without_rows": float(updates - len(norms)),
            "learner/micro_batches": float(sum(map(len, prepared))),
            "learner/tokens_per_second": tokens * self.algorithm.num_iterations / seconds,
        }

    def _prepare(self, rows: Sequence[Row], recompute: bool) -> list[Placed]:
        """Micro-batches of one optimizer step, with old and reference log-probs where needed.

        Tokens are chosen for their entropy here too: once, under the policy that sampled, so that
        further passes over the batch act on the same ones. Empty when no rank has a row.
        """
        batches, total = self._cut(rows)
        if self.objective.per_micro_batch:
            batches = [b.with_columns(weights=equal_weights(b.weights, total)) for b in batches]
        placed = [place(batch, self.device) for batch in batches]
        selects = self.objective.top_entropy_quantile < 1.0
        scored = [self.scorer.score_alone(part) for part in placed if recompute or selects]
        entropies = to_host(*(scores.entropy for scores in scored)) if selects else ()
        weights = [batch.weights for batch in batches]
        there = to_device(self.device, **chosen(weights, entropies, self.objective, self.gather))
        return [
            part.with_columns(
                logp_old=scored[i].logp if recompute else None,
                logp_ref=self.scorer.reference_logp(part) if self.algorithm.beta > 0 else None,
                high_entropy=there.get(f"high_entropy {i}"),
                entropy_weights=there.get(f"entropy_weights {i}"),
            )
            for i, part in enumerate(placed)
        ]

    def _cut(self, rows: Sequence[Row]) -> tuple[list[MicroBatch], int]:
        budget = self.config.tokens_per_micro_batch
        return even_micro_batches(rows, budget, self.share_prompts, self.gather)

    def loss(self, placed: Placed) -> tuple[Tensor, LossInputs, dict[str, Tensor]]:
        """The loss of one micro-batch, what it was computed from, and per-token metrics."""
        inputs = self.scorer.loss_inputs(placed, self.algorithm)
        with autocast_off(inputs.logp):  # `_update` has it on
            loss, metrics = loss_of(self.objective, inputs, self.clip)
        if inputs.correction is not None and self.algorithm.sampling_correction != "none":
            metrics["sampling/importance_sampling_ratio/mean"] = inputs.correction
        return loss, inputs, metrics

    def _update(self, part: Sequence[Placed], sums: Sums, sampled: bool) -> float:
        """One optimizer step; returns the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=torch.float32)
        # One cast of each weight for all micro-batches; sharded ones are others every time.
        alone = self.num_ranks == 1
        with casts_kept(self.scorer.autocast()) if alone else contextlib.nullcontext():
            for index, placed in enumerate(part):
                last = index == len(part) - 1
                wait = contextlib.nullcontext() if last else self.ranks.no_sync(self.scorer.policy)
                with wait:
                    loss, inputs, metrics = self.loss(placed)
                    with autocast_off(loss):
                        # Data-parallel wrappers average gradients over ranks; the weights are
                        # already global, so the sum is wanted.
                        self.scaler.scale(loss * self.num_ranks).backward()
                tokens = int(np.count_nonzero(placed.batch.weights))
                sums.add(loss, inputs, metrics, tokens=tokens, sampled=sampled)
        self.scaler.unscale_(self.optimizer)
        limit = self.config.max_grad_norm or math.inf
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(ranks.whole(nn.utils.clip_grad_norm_(trained, limit)))
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise LearnerError(
                f"step {self.steps + 1}: the gradient's norm is {norm}. The weights were not "
                "changed. Lower learner.learning_rate, or look for a loss that is not finite "
                f"(loss of the last micro-batch: {float(loss.detach())})."
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The policy's log-probs of each row's tokens, float32 [T]; NaN where not trained on."""
        return self.scorer.logprobs(rows, self._cut(rows)[0])

    def surprise(self, rows: Sequence[Row]) -> np.ndarray:
        """float64 [3, N] of the rows' trained tokens, in order: log-prob, entropy, variance."""
        return self.scorer.surprise(rows, self._cut(rows)[0])

    # -- weights and state ------------------------------------------------------------------

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Named tensors of the policy in the engine's dtype; tied weights come once.

        Of an adapter, its own tensors only. Sharded ones are gathered one at a time.
        """
        for name, parameter in self.trained.items():
            yield name, ranks.whole(parameter).detach().to(self.engine_dtype)

    def version(self) -> Version:
        """Optimizer steps taken, and the hash of what `weights` gives now.

        Raises LearnerError where the ranks hold different weights.
        """
        if self._version is None:
            found = self.gather([content_hash(self.weights())])
            if len(set(found)) > 1:
                raise LearnerError(
                    f"after step {self.steps} the learner ranks hold different weights: {found}"
                )
            self._version = Version(step=self.updates, hash=found[0])
        return self._version

    def canary(self) -> float:
        """Summed log-prob of the canary tokens, to compare with an engine's `Ack.canary`."""
        return self.scorer.canary()

    def gather(self, objects: Sequence[T]) -> list[T]:
        """The lists of all ranks, in rank order, on every rank."""
        return self.ranks.gather(objects)

    def save_model(self, path: str) -> None:
        """The model alone (float32), as `AutoModelForCausalLM.from_pretrained` loads it.

        An adapter is merged into what is written, and lies beside it under `adapter/`. What is read
        back is compared with the policy (`grpo/learner/saved.py`). Raises LearnerError.
        """
        logits = self.scorer.canary_logits()
        save_policy(self.model, path, self.ranks, logits, lora=self.lora, base=self.base)

    def save(self, path: str) -> None:
        """Model in Hugging Face layout (float32), optimizer, step counts and RNG, under `path`.

        The files do not depend on the number of ranks, nor on how they share the weights.
        """
        self.save_model(path)
        state.save(path, self)

    def load(self, path: str) -> None:
        """The state `save` wrote; training goes on bit for bit. Raises RunError."""
        state.load(path, self)
        self._version = None
