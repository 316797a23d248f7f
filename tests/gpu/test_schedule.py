"""An engine's thread and a learner's on one card: what is sampled does not depend on who was quick.

First suspicion: `one_step_off` differs from itself with pauses, a tensor that one thread reads
while the other writes it (both use one stream, so kernels follow one another: then Python's side);
log-probs of a version differ, weights that had half arrived; both modes of `sync` differ, the steps
themselves (test_learner says so too).
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from grpo.method.table import bound_advantage
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.training.loop import TrainerParts, train
from grpo.training.schedule import RolloutScheduler
from grpo.types import Sampling, Version
from tests.gpu.learners import learner
from tests.grpo.rows import EOS, tiny_model
from tests.grpo.training.pacing import rewards, spec, threads

STEPS = 5


class Letters:
    """A tokenizer of single letters."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(97 + i) for i in ids)


def even(*, completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(ids) % 2) for ids in completion_ids]


def built(device: torch.device, pause: float = 0.0, **mode: Any) -> tuple[TrainerParts, list[Any]]:
    """The parts of a run whose engine has weights of its own; and the weights of every version."""
    model = tiny_model(dtype=torch.float32)
    order = spec(sampling=Sampling(max_tokens=10, eos_ids=(EOS,)), num_generations=6)
    engine = TorchEngine(model.to(device), Letters(), version=Version(step=0, hash=""))
    made = learner(model, device, config={"learning_rate": 2e-2})
    kept: list[Any] = []
    step = made.step

    def slow(rows: Any) -> Any:
        kept.append(_copied(made))
        time.sleep(pause)
        return step(rows)

    made.step = slow
    rollouts = RolloutScheduler(order, engine, rewards(even), last=STEPS, **mode)
    parts = TrainerParts(
        spec=order,
        rollouts=rollouts,
        learner=made,
        advantage=bound_advantage("grpo"),
        loss_type="dapo",
        beta=0.0,
        mask_truncated=False,
        num_minibatches=1,
    )
    return parts, kept


def _copied(made: Any) -> Any:
    """The model as it is now, on the host."""
    model = tiny_model(dtype=torch.float32)
    weights = {name: tensor.cpu() for name, tensor in made.weights()}
    model.load_state_dict(weights, strict=False)
    return model


def trained(device: torch.device, **settings: Any) -> dict[str, Any]:
    parts, kept = built(device, **settings)
    with closing(parts.rollouts):
        parts.rollouts.deliver(parts.learner, 0)
        steps = list(train(parts, start=0, max_steps=STEPS))
    assert threads() == []
    weights = b"".join(w.cpu().numpy().tobytes() for _, w in parts.learner.weights())
    return {
        "steps": steps,
        "kept": kept,
        "weights": weights,
        "losses": [s.metrics["loss"] for s in steps],
    }


def tokens(found: dict[str, Any], step: int) -> list[list[int]]:
    return [r.completion.ids.tolist() for g in found["steps"][step].groups for r in g.rollouts]


def test_without_staleness_async_is_sync(device: torch.device) -> None:
    whole = trained(device)
    ahead = trained(device, staleness=0, in_flight="continue")
    assert ahead["losses"] == whole["losses"]
    assert ahead["weights"] == whole["weights"]


def test_one_step_off_does_not_depend_on_who_is_quick(device: torch.device) -> None:
    """The learner at full speed beside the engine, and one that waits until the engine is done."""
    beside = trained(device, staleness=1)
    apart = trained(device, staleness=1, pause=0.5)
    ages = [s.metrics["staleness/max"] for s in beside["steps"]]
    assert ages == [0, 1, 1, 1, 1]
    for step in range(STEPS):
        assert tokens(beside, step) == tokens(apart, step), f"batch {step + 1}"
    assert beside["losses"] == apart["losses"]
    assert beside["weights"] == apart["weights"]
    # its first batch is of the first weights, as that of `sync`
    assert tokens(beside, 0) == tokens(trained(device), 0)


@pytest.mark.parametrize("pause", [0.0, 0.05])
@pytest.mark.parametrize(
    "mode", [{"staleness": 1}, {"staleness": 2, "in_flight": "continue"}], ids=["off", "async"]
)
def test_every_token_is_of_the_version_it_names(
    device: torch.device, mode: dict[str, Any], pause: float
) -> None:
    """Its log-prob is that of those very weights, on the host, whatever was going on beside it.

    2e-4: float32 logits of two machines. Log-probs of two versions differ by 0.1 and more. After a
    change of weights within a completion its keys and values are of the old ones: there only the
    tokens before the change are compared.
    """
    found = trained(device, pause=pause, **mode)
    compared, other = 0, []
    for step in found["steps"]:
        for group in step.groups:
            for rollout in group.rollouts:
                segment = rollout.completion.segments[0]
                if not len(segment.ids):
                    continue
                right = _logprobs(found["kept"][segment.version.step], rollout.prompt.ids, segment)
                np.testing.assert_allclose(segment.logprobs, right, atol=2e-4)
                compared += len(segment.ids)
                wrong = _logprobs(found["kept"][-1], rollout.prompt.ids, segment)
                if segment.version.step == 0:
                    other.append(np.abs(wrong - segment.logprobs).max())
    assert compared > 200
    assert np.median(other) > 0.05, "the test could not tell one version from another"
    limit = mode["staleness"]
    assert max(s.metrics["staleness/max"] for s in found["steps"]) <= limit


@torch.no_grad()
def _logprobs(model: Any, prompt: tuple[int, ...], segment: Any) -> np.ndarray:
    ids = torch.tensor([[*prompt, *segment.ids.tolist()]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logits.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
