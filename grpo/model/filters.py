"""Temperature, top-k, top-p and min-p of a sampler, which may differ from row to row.

Filters follow Hugging Face: temperature, then top-k, top-p (Holtzman et al., 1904.09751) and
min-p (2407.01082), each on what the one before it left. All are thresholds on the probability, so
tokens tied with the last one kept are kept too. The engine draws from what is left, and the learner
takes its log-probs from the same distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grpo.model.transfer import to_device, waits
from grpo.types import Sampling

_TOP_P_PREFIX = 1024  # top-p looks at this many largest entries before it sorts a whole vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How each of R rows is sampled; None where no row asks for it.

    temperature [R, 1] float32 (1 for greedy rows) or one float for all; greedy [R] bool;
    top_k [R] int64 (vocabulary size = off); top_p, min_p [R, 1] float32.

    The host knows what decides which operations run, since reading it off a GPU would be a wait:
    only_greedy (all rows are), largest (of all top_k that are on; 1 if none is), waits (whether
    reading a number off the device is a wait).
    """

    temperature: Tensor | float
    greedy: Tensor | None
    only_greedy: bool
    top_k: Tensor | None
    largest: int
    top_p: Tensor | None
    min_p: Tensor | None
    waits: bool


def make_plan(rows: Sequence[Sampling], vocab_size: int, device: torch.device) -> Plan:
    """The plan of R rows, one `Sampling` each."""
    kinds = {id(s): s for s in rows}.values()
    arrays: dict[str, np.ndarray] = {}
    temperatures = {s.temperature or 1.0 for s in kinds}
    some_greedy = any(s.temperature == 0 for s in kinds)
    if some_greedy or len(temperatures) > 1:
        values = np.array([s.temperature for s in rows], dtype=np.float32)
        arrays["greedy"] = values == 0
        arrays["temperature"] = np.where(arrays["greedy"], np.float32(1), values)
    if any(0 < s.top_k < vocab_size for s in kinds):
        arrays["top_k"] = np.array([min(s.top_k or vocab_size, vocab_size) for s in rows])
    if any(s.top_p < 1 for s in kinds):
        arrays["top_p"] = np.array([s.top_p for s in rows], dtype=np.float32)
    if any(s.min_p > 0 for s in kinds):
        arrays["min_p"] = np.array([s.min_p for s in rows], dtype=np.float32)
    sent = _sent(arrays, device)
    return Plan(
        temperature=sent["temperature"][:, None]
        if len(temperatures) > 1
        else next(iter(temperatures)),
        greedy=sent["greedy"] if some_greedy else None,
        only_greedy=some_greedy and bool(arrays["greedy"].all()),
        top_k=sent.get("top_k"),
        largest=max((s.top_k for s in kinds if 0 < s.top_k < vocab_size), default=1),
        top_p=sent["top_p"][:, None] if "top_p" in sent else None,
        min_p=sent["min_p"][:, None] if "min_p" in sent else None,
        waits=waits(device),
    )


def _sent(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The arrays [R] on `device`; those of one value are made there and are no copy."""
    alike = {name: array for name, array in arrays.items() if (array == array[0]).all()}
    unlike = {name: array for name, array in arrays.items() if name not in alike}
    found = to_device(device, **unlike) if unlike else {}
    for name, array in alike.items():
        dtype = torch.from_numpy(array).dtype
        found[name] = torch.full(array.shape, array[0].item(), dtype=dtype, device=device)
    return found


def filtered_probs(probs: Tensor, plan: Plan) -> Tensor:
    """probs float32 [R, V] with the filtered-out tokens at 0 and the rest renormalized.

    Greedy rows are left alone: their log-probs are those at temperature 1, unfiltered.
    """
    if plan.top_k is None and plan.top_p is None and plan.min_p is None:
        return probs
    kept = probs
    if plan.top_k is not None:
        values = probs.topk(plan.largest, dim=1).values
        index = plan.top_k.clamp(max=plan.largest).unsqueeze(1) - 1
        threshold = values.gather(1, index)
        threshold = torch.where(
            (plan.top_k == probs.shape[1]).unsqueeze(1), torch.zeros_like(threshold), threshold
        )
        kept = torch.where(kept >= threshold, kept, 0.0)
    if plan.top_p is not None:
        threshold = _top_p_threshold(kept / kept.sum(1, keepdim=True), plan.top_p, plan.waits)
        threshold = threshold * kept.sum(1, keepdim=True)
        kept = torch.where(kept >= threshold, kept, 0.0)
    if plan.min_p is not None:
        kept = torch.where(kept >= plan.min_p * kept.amax(1, keepdim=True), kept, 0.0)
    kept = kept / kept.sum(1, keepdim=True)
    return kept if plan.greedy is None else torch.where(plan.greedy.unsqueeze(1), probs, kept)


def _top_p_threshold(probs: Tensor, top_p: Tensor, waits: bool) -> Tensor:
    """[R, 1]: the smallest probability in the smallest set whose mass reaches top_p [R, 1]."""
    values = None if waits else _prefix(probs, top_p)
    if values is None:
        values = probs.sort(dim=1, descending=True).values
    before = values.double().cumsum(1) - values
    last = (before < top_p).sum(1, keepdim=True) - 1
    threshold = values.gather(1, last.clamp(min=0))
    # A little slack, so that scaling back and forth cannot drop the last token that was kept.
    return torch.where(top_p >= 1, torch.zeros_like(threshold), threshold * (1 - 1e-6))


def _prefix(probs: Tensor, top_p: Tensor) -> Tensor | None:
    """The largest entries of each row, if their mass reaches top_p in all rows; else None."""
    values = probs.topk(min(_TOP_P_PREFIX, probs.shape[1]), dim=1).values
    return None if bool((values.sum(1, keepdim=True) < top_p).any()) else values
