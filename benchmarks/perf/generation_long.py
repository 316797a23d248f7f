"""Section 1, longer: 256 new tokens, against vLLM alone; transformers takes minutes there."""

from __future__ import annotations

from typing import Any

from perf.contest import Plan
from perf.generation import measure as measure_workloads

WORKLOADS = ((256, "fixed"), (256, "lognormal"))
VLLM = "compiled"  # its fastest settings at 64 new tokens


def measure(plan: Plan) -> dict[str, Any]:
    """As the section `generation`."""
    return measure_workloads(plan, WORKLOADS, vllm=VLLM, transformers=False)
