"""Selective language modeling against plain fine-tuning on rows with planted noise.

    python benchmarks/bench_slm.py [--seeds 3] [--steps 300] [--out FILE.json]

The language is a random second-order Markov chain over 16 letters (three successors of every pair,
with probabilities 0.7, 0.2 and 0.1: 0.80 nats a token), so the best possible loss is known. A
two-block Llama from nothing learns it from 4,096 rows in which each completion token is replaced
with probability 0.25 by another letter. What counts is its loss on clean held-out rows, after the
same number of steps on the same rows in the same order:

    plain      all tokens
    excess     the 60% with the highest loss above that of a reference trained on 256 clean rows
    random     60% drawn at random (control)
    highest    the 60% with the highest loss (control)

Bars: excess below plain by at least 0.1 nats a token, by the whole 95% interval over seeds; neither
control below plain by an interval that leaves 0 out. Writes benchmarks/results/slm.json and exits 1
if a bar is missed. One thread, under ten minutes.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from grpo.outside.terminal.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import record
from grpo.config.schema import SLM, Model, Run, SFTLearner
from grpo.stages.from_scratch import build_model, build_tokenizer, save_tokenizer
from grpo.stages.pretrain import completion_loss
from grpo.stages.sft import fine_tune
from grpo.stages.supervised_rows import TokenRow

NOISE, KEEP = 0.25, 0.6
LETTERS = "abcdefghijklmnop"
SUCCESSORS = (0.7, 0.2, 0.1)
PROMPT, COMPLETION = 4, 28  # letters
NOISY_ROWS, CLEAN_ROWS, HELDOUT_ROWS, BATCH = 4096, 256, 256, 32
BAR = 0.1  # nats a token
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by number of seeds
ARMS = ("plain", "excess", "random", "highest")


def chain_rows(count: int, letters: Sequence[int], eos: int, rng: random.Random) -> list[TokenRow]:
    """Rows of a chain that `rng` draws first: three successors for every pair of letters."""
    follow = {(a, b): rng.sample(letters, len(SUCCESSORS)) for a in letters for b in letters}
    rows: list[TokenRow] = []
    for _ in range(count):
        ids = rng.choices(letters, k=2)
        while len(ids) < PROMPT + COMPLETION:
            ids += rng.choices(follow[ids[-2], ids[-1]], SUCCESSORS)
        rows.append(TokenRow(prompt_ids=tuple(ids[:PROMPT]), ids=(*ids[PROMPT:], eos)))
    return rows


def with_noise(row: TokenRow, vocabulary: Sequence[int], rng: random.Random) -> TokenRow:
    """Each completion token but eos replaced with probability NOISE by another of `vocabulary`."""

    def planted(token: int) -> int:
        if rng.random() >= NOISE:
            return token
        return rng.choice([other for other in vocabulary if other != token])

    *body, eos = row.ids
    return TokenRow(prompt_ids=row.prompt_ids, ids=(*map(planted, body), eos))


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds with its 95% interval (Student's t)."""
    mean = statistics.fmean(values)
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return {
        "mean": round(mean, 4),
        "ci": [round(mean - half, 4), round(mean + half, 4)],
        "seeds": [round(value, 4) for value in values],
    }


def lowest() -> float:
    """The chain's entropy, nats per completion token; eos is certain."""
    entropy = -sum(p * math.log(p) for p in SUCCESSORS)
    return entropy * COMPLETION / (COMPLETION + 1)


@torch.no_grad()
def clean_loss(model: str, rows: Sequence[TokenRow]) -> float:
    """Nats per completion token."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    pairs = [(list(row.prompt_ids), list(row.ids)) for row in rows]
    return float(completion_loss(policy, pairs)) / sum(len(row.ids) for row in rows)


def one_seed(seed: int, steps: int, folder: Path) -> dict[str, float]:
    """Clean loss of the reference and of each arm."""
    tokenizer = build_tokenizer(LETTERS)
    base = str(folder / "base")
    build_model(
        tokenizer,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        intermediate_size=192,
        architecture="llama",
        max_position=64,
        seed=seed,
    ).save_pretrained(base)
    save_tokenizer(tokenizer, base)

    rng = random.Random(seed)
    eos: Any = tokenizer.eos_token_id
    letters: list[int] = tokenizer.encode(LETTERS)
    rows = chain_rows(NOISY_ROWS + CLEAN_ROWS + HELDOUT_ROWS, letters, eos, rng)
    clean, heldout = rows[:CLEAN_ROWS], rows[CLEAN_ROWS : CLEAN_ROWS + HELDOUT_ROWS]
    noisy = [with_noise(row, letters, rng) for row in rows[CLEAN_ROWS + HELDOUT_ROWS :]]

    def trained(name: str, data: Sequence[TokenRow], slm: SLM) -> float:
        place = folder / name
        place.mkdir()
        began = time.perf_counter()
        summary = fine_tune(
            data,
            tokenizer=tokenizer,
            model=Model(path=base),
            learner=SFTLearner(max_steps=steps, batch_size=BATCH, learning_rate=3e-3),
            slm=slm,
            run=Run(seed=seed, threads=1, save_steps=0),
            folder=place,
            title=name,
            console=Console(quiet=True),
        )
        loss = clean_loss(summary["model"], heldout)
        took = time.perf_counter() - began
        print(f"seed {seed}  {name:9}  clean loss {loss:.3f}  {took:.0f} s", flush=True)
        return loss

    found = {"reference": trained("reference", clean, SLM())}
    reference = str(folder / "reference" / "model")
    for arm in ARMS:
        select: Any = "off" if arm == "plain" else arm
        slm = SLM(select=select, keep=KEEP, reference=reference if arm == "excess" else "")
        found[arm] = trained(arm, noisy, slm)
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="SLM against plain fine-tuning on noisy rows")
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T95))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks/results/slm.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    runs: list[dict[str, float]] = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_seed(seed, args.steps, Path(folder)))
    arms = {arm: interval([run[arm] for run in runs]) for arm in ("reference", *ARMS)}
    gains = {arm: interval([run["plain"] - run[arm] for run in runs]) for arm in ARMS[1:]}
    passed = {
        "excess at least 0.1 nats below plain": gains["excess"]["ci"][0] >= BAR,
        "random does not gain": gains["random"]["ci"][0] <= 0,
        "highest does not gain": gains["highest"]["ci"][0] <= 0,
    }
    found = {
        "setting": {
            "rows": f"second-order Markov chain, {NOISE:.0%} of completion tokens replaced",
            "lowest possible clean loss": round(lowest(), 4),
            "noisy rows": NOISY_ROWS,
            "clean rows of the reference": CLEAN_ROWS,
            "held-out rows": HELDOUT_ROWS,
            "steps": args.steps,
            "batch_size": BATCH,
            "keep": KEEP,
            "seeds": list(range(args.seeds)),
        },
        "clean loss (nats a token)": arms,
        "below plain (nats a token)": gains,
        "bars": passed,
    }
    packages = ("torch", "transformers", "trl", "accelerate")
    command = f"python benchmarks/bench_slm.py --seeds {args.seeds} --steps {args.steps}"
    seconds = time.perf_counter() - began
    record.merge(args.out, "slm", found, record.origin(command, seconds, record.versions(packages)))
    for arm, figures in arms.items():
        low, high = figures["ci"]
        print(f"{arm:9}  {figures['mean']:.3f} [{low:.3f}, {high:.3f}]")
    for bar, held in passed.items():
        print(f"{'held  ' if held else 'MISSED'}  {bar}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
