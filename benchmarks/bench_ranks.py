"""Gradients of several learner ranks against one rank: how far apart, and does anything hang.

    python benchmarks/bench_ranks.py [one ddp_2 fsdp2_2 ddp_4]

Real processes over gloo, one thread each: one rank, 2 and 4 ranks of DDP, 2 of FSDP2. All
learn the same rows, dealt out three ways: balanced, one rank with a single row, one rank with none.
In float64 (norms, rotary embedding and softmax too, which the stock model computes in float32) the
gradients have to be equal to 1e-10; in float32 no further from the float64 gradient than 1.5 times
what the one-rank float32 computation is. Prints one JSON object; exits 1 if a bar is missed.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OBJECTIVES = ("grpo", "dr_grpo", "dapo", "bnpo")
DEALS = ("balanced", "one_row", "no_row")
LAUNCHES = {"one": 1, "ddp_2": 2, "fsdp2_2": 2, "ddp_4": 4}
BAR_FLOAT64 = 1e-10
BAR_FLOAT32 = 1.5
SECONDS = 200  # for one launch, before it counts as hung


def measure() -> dict[str, Any]:
    """{case: relative error of the gradient}, the float32 errors of one rank, and the verdict."""
    return json.loads(run_script(__file__))


def run_script(script: str, *arguments: str) -> str:
    """What `python script arguments` prints, in an interpreter of its own, one thread.

    Accelerate keeps the state of a process for good, so ranks are never forked from the caller's.
    Raises RuntimeError with what it wrote if it fails; leaves no process behind.
    """
    process = subprocess.Popen(
        [sys.executable, script, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=4 * SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{err[-6000:]}")
    return out


def in_ranks(ranks: int, work: Callable[[], None], variables: Mapping[str, str]) -> None:
    """Run `work` in `ranks` forks of this process that torch can connect.

    Raises RuntimeError if one fails or they hang. What is imported before is imported once.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(rank: int) -> None:
        os.environ.update(variables)
        if ranks > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {"WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        work()
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=start, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    end = time.monotonic() + SECONDS
    try:
        while any(process.exitcode is None for process in processes):
            if any(process.exitcode for process in processes) or time.monotonic() > end:
                break
            time.sleep(0.05)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    if codes != [0] * ranks:
        raise RuntimeError(f"exit codes of {ranks} ranks (None: hung, or left waiting): {codes}")


def compare(launches: Mapping[str, int]) -> dict[str, Any]:
    """`measure`, in this process's forks; the first of `launches` has one rank."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, ranks in launches.items():
            file = Path(folder) / f"{name}.npz"
            in_ranks(ranks, lambda to=file: write_gradients(to), settings(name))
            found[name] = dict(np.load(file))
    one = found.pop("one")
    single = {
        objective: _error(one[f"float32/{objective}"], one[f"float64/{objective}"])
        for objective in OBJECTIVES
    }
    float64: dict[str, float] = {}
    float32: dict[str, float] = {}
    ratios: list[float] = []
    for name, gradients_of in found.items():
        for case, gradient in gradients_of.items():
            dtype, objective, deal = case.split("/")
            error = _error(gradient, one[f"float64/{objective}"])
            if dtype == "float64":
                float64[f"{name}/{objective}/{deal}"] = error
            else:
                float32[f"{name}/{objective}/{deal}"] = error
                ratios.append(error / single[objective])
    return {
        "float64": float64,
        "float32": float32,
        "float32_one_rank": single,
        "worst_float64": max(float64.values()),
        "worst_float32_over_one_rank": max(ratios),
        "passed": max(float64.values()) <= BAR_FLOAT64 and max(ratios) <= BAR_FLOAT32,
    }


def settings(name: str) -> dict[str, str]:
    """What `accelerate launch` puts into the environment for a launch of that name."""
    return {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if "fsdp2" in name else {}


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


# -- what each process does ---------------------------------------------------------------------


def in_float64(model: Any) -> Any:
    """A stock Llama whose norms and rotary embedding compute in its own float64."""
    import torch

    class Rotary(torch.nn.Module):
        def __init__(self, frequencies: torch.Tensor) -> None:
            super().__init__()
            self.frequencies = torch.nn.Buffer(frequencies, persistent=False)

        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
            angles = position_ids[..., None].to(x.dtype) * self.frequencies
            both = torch.cat((angles, angles), dim=-1)
            return both.cos(), both.sin()

    def norm(old: Any) -> torch.nn.Module:
        return torch.nn.RMSNorm(len(old.weight), old.variance_epsilon).double()

    body = model.double().model
    for layer in body.layers:
        layer.input_layernorm = norm(layer.input_layernorm)
        layer.post_attention_layernorm = norm(layer.post_attention_layernorm)
    body.norm = norm(body.norm)
    body.rotary_emb = Rotary(body.rotary_emb.inv_freq.double())
    return model


def tiny_llama(dtype: str, seed: int = 0, **overrides: Any) -> Any:
    """A small Llama with random weights; float64 all through where `dtype` says so."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings | overrides))
    return in_float64(model) if dtype == "float64" else model


def some_rows(loss_type: str) -> list[Any]:
    """Rows of 6 groups of unequal size, with the weights that `loss_type` gives them."""
    from grpo.method.objective import Totals
    from grpo.method.table import find_objective
    from grpo.types import Row

    rng = np.random.default_rng(0)
    lengths = [rng.integers(2, 20, 3) for _ in range(6)]
    totals = Totals(rows=18, tokens=int(np.sum(lengths)))
    weight = find_objective(loss_type).weight
    rows: list[Row] = []
    for group, sizes in enumerate(lengths):
        prompt = tuple(rng.integers(0, 61, int(rng.integers(3, 12))).tolist())
        for size in sizes.tolist():
            rows.append(
                Row(
                    group=group,
                    prompt_ids=prompt,
                    ids=rng.integers(0, 61, size),
                    mask=np.ones(size, dtype=np.bool_),
                    columns={
                        "logp_sampler": rng.uniform(-5, -3, size).astype(np.float32),
                        "advantages": np.full(size, rng.normal(), dtype=np.float32),
                        "weights": np.full(size, weight(size, totals, 20), dtype=np.float32),
                    },
                )
            )
    return rows


def dealt(rows: Sequence[Any], deal: str, rank: int, ranks: int) -> list[Any]:
    """What rank `rank` trains."""
    from grpo.method.weighted_rows import rank_share

    if deal == "balanced":
        return rank_share(rows, rank, ranks)
    few = 1 if deal == "one_row" else 0
    if rank == ranks - 1:
        return list(rows[:few])
    return [row for i, row in enumerate(rows[few:]) if i % (ranks - 1) == rank]


def gradients() -> Iterator[tuple[str, np.ndarray]]:
    """(case, the whole gradient flat) of every dtype, objective and deal."""
    from grpo.config.schema import Algorithm, Learner
    from grpo.learner.learner import TorchLearner
    from grpo.model.ranks import whole

    for dtype in ("float64", "float32"):
        for loss_type in OBJECTIVES:
            # bnpo divides by micro-batch: comparable only where every row is one
            alone = loss_type == "bnpo"
            beta = 0.1 if loss_type == "grpo" else 0.0
            learner = TorchLearner(
                tiny_llama(dtype),
                algorithm=Algorithm(
                    loss_type=loss_type,
                    beta=beta,
                    epsilon_high=5.0 if loss_type == "cispo" else None,
                ),
                config=Learner(
                    max_grad_norm=0.0,
                    share_prompts=not alone,
                    tokens_per_micro_batch=1 if alone else 64,
                ),
                reference=tiny_llama(dtype, seed=1),
            )
            before = {name: whole(p).detach().clone() for name, p in learner.trained.items()}
            rows = some_rows(loss_type)
            for deal in DEALS if learner.num_ranks > 1 else ("",):
                own = dealt(rows, deal, learner.rank, learner.num_ranks) if deal else rows
                learner.step(own)
                grads = [p.grad for p in learner.trained.values() if p.grad is not None]
                found = [whole(g).flatten() for g in grads]
                yield (
                    "/".join(filter(None, (dtype, loss_type, deal))),
                    np.concatenate([g.double().numpy() for g in found]),
                )
                put_back(learner, before)


def put_back(learner: Any, weights: dict[str, Any]) -> None:
    """Undo a step's change of the weights; the gradient has no other state."""
    import torch

    from grpo.model.ranks import laid_out_as

    with torch.no_grad():
        for name, parameter in learner.trained.items():
            parameter.copy_(laid_out_as(parameter, weights[name]))


def write_gradients(file: Path) -> None:
    """One process of a launch: every gradient into `file`, written by the first rank."""
    found: dict[str, Any] = dict(gradients())
    if os.environ.get("RANK", "0") == "0":
        np.savez(file, **found)


def preload() -> None:
    """Import here what every fork needs."""
    import torch

    import grpo.learner.learner  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    preload()
    names = sys.argv[1:] or list(LAUNCHES)
    figures = compare({name: LAUNCHES[name] for name in names})
    print(json.dumps(figures, indent=1))
    sys.exit(not figures["passed"])
