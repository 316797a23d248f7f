"""Where completions of one model may part: at a near-tie, and nowhere else.

Float32 sums of another order (another kernel, device or number of rows) move a logit by some 1e-6
of its size, and everything is drawn by one uniform number of (prompt, sample, position). So the
tokens are the same until the uniform number lies that close to the edge between two words, or, for
greedy ones, until two words are that close to one another. From there on the texts are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from grpo.rollout.embedded.sampling import noise_key, uniforms
from grpo.types import Request

# Of a probability. Logits of the tiny models are below 20, their float32 errors below 2e-5, and a
# probability moves by at most as much.
NEAR = 1e-4


@torch.no_grad()
def check_parting(
    model: PreTrainedModel, request: Request, index: int, one: Sequence[int], other: Sequence[int]
) -> bool:
    """Whether two completions part; AssertionError where that is no near-tie.

    `model`: on the host. One of them must not simply be the beginning of the other.
    """
    one, other = list(one), list(other)
    if one == other:
        return False
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    assert at is not None, f"{request.uid}/{index}: one ends where the other goes on"
    ids = torch.tensor([[*request.ids, *one[:at]]])
    logits = model(input_ids=ids, use_cache=False).logits[0, -1].double()
    greedy = request.sampling.temperature == 0
    probs = torch.softmax(logits / (request.sampling.temperature or 1.0), -1)
    place = f"{request.uid}/{index}, token {at}: {one[at]} or {other[at]}"
    if greedy:
        top = float(probs.max())
        off = max(top - float(probs[token]) for token in (one[at], other[at]))
    else:
        key = np.array([noise_key(request.key, index)])
        drawn = float(uniforms(key, np.array([at]))[0])
        edges = np.concatenate([[0.0], probs.cumsum(-1).numpy()])
        off = max(
            max(edges[token] - drawn, drawn - edges[token + 1]) for token in (one[at], other[at])
        )
    assert off < NEAR, f"{place} are no near-tie: {off:.1e} apart"
    return True


def check_same(
    model: PreTrainedModel,
    requests: Sequence[Request],
    found: dict[tuple[str, int], Any],
    wanted: dict[tuple[str, int], Any],
) -> None:
    """The same completions, log-probs and endings, but for near-ties, which have to be few.

    One token in 5,000 at most has its uniform number that near to an edge (2 * `NEAR` a word of
    those that are likely at all), so that of some hundred tokens hardly one is.
    """
    assert found.keys() == wanted.keys()
    by_uid = {request.uid: request for request in requests}
    parted = 0
    for (uid, index), ours in found.items():
        theirs = wanted[uid, index]
        one, other = ours.ids.tolist(), theirs.ids.tolist()
        if check_parting(model, by_uid[uid], index, one, other):
            parted += 1
            continue
        assert (ours.text, ours.finish) == (theirs.text, theirs.finish)
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    assert parted <= 1 + len(found) // 50, f"{parted} of {len(found)} completions part"
