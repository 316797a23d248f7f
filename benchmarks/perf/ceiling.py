"""Section 5: the share of the machine's matrix-product rate that learner and engine use.

Only operations that the work needs are counted (perf/work.py `flops`): 6 a parameter and token in
the learner, 2 in the engine, the head where a token is predicted, the attention of real tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from perf import work
from perf.contest import Contender, Plan, contest
from perf.learning import ours, workloads

GROUPS = 8  # of a whole step


def measure(plan: Plan) -> dict[str, Any]:
    """Rates in GFLOP/s, and shares of the matrix product's in the same run."""
    generation = {
        "model": plan.model,
        "dtype": plan.dtype,
        "prompts": 2 if plan.quick else 8,
        "samples": 4 if plan.quick else 8,
        "prompt": 8 if plan.quick else 44,
        "completion": 8 if plan.quick else 64,
        "kind": "fixed",
    }
    subjects = [ours(plan, sizes, name) for name, sizes in learners(plan).items()]
    subjects.append(Contender(name="generation", script="gen_ours", settings=generation))
    product = Contender(name="matrix product", script="gemm", settings={"dtype": plan.dtype})
    found: dict[str, Any] = {}
    for subject in subjects:  # each in turns with the product, as the machine's rate drifts
        result = contest([product, subject], plan)
        peak, record = result["matrix product"], result[subject.name]
        flops = record.get("needed_flops") or generation_flops(plan.model, generation)
        rate, highest = flops / record["median"], peak["flops"] / peak["median"]
        found[subject.name] = {
            **record,
            "gflops a second": round(rate / 1e9, 1),
            "matrix product": round(highest / 1e9, 1),
            "share": round(rate / highest, 3),
        }
    return {"measured": found}


def learners(plan: Plan) -> dict[str, dict[str, Any]]:
    """The workloads of section 2 as whole steps of 8 x 8, and as they are there, with fewer groups.

    What a step costs whatever its size (casts, clipping, AdamW) weighs more in the smaller ones.
    """
    named: dict[str, dict[str, Any]] = {}
    for name, sizes in workloads(plan).items():
        whole = sizes | {"groups": GROUPS, "dead": sizes["dead"] * GROUPS // sizes["groups"]}
        if not plan.quick:
            named[f"learner ({name}), {GROUPS} groups"] = whole
        named[f"learner ({name}), {sizes['groups']} groups"] = sizes
    return named


def generation_flops(model: str, sizes: dict[str, Any]) -> float:
    """What sampling needs: every prompt read once, every token but the last fed back."""
    config = json.loads((Path(model) / "config.json").read_text())
    width, layers, vocab = (
        config[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")
    )
    kv = config["num_key_value_heads"] * (width // config["num_attention_heads"])
    block = 2 * width * width + 2 * width * kv + 3 * width * config["intermediate_size"]
    shape = work.Shape(body=block * layers, head=vocab * width, layers=layers, width=width)
    P, T, G = sizes["prompts"], sizes["completion"], sizes["samples"]
    return work.flops(
        shape, prompt=[sizes["prompt"]] * P, completion=[[T] * G for _ in range(P)], factor=2
    )
