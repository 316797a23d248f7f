"""TRL's batch arithmetic (`GRPOConfig.__post_init__`, `GRPOTrainer._get_train_sampler`).

    micro-step   per_device_train_batch_size completions on each process
    generation   steps_per_generation micro-steps: a rollout batch, gone through num_iterations
                 times
    optimizer    one step every gradient_accumulation_steps micro-steps
    epoch        len(rows) // prompts whole generations; a last short one is dropped

A rollout batch here is a generation there. Its optimizer steps are
`num_iterations * steps_per_generation / gradient_accumulation_steps`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from grpo.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Batches:
    """How much a run samples and learns.

    prompts      of a rollout batch
    minibatches  optimizer steps of one pass over it
    updates      optimizer steps of a rollout batch, all passes together
    per_epoch    rollout batches of an epoch; 0 where the number of rows is not known
    optimizer_steps  of the whole run, TRL's `max_steps`
    """

    prompts: int
    minibatches: int
    updates: int
    per_epoch: int
    optimizer_steps: int

    @property
    def rollout_steps(self) -> int:
        """Rollout batches of the whole run: `learner.max_steps`."""
        return self.optimizer_steps // self.updates

    def steps(self, optimizer_steps: float) -> int:
        """Rollout batches nearest above so many optimizer steps; below 1 a share of the run."""
        if optimizer_steps < 1:
            optimizer_steps = math.ceil(self.optimizer_steps * optimizer_steps)
        return max(1, math.ceil(optimizer_steps / self.updates))


def batches_of(config: Any, *, num_rows: int | None, num_processes: int = 1) -> Batches:
    """The batches of a `GRPOConfig`. Raises RecipeError, which names the fields.

    num_rows: rows of the training data, None where they are not known, which only `max_steps` can
    do without; num_processes: learner ranks.
    """
    accumulation = _positive(config, "gradient_accumulation_steps")
    group = _positive(config, "num_generations")
    across = _positive(config, "per_device_train_batch_size") * num_processes
    completions, per_generation = _generation(config, across, accumulation)
    if group < 2:
        raise RecipeError(
            f"num_generations = {group}: an advantage compares completions of a prompt; valid: 2 "
            "or more"
        )
    if completions % group:
        raise RecipeError(
            f"num_generations = {group} does not divide the {completions} completions of a "
            f"generation batch; valid: {_divisors(completions)}, or change "
            "per_device_train_batch_size or gradient_accumulation_steps"
        )
    prompts, minibatches = completions // group, per_generation // accumulation
    if prompts % minibatches:
        raise RecipeError(
            f"steps_per_generation = {per_generation} deals the {prompts} prompts of a batch to "
            f"{minibatches} optimizer steps, and whole groups are dealt out here; choose sizes so "
            f"that {minibatches} divides the prompts"
        )
    updates = minibatches * _positive(config, "num_iterations")
    per_epoch = (num_rows or 0) // prompts
    if not per_epoch and num_rows is not None:
        raise RecipeError(
            f"per_device_train_batch_size = {config.per_device_train_batch_size} makes batches of "
            f"{prompts} prompts, and there are {num_rows} rows: TRL would train no step; use "
            "smaller batches or more rows"
        )
    return Batches(
        prompts=prompts,
        minibatches=minibatches,
        updates=updates,
        per_epoch=per_epoch,
        optimizer_steps=_optimizer_steps(config, per_epoch, updates),
    )


def _generation(config: Any, across: int, accumulation: int) -> tuple[int, int]:
    """(completions, micro-steps) of a generation batch. Raises RecipeError."""
    size, steps = config.generation_batch_size, config.steps_per_generation
    if size is not None and steps is not None:
        raise RecipeError(
            f"generation_batch_size = {size} and steps_per_generation = {steps} say the same "
            "twice; give one of them"
        )
    if size is not None:
        if size < 1 or size % across:
            raise RecipeError(
                f"generation_batch_size = {size} is not a multiple of the {across} completions "
                "that all processes take in a micro-step (per_device_train_batch_size)"
            )
        steps = size // across
    steps = accumulation if steps is None else steps
    if steps < 1 or steps % accumulation:
        name = "steps_per_generation" if size is None else "generation_batch_size"
        given = steps if size is None else size
        raise RecipeError(
            f"{name} = {given} ends a rollout batch within an optimizer step of "
            f"gradient_accumulation_steps = {accumulation}; leave it out, or make it a multiple: "
            f"{', '.join(str(accumulation * k * (1 if size is None else across)) for k in (1, 2))}"
        )
    return across * steps, steps


def _optimizer_steps(config: Any, per_epoch: int, updates: int) -> int:
    """TRL's `max_steps`, or that of its epochs. Raises RecipeError where a batch would be cut."""
    steps = config.max_steps
    if steps <= 0:
        name, given = "num_train_epochs", config.num_train_epochs
        if not per_epoch:
            raise RecipeError(
                f"num_train_epochs = {given} needs the number of rows, which is not known; set "
                "max_steps, the optimizer steps of the run"
            )
        steps = math.ceil(given * per_epoch * updates)
    else:
        name, given = "max_steps", steps
    if steps < 1 or steps % updates:
        below = steps // updates * updates
        valid = " or ".join(str(s) for s in (below, below + updates) if s > 0)
        raise RecipeError(
            f"{name} = {given} is {steps} optimizer steps, and a rollout batch has {updates} "
            f"(num_iterations, steps_per_generation); set max_steps to {valid}"
        )
    return steps


def _positive(config: Any, name: str) -> int:
    value = getattr(config, name)
    if value is None or value < 1:
        raise RecipeError(f"{name} = {value!r} should be a whole number, 1 or more")
    return value


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(2, number + 1) if number % d == 0) or "none"
