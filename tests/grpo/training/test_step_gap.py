"""An engine that is honest when it is probed and lies in the batches that are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo.commands.train import train_recipe
from grpo.config.config import from_dict
from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.config.schema.pretrain import PretrainLearner, PretrainModel
from grpo.data import SOURCES
from grpo.errors import AgreementError, EngineError
from grpo.learner.learner import TorchLearner
from grpo.stages.pretrain import pretrain
from grpo.training.agreement import Z_LIMIT
from grpo.training.probes import TOKENS
from grpo.training.step_limits import StepLimits
from grpo.types import Group, Rollout, Score
from tests.grpo.learner.test_exact import made
from tests.grpo.rows import three_groups, tiny_model, with_columns

from .test_agreement import Cold, Hot, gate, pair, prompts

LIAR = '''
from dataclasses import replace
import numpy as np
from grpo.rollout import ENGINES

def make(spec, how):
    """An engine that does `how` to whatever is no probe and no evaluation."""
    engine = ENGINES["torch"](spec=spec)
    submit, poll = engine.submit, engine.poll

    def trained(uid):
        return uid[0].isdigit()

    def asked(requests):
        hot = {r.uid: replace(r.sampling, temperature=2 * r.sampling.temperature) for r in requests}
        lies = how == "hot"
        submit(
            [replace(r, sampling=hot[r.uid]) if lies and trained(r.uid) else r for r in requests]
        )

    def answered(timeout=None):
        return [changed(c) if trained(c.request) else c for c in poll(timeout)]

    def changed(completion):
        (segment,) = completion.segments
        ids, logprobs = segment.ids, segment.logprobs
        if how == "nats":
            logprobs = logprobs - np.float32(3)
        if how == "tokens":
            ids = np.concatenate([np.full(len(ids) - 1, 5), ids[-1:]])
        if how == "short":
            logprobs = logprobs[1:] if completion.index == 0 else logprobs
        if how == "nan":
            logprobs = np.full_like(logprobs, np.nan)
        return replace(completion, segments=(replace(segment, ids=ids, logprobs=logprobs),))

    engine.submit, engine.poll = asked, answered
    return engine
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("base"))
    pretrain(
        SOURCES["parity"](bits=4, long_fraction=0.5),
        out_dir=folder,
        model=PretrainModel(
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            intermediate_size=64,
            max_position=64,
        ),
        learner=PretrainLearner(max_steps=30, batch_size=64, learning_rate=3e-3),
    )
    return folder


def run(base: str, folder: Path, how: str, prompts: int = 8, **limits: float) -> dict[str, Any]:
    engine = folder / "liar.py"
    engine.write_text(LIAR)
    return train_recipe(
        from_dict(
            {
                "name": "lies",
                "run": {"dir": str(folder / "run"), "threads": 1, "save_steps": 1},
                "model": {"path": base},
                "data": {
                    "source": "parity",
                    "args": {"bits": 4},
                    "template": "raw",
                    "max_prompt_length": 16,
                },
                "rollout": {
                    "prompts_per_step": prompts,
                    "num_generations": 4,
                    "max_completion_length": 16,
                    "engine": f"{engine}:make",
                    "engine_args": {"how": how},
                },
                "rewards": [{"name": "accuracy"}, {"name": "random", "weight": 0.1}],
                "learner": {"max_steps": 3, "learning_rate": 1e-3},
                "eval": {"num_tasks": 4, "num_samples": 1},
                "agreement": limits,
            }
        )
    )


def metrics_of(folder: Path) -> list[dict[str, float]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_an_honest_engine_trains_and_its_gap_is_in_the_metrics(base: str, tmp_path: Path) -> None:
    run(base, tmp_path, "nothing")
    lines = metrics_of(tmp_path / "run")
    assert all(line["sampling/sampling_logp_difference/mean"] < 1e-4 for line in lines)
    assert all(line["sampling/ess"] > 0.999 for line in lines)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        (
            "nats",
            AgreementError,
            r"differ from the learner's by 3\.0\d\d nats .*max_step_difference",
        ),
        ("tokens", AgreementError, r"differ from the learner's by \d+\.\d+ nats"),
        ("hot", AgreementError, r"differ from the learner's by 0\.\d+ nats"),
        ("short", EngineError, r"completion 0 of request '1/\d' has \d+ log-probs for \d+ tokens"),
        ("nan", EngineError, "has nan among its log-probs"),
    ],
)
def test_a_lie_in_a_batch_stops_the_run_before_it_is_delivered_or_saved(
    how: str, error: type[Exception], says: str, base: str, tmp_path: Path
) -> None:
    # without the checks of batches at the steps of the gate, which would see most of it earlier
    with pytest.raises(error, match=says):
        run(base, tmp_path, how, steps=0)
    folder = tmp_path / "run"
    assert not (folder / "metrics.jsonl").read_text()
    assert not list(folder.glob("checkpoints/step_0000*"))
    assert not list(folder.glob("ledger/*"))


def test_the_gate_looks_at_the_batch_of_its_step_before_it_is_learned_from(
    base: str, tmp_path: Path
) -> None:
    with pytest.raises(AgreementError, match=r"the engine, for the batch of step 1, with weights"):
        run(base, tmp_path, "hot", prompts=32, max_step_difference=0, min_ess=0)


def test_limits_can_be_lifted(base: str, tmp_path: Path) -> None:
    run(base, tmp_path, "nats", steps=0, max_step_difference=0, min_ess=0)
    lines = metrics_of(tmp_path / "run")
    assert len(lines) == 3
    assert lines[0]["sampling/sampling_logp_difference/mean"] == pytest.approx(3, abs=1e-3)


def test_a_limit_grows_with_what_the_schedule_allows() -> None:
    metrics = {"sampling/sampling_logp_difference/mean": 0.5, "sampling/ess": 0.9}
    StepLimits(difference=0.2, ess=0.5, staleness=2).check(4, metrics)
    with pytest.raises(
        AgreementError, match=r"times 2 for a schedule 1 steps behind.*learning_rate"
    ):
        StepLimits(difference=0.2, ess=0.5, staleness=1).check(4, metrics)
    with pytest.raises(AgreementError, match="step 4"):
        StepLimits(difference=0.2, ess=0.5).check(4, metrics | dict.fromkeys(metrics, float("nan")))
    with pytest.raises(AgreementError, match=r"sample size of 0\.400 .*agreement\.min_ess = 0\.5"):
        StepLimits(difference=1.0, ess=0.5).check(4, metrics | {"sampling/ess": 0.4})
    StepLimits(difference=0.2, ess=0.5).check(4, {})  # nothing was trained on


def test_the_effective_sample_size_is_of_the_ratios_before_any_correction() -> None:
    """Worked out here in numpy; two ratios lie above the bound of 10."""
    model = tiny_model(dtype=torch.float64)
    rows = made(three_groups(), "dapo")
    found: list[np.ndarray] = []
    for correction in ("token_truncate", "none"):
        algorithm = Algorithm(sampling_correction=correction)
        learner = TorchLearner(model, algorithm=algorithm, config=Config(learning_rate=1e-9))
        own = np.concatenate(learner.logprobs(rows)).astype(np.float64)
        claimed = own - np.tile([0.0, 3.0, -0.4, 0.1], len(own))[: len(own)]
        ends = np.cumsum([len(row.ids) for row in rows])[:-1]
        given = np.split(claimed.astype(np.float32), ends)
        asked = [
            with_columns(row, logp_sampler=part) for row, part in zip(rows, given, strict=True)
        ]
        metrics = learner.step(asked)
        live = np.concatenate([row.columns["weights"] != 0 for row in rows])
        ratio = np.minimum(np.exp(own - claimed), 10)[live]
        expected = ratio.sum() ** 2 / (live.sum() * np.square(ratio).sum())
        assert metrics["sampling/ess"] == pytest.approx(expected, rel=1e-5)
        found.append(metrics["sampling/ess"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] < 0.8


# The batch of a step with a check


def batch(engine: Any, samples: int = 60, **sampling: Any) -> list[Group]:
    from grpo.rollout.collect import collect
    from grpo.types import Request

    asked = gate(**sampling)
    requests = [
        Request(uid=f"1/{i}", ids=p.ids, n=samples, sampling=asked.probes.sampling, key=(9, i))
        for i, p in enumerate(prompts())
    ]
    score = Score(value=0.0, status="wrong")
    return [
        Group(
            prompt=prompts()[int(uid[2:])],
            visit=0,
            rollouts=tuple(
                Rollout(prompt=prompts()[int(uid[2:])], completion=c, score=score)
                for c in completions
            ),
        )
        for uid, completions in collect(engine, requests)
    ]


@pytest.mark.parametrize(("kind", "word"), [(Hot, "random"), (Cold, "certain")])
def test_a_batch_drawn_at_another_temperature_than_it_reports_is_caught(
    kind: Any, word: str
) -> None:
    engine, learner = pair(kind, initializer_range=0.5)
    engine.version = learner.version()
    with pytest.raises(AgreementError, match=rf"batch of step 1,.* too {word}"):
        gate(max_tokens=64).check_batch(batch(engine, max_tokens=64), learner, 1)


def test_a_right_batch_passes_and_says_what_was_seen() -> None:
    engine, learner = pair(initializer_range=0.5)
    engine.version = learner.version()
    metrics = gate(max_tokens=64).check_batch(batch(engine, max_tokens=64), learner, 1)
    assert metrics["agreement/batch_z"] < Z_LIMIT
    assert TOKENS <= metrics["agreement/batch_tokens"] < TOKENS + 64
    assert metrics["agreement/batch_difference_mean"] < 1e-4


def test_nothing_is_said_of_a_batch_of_older_weights_or_of_a_few_tokens() -> None:
    engine, learner = pair(Hot, initializer_range=0.5)
    assert gate().check_batch(batch(engine), learner, 1) == {}  # another version
    engine.version = learner.version()
    assert gate().check_batch(batch(engine, samples=1), learner, 1) == {}
