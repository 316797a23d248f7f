"""What happens in a run, told to transformers' callbacks as transformers' `Trainer` tells it.

`Bridge` is a callback of the rl stage (`grpo/stages/rl_callbacks.py`). It keeps the `TrainerState`,
logs what TRL logs under TRL's names (docs/trainer.md has the table) and sends the events. A step
here is a rollout batch; `global_step` counts optimizer steps, as in TRL.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from transformers import TrainerCallback
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    ExportableState,
    TrainerControl,
    TrainerState,
)

from grpo.config.trl.batches import Batches
from grpo.errors import RecipeError
from grpo.stages.rl_callbacks import EVALUATE, SAVE, STOP
from grpo.types import Group, Metrics

LAST = ("grad_norm", "learning_rate", "num_tokens")  # logged as of the last step, not averaged
NOT_SENT = ("on_pre_optimizer_step", "on_optimizer_step", "on_substep_end")


class Flow(DefaultFlowCallback):
    """When something is logged. Evaluations and checkpoints are the run's own."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for a log by `logging_strategy`, and for the end after the last step."""
        every = max(1, state.logging_steps)
        is_first = state.global_step == state.first_step and args.logging_first_step
        if args.logging_strategy == "steps" and (_crosses(state, every) or is_first):
            control.should_log = True
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for a log by `logging_strategy`."""
        control.should_log = control.should_log or args.logging_strategy == "epoch"
        return control


class State(TrainerState):
    """transformers' record, and the optimizer steps of one step here."""

    first_step: int = 1


def _crosses(state: State, every: int) -> bool:
    """Whether a multiple of `every` lies in the optimizer steps of this batch."""
    return state.global_step // every > (state.global_step - state.first_step) // every


class Handler(CallbackHandler):
    """transformers' list of callbacks, without those whose events are not sent."""

    def add_callback(self, callback: Any) -> None:
        """Add one, or make it of its class. Raises RecipeError."""
        kind = callback if isinstance(callback, type) else cast("type[Any]", type(callback))
        for event in NOT_SENT:
            if getattr(kind, event, None) is not getattr(TrainerCallback, event):
                raise RecipeError(
                    f"callback {kind.__name__} wants {event}, which is not sent: the learner takes "
                    "the optimizer steps of a batch by itself; use on_step_begin or on_step_end"
                )
        super().add_callback(callback)


class Bridge:
    """One run's events, sent to `handler`; `state` is kept between them."""

    __name__ = "trainer"

    def __init__(self, *, args: Any, state: State, handler: Handler, batches: Batches) -> None:
        self.args = args
        self.state = state
        self.handler = handler
        self.batches = batches
        self.control = TrainerControl()
        self.interval: list[Metrics] = []  # of the steps since the last log
        self.losses: list[float] = []  # of all steps of this call
        self.scored: dict[str, float] = {}  # figures of rewards, without a number
        self.began = time.time()
        self.learner: Any = None

    def begin(self, parts: Any, start: int) -> None:
        """Training begins, or goes on after step `start`."""
        self.learner = parts.learner
        self.handler.model = self.learner.model
        self.began = time.time()
        for name, _, _ in parts.rollouts.rewards.rewards:
            self.scored |= {f"rewards/{name}/{figure}": math.nan for figure in ("mean", "std")}
        self._place(start)
        self._send("on_train_begin")

    def begin_step(self, step: int) -> None:
        """A batch is about to be sampled."""
        if (step - 1) % self.batches.per_epoch == 0:
            self._send("on_epoch_begin")
        self._send("on_step_begin")

    def __call__(self, result: Any) -> list[str]:
        """A batch was learned from; what the callbacks ask for."""
        self._place(result.step)
        self.state.num_input_tokens_seen += _tokens(result.groups)
        found = {**self.scored, **result.metrics, **terminated(result.groups)}
        found |= spreads(result.groups, of_batch=self.args.scale_rewards == "batch")
        found["learning_rate"] = self.learner.optimizer.param_groups[0]["lr"]  # of the last one
        self.interval.append(found | {"num_tokens": float(self.state.num_input_tokens_seen)})
        self.losses.append(result.metrics["loss"])
        self._send("on_step_end")
        if result.step % self.batches.per_epoch == 0 or self.control.should_training_stop:
            self._send("on_epoch_end")
        if self.control.should_epoch_stop:
            raise RecipeError(
                "control.should_epoch_stop = True is not honored: rows come in one stream, epoch "
                "after epoch; set control.should_training_stop to end the run"
            )
        control = self.control
        if control.should_log:
            self.log(averaged(self.interval))
            self.interval.clear()
        ends = control.should_training_stop and self.state.global_step < self.state.max_steps
        wanted = {STOP: ends, SAVE: control.should_save, EVALUATE: control.should_evaluate}
        return [name for name, is_wanted in wanted.items() if is_wanted]

    def evaluated(self, _name: str, found: Mapping[str, Any]) -> None:
        """Held-out tasks were asked."""
        metrics = evaluation(found)
        self.log(metrics)
        metrics["epoch"] = self.state.epoch
        self._send("on_evaluate", metrics=metrics)

    def saved(self, _step: int) -> None:
        """A checkpoint was written."""
        self._send("on_save")

    def end(self, _step: int) -> None:
        """Training has ended; the model is about to be saved."""
        self.log(self.speed())
        self._send("on_train_end")

    def log(self, logs: dict[str, Any]) -> None:
        """Add to `log_history`, and send `on_log`."""
        logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._send("on_log", logs=logs)

    def speed(self) -> dict[str, Any]:
        """transformers' figures of the whole run; seconds, and completions a second."""
        seconds = time.time() - self.began
        steps = len(self.losses)
        completions = steps * self.batches.prompts * self.args.num_generations
        return {
            "train_runtime": round(seconds, 4),
            "train_samples_per_second": round(completions / seconds, 3),
            "train_steps_per_second": round(steps * self.batches.updates / seconds, 3),
            "total_flos": 0.0,
            "train_loss": sum(self.losses) / max(1, steps),
        }

    def _place(self, step: int) -> None:
        self.state.global_step = step * self.batches.updates
        self.state.epoch = step / self.batches.per_epoch

    def _send(self, event: str, **more: Any) -> None:
        send = getattr(self.handler, event)
        self.control = send(self.args, self.state, self.control, **more)


def first_state(args: Any, batches: Batches, callbacks: Sequence[Any]) -> State:
    """The state before the first step."""
    total = batches.optimizer_steps
    epochs = math.ceil(batches.rollout_steps / batches.per_epoch)
    state = State(
        max_steps=total,
        num_train_epochs=epochs,
        logging_steps=_steps(args.logging_steps, total),
        eval_steps=_steps(args.eval_steps or args.logging_steps, total),
        save_steps=_steps(args.save_steps, total),
        train_batch_size=args.per_device_train_batch_size,
        stateful_callbacks=cast(
            Any, [one for one in callbacks if isinstance(one, ExportableState)]
        ),
    )
    state.first_step = batches.updates
    return state


def _steps(every: float, total: int) -> int:
    """Optimizer steps; below 1 a share of all."""
    return math.ceil(total * every) if every < 1 else int(every)


def averaged(steps: Sequence[Metrics]) -> dict[str, Any]:
    """TRL's log of several steps: means of what is finite, `LAST` as of the last step."""
    names = list(dict.fromkeys(name for step in steps for name in step))
    first = [name for name in ("loss", "grad_norm", "learning_rate") if name in names]
    logs: dict[str, Any] = {}
    for name in [*first, *(name for name in names if name not in first)]:
        values = [step[name] for step in steps if name in step and not math.isnan(step[name])]
        used = values[-1:] if name in LAST else values
        logs[name] = sum(used) / len(used) if used else None
    return logs


def terminated(groups: Sequence[Group]) -> Metrics:
    """Shortest and longest completion that ended by itself, in tokens; 0 where none did."""
    lengths = [
        len(rollout.completion)
        for group in groups
        for rollout in group.rollouts
        if rollout.completion.finish == "stop"
    ]
    return {
        "completions/min_terminated_length": float(min(lengths, default=0)),
        "completions/max_terminated_length": float(max(lengths, default=0)),
    }


def spreads(groups: Sequence[Group], *, of_batch: bool) -> Metrics:
    """TRL's figures of spread where ours are others: NaN of fewer than two scores, no groups' zero.

    of_batch: rewards are divided by the spread of the batch, and whether that is 0 is counted. Else
    it is the share of groups with at least two scores, all of them equal.
    """
    scores = [[rollout.score for rollout in group.rollouts] for group in groups]
    values = [[s.value for s in group if s.value is not None] for group in scores]
    whole = [value for group in values for value in group]
    zeros = [len(group) > 1 and len(set(group)) == 1 for group in ([whole] if of_batch else values)]
    found = {"frac_reward_zero_std": sum(zeros) / max(1, len(zeros))}
    counts: dict[str, int] = {"reward_std": len(whole)}
    for score in (score for group in scores for score in group):
        for name, part in score.parts.items():
            key = f"rewards/{name}/std"
            counts[key] = counts.get(key, 0) + (part is not None)
    return found | {name: math.nan for name, count in counts.items() if count < 2}


def _tokens(groups: Iterable[Group]) -> int:
    """Tokens of prompts and completions, a prompt counted with each of its completions."""
    return sum(
        len(rollout.prompt.ids) + len(rollout.completion)
        for group in groups
        for rollout in group.rollouts
    )


def evaluation(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation under TRL's names; None: nothing was scored."""
    metrics: dict[str, Any] = {"eval_reward": found["mean_reward"]}
    for name, figures in found["rewards"].items():
        metrics[f"eval_rewards/{name}/mean"] = figures["mean"]
    metrics["eval_completions/mean_length"] = found["mean_length"]
    metrics["eval_completions/clipped_ratio"] = found["clipped_ratio"]
    return metrics
