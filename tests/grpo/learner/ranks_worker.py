"""What `test_ranks.py` runs in several processes: python ranks_worker.py SHARED_FOLDER."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo.config.schema import Algorithm, Learner
from grpo.errors import LearnerError
from grpo.learner.learner import TorchLearner
from grpo.types import LoraSpec

BENCH = Path(__file__).parents[3] / "benchmarks" / "bench_ranks.py"
spec = importlib.util.spec_from_file_location("bench_ranks", BENCH)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

LAUNCHES = {"one": 1, "ddp_2": 2, "fsdp2_2": 2}
RANK = "RANK"


def make(lora=None, seed=0, gradient_checkpointing=False, **algorithm):
    overrides = {"tie_word_embeddings": True}  # one tensor under two names
    model = bench.tiny_llama("float64" if not lora else "float32", seed, **overrides)
    return TorchLearner(
        model,
        algorithm=Algorithm(loss_type="dapo", **algorithm),
        config=Learner(
            learning_rate=1e-2,
            max_grad_norm=0.1,
            weight_decay=0.1,
            tokens_per_micro_batch=64,
            gradient_checkpointing=gradient_checkpointing,
        ),
        lora=lora,
    )


def share(learner, deal="one_row"):
    rows = bench.some_rows("dapo")
    if learner.num_ranks == 1:
        return rows
    return bench.dealt(rows, deal, learner.rank, learner.num_ranks)


def flat(learner):
    return torch.cat([t.flatten().double() for _, t in learner.weights()]).numpy()


def trained(folder, name):
    """Several optimizer steps, everything a loop asks of a learner, and checkpoints both ways."""
    said, arrays = {}, {}
    for kind, arguments in {
        "full": {"beta": 0.1, "num_minibatches": 2, "gradient_checkpointing": True},
        "lora": {"lora": LoraSpec(rank=4), "beta": 0.1},
        "dora": {"lora": LoraSpec(rank=4, use_dora=True), "beta": 0.1},
    }.items():
        learner = make(**arguments)
        for deal in ("one_row", "no_row"):
            metrics = learner.step(share(learner, deal))
        arrays[f"{kind}/weights"] = flat(learner)
        timed = ("learner/tokens_per_second", "learner/micro_batches")
        said[kind] = {k: v for k, v in metrics.items() if k not in timed}
        said[f"{kind}/canary"] = learner.canary()
        # log-probs and surprise of unequal numbers of rows, none on the last rank
        rows = share(learner, "no_row")
        arrays[f"{kind}/surprise"] = np.concatenate(
            learner.gather([learner.surprise(rows)]), axis=1
        )[0]
        found = [logp for part in learner.gather([learner.logprobs(rows)]) for logp in part]
        arrays[f"{kind}/logprobs"] = np.concatenate(found)
        said[f"{kind}/version"] = learner.version().step
        learner.save(str(folder / name / kind))
        learner.step(share(learner))
        arrays[f"{kind}/after"] = flat(learner)
    if os.environ.get(RANK, "0") == "0":
        np.savez(folder / f"{name}.npz", **arrays)
        (folder / f"{name}.json").write_text(json.dumps(said))


def resumed(folder, name, source):
    """One step from the checkpoint that `source` wrote, in a learner that had other weights."""
    arrays = {}
    for kind, arguments in {
        "full": {"beta": 0.1, "num_minibatches": 2},
        "lora": {"lora": LoraSpec(rank=4), "beta": 0.1},
        "dora": {"lora": LoraSpec(rank=4, use_dora=True), "beta": 0.1},
    }.items():
        learner = make(**arguments, seed=0)
        learner.step(share(learner))
        learner.canary()
        learner.load(str(folder / source / kind))
        learner.step(share(learner))
        arrays[kind] = flat(learner)
    if os.environ.get(RANK, "0") == "0":
        np.savez(folder / f"{name}_from_{source}.npz", **arrays)


def disagreeing():
    """A rank whose weights went astray is noticed before they are handed over."""
    learner = make()
    if learner.rank == 1:
        with torch.no_grad():
            next(iter(learner.trained.values())).add_(1.0)
    with pytest.raises(LearnerError, match="different weights"):
        learner.version()

    def full_disk():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        learner.ranks.on_first(full_disk)


def overflowing():
    """float16: an overflow that one rank alone sees is skipped by all of them."""
    learner = TorchLearner(
        bench.tiny_llama("float32"),
        algorithm=Algorithm(),
        config=Learner(learning_rate=1e-2, tokens_per_micro_batch=64),
        dtype="float16",
    )
    before = learner.version()
    rows = share(learner, "one_row")
    if learner.rank == 0:
        rows[0].columns["advantages"][:] = 1e30
    assert learner.step(rows)["optimizer_steps/overflow"] == 1
    assert learner.version() == before


if __name__ == "__main__":
    bench.preload()
    place = Path(sys.argv[1])
    for launch, count in LAUNCHES.items():
        bench.in_ranks(count, lambda n=launch: trained(place, n), bench.settings(launch))
    for launch, origin in {"one": "fsdp2_2", "ddp_2": "one", "fsdp2_2": "one"}.items():
        bench.in_ranks(
            LAUNCHES[launch],
            lambda n=launch, o=origin: resumed(place, n, o),
            bench.settings(launch),
        )
    bench.in_ranks(2, disagreeing, {})
    for launch in ("ddp_2", "fsdp2_2"):
        bench.in_ranks(2, overflowing, bench.settings(launch))
