"""Token sampling without generator state: uniforms from a counter-based hash, then inverse CDF.

A token depends on its logits and on (request key, sample index, position) alone, so a completion
does not change with what else happens to be in the batch. `torch.multinomial` is avoided: it is
stateful, and ten times slower on a vocabulary of 50,000.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from grpo.model.filters import Plan, filtered_probs
from grpo.model.transfer import to_device
from grpo.rollout.embedded.cpu.draw import draw

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ALL = 2**64 - 1
_BLOCK = 256  # vocabulary entries summed together in the first level of the inverse CDF


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finalizer (Steele et al., 2014), on uint64 arrays."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def noise_key(key: Sequence[int], index: int) -> np.uint64:
    """One uint64 for a completion: a hash of the request's key and the sample's index, in order."""
    state = 0
    for part in (*key, index):  # `_mix` on Python's integers: five times as fast as on one element
        x = (state + int(_GOLDEN) + int(part)) & _ALL
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _ALL
        state = x ^ (x >> 31)
    return np.uint64(state)


def uniforms(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), one per (key uint64 [N], position int64 [N]) pair; 53 random bits each."""
    counter = positions.astype(np.uint64) + np.uint64(1)
    bits = _mix(_mix(keys + counter * _GOLDEN) ^ keys)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Token int64 [R] where the running sum of probs float32 [R, V] passes uniform float64 [R].

    Two levels: sums of blocks first, then only the block that is hit, both accumulated in
    float64. A token of probability 0 is never returned.
    """
    rows, vocab = probs.shape
    block = min(_BLOCK, vocab)
    if vocab % block:
        probs = torch.nn.functional.pad(probs, (0, block - vocab % block))
    blocks = probs.view(rows, -1, block)
    sums = blocks.sum(-1).double().cumsum(1)
    target = uniform * sums[:, -1]
    hit = (sums <= target[:, None]).sum(1)
    row = torch.arange(rows, device=probs.device)
    before = torch.where(hit > 0, sums[row, (hit - 1).clamp(min=0)], 0.0)
    inside = blocks[row, hit].double().cumsum(1)
    # The block's float32 sum can exceed its float64 one by a rounding; stay strictly inside.
    rest = torch.minimum(target - before, inside[:, -1] * (1 - 2.0**-52))
    return hit * block + (inside <= rest[:, None]).sum(1)


def sample(
    logits: Tensor, uniform: np.ndarray, plan: Plan, room: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens for logits [R, V] (any float dtype) and uniforms float64 [R].

    Returns tokens int64 [R] and their log-probs float32 [R] under the distribution sampled from.
    `room` float32 [2, >= R, V] is memory to work in: fresh memory of that size is given back and
    faulted in again every time.
    """
    if plan.top_k is None and plan.top_p is None and plan.min_p is None:
        found = _drawn(logits, uniform, plan)
        if found is not None:
            return found
    if room is None:
        room = workspace(logits)
    scores, probs = room[:, : len(logits)]
    scores.copy_(logits)
    if isinstance(plan.temperature, Tensor) or plan.temperature != 1.0:
        scores.div_(plan.temperature)
    torch.softmax(scores, dim=1, out=probs)
    final = filtered_probs(probs, plan)
    if plan.only_greedy:
        tokens = _largest(scores, plan)
    else:
        tokens = inverse_cdf(final, to_device(logits.device, uniform=uniform)["uniform"])
        if plan.greedy is not None:
            tokens = torch.where(plan.greedy, _largest(scores, plan), tokens)
    return tokens, final.gather(1, tokens[:, None]).squeeze(1).log()


def _drawn(logits: Tensor, uniform: np.ndarray, plan: Plan) -> tuple[Tensor, Tensor] | None:
    """`sample` without filters by a compiled kernel; None where there is none."""
    if plan.waits:  # before anything of the plan is read
        return None
    if isinstance(plan.temperature, Tensor):
        factor = plan.temperature.reciprocal().flatten().numpy()
    else:
        factor = np.full(len(logits), 1.0 / plan.temperature, dtype=np.float32)
    if plan.greedy is not None:
        uniform = np.where(plan.greedy.numpy(), -1.0, uniform)
    return draw(logits, uniform, factor)


def _largest(scores: Tensor, plan: Plan) -> Tensor:
    """int64 [R]: the first of the largest of scores [R, V]."""
    if plan.waits:
        return scores.argmax(1)
    return torch.from_numpy(scores.numpy().argmax(1))  # torch takes 14 times as long on a CPU


def workspace(logits: Tensor) -> Tensor:
    """Memory for `sample` of as many rows as logits [R, V]: float32 [2, R, V]."""
    return torch.empty(2, *logits.shape, dtype=torch.float32, device=logits.device)
