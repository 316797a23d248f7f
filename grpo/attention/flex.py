"""FlexAttention over tokens laid flat: the attention of `grpo/attention/shared.py` on a GPU.

FlexAttention (2412.05496) makes a fused kernel, forward and backward, from a rule that says which
pairs of tokens exist; blocks of `BLOCK` x `BLOCK` tokens without such a pair are left out, and keys
are not repeated for the query heads that share them. A prompt that several completions share costs
one kernel that way, where two parts put together by their normalizers cost many small ones.

The blocks are worked out here instead of by PyTorch's `create_block_mask`, which looks at all pairs
of tokens: 4 GiB for 65,536 of them, or a compilation of its own. A test compares the two.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from grpo.errors import LearnerError
from grpo.model.casts import autocast_off
from grpo.model.devices import NO_COMPILER, Choices, choices
from grpo.model.transfer import to_device

if TYPE_CHECKING:
    from grpo.attention.layout import Pack

BLOCK = 128  # FlexAttention's own default; its kernels' tiles divide it
TYPES = (torch.float32, torch.bfloat16, torch.float16)
# Below, its kernels refuse; above, whether a tile fits on a GPU shows only when it is compiled.
HEAD_SIZES = range(16, 129)


def uses_flex(query: Tensor, key: Tensor, value: Tensor, choices: Choices) -> bool:
    """Whether FlexAttention computes this ([1, heads, N, D] each); otherwise PyTorch does.

    A row within one block has no blocks to leave out, so it is PyTorch's too.
    """
    return (
        choices.flex_attention
        and query.dtype in TYPES
        and query.dtype == key.dtype == value.dtype
        and query.shape[-2] > BLOCK
        and query.shape[-1] == value.shape[-1]
        and query.shape[-1] in HEAD_SIZES
    )


@functools.cache
def _compiled() -> Callable[..., Any]:
    """A kernel for the first length of a row and, from the second one on, one for all."""
    print("compiling attention for this GPU", file=sys.stderr, flush=True)
    return torch.compile(flex_attention)


def attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask, scale: float
) -> Tensor:
    """Outputs [1, N, H, D] of queries [1, H, N, D], keys and values [1, K, N, D], with gradient.

    H is a multiple of K. On a CPU it runs without its compiler, and PyTorch refuses gradients.
    Raises LearnerError where the compiler fails.
    """
    kernel: Callable[..., Any] = (
        _compiled() if choices(query.device).flex_attention else flex_attention
    )
    with autocast_off(query):
        try:
            found = kernel(query, key, value, block_mask=blocks, scale=scale, enable_gqa=True)
        except TorchDynamoException as error:
            raise LearnerError(
                f"FlexAttention cannot be compiled for this GPU ({error}); with {NO_COMPILER[0]}=1 "
                "in the environment the learner computes the same without it"
            ) from error
    return found.transpose(1, 2)


def make_blocks(packs: Sequence[Pack], device: torch.device) -> BlockMask:
    """Which tokens of a flat row attend to which, to be made once for all layers.

    A token attends to what lies before it in its own stretch (a prompt or a completion) and to the
    prompt of its pack. `packs` cover the row.
    """
    N = max(start + length for pack in packs for start, length in _stretches(pack))
    stretch, prompt = np.zeros((2, N), dtype=np.int32)  # numbers of a token's own and its prompt's
    number = 0
    for pack in packs:
        first = number
        for start, length in _stretches(pack):
            stretch[start : start + length] = number
            prompt[start : start + length] = first
            number += 1
    some, whole = _kinds(packs, N)
    arrays = {
        **dict(zip(("some_count", "some_order"), _ordered(some & ~whole), strict=True)),
        **dict(zip(("whole_count", "whole_order"), _ordered(whole), strict=True)),
    }
    there = to_device(device, own=stretch, shared=prompt, **arrays)
    own, shared = there["own"], there["shared"]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((own[key] == own[query]) | (own[key] == shared[query]))

    return BlockMask.from_kv_blocks(
        *(there[name][None, None] for name in arrays),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(N, N),
    )


def _stretches(pack: Pack) -> tuple[tuple[int, int], ...]:
    """(start, length) of the prompt and of each completion."""
    return ((pack.start, pack.prompt), *pack.completions)


def _kinds(packs: Sequence[Pack], N: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks [query blocks, key blocks] that hold some pair of tokens, and that hold all."""
    count = -(-N // BLOCK)
    some = np.zeros((count, count), dtype=np.bool_)
    seeing = np.zeros((count, count), dtype=np.int32)  # queries for which a key block is whole
    for pack in packs:
        behind = pack.start + pack.prompt
        for start, length in _stretches(pack):
            if not length:
                continue
            stop = start + length
            rows = slice(start // BLOCK, -(-stop // BLOCK))
            edges = np.arange(rows.start, rows.stop) * BLOCK
            inside = np.minimum(edges + BLOCK, stop) - np.maximum(edges, start)
            spans = (
                [(pack.start, behind), (start, stop)] if start > behind else [(pack.start, stop)]
            )
            for low, high in spans:
                if low < high:
                    some[rows, low // BLOCK : -(-high // BLOCK)] = True
                    seeing[rows, -(-low // BLOCK) : high // BLOCK] += inside[:, None]
    return np.tril(some), np.tril(seeing == BLOCK, -1)


def _ordered(kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[q]: blocks of this kind in each row of blocks. [q, k]: all blocks, this kind first."""
    order = np.argsort(~kind, axis=-1, kind="stable").astype(np.int32)
    return kind.sum(-1, dtype=np.int32), order
