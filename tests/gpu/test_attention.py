"""Attention over shared prompts by FlexAttention's compiled kernels, against float64.

First suspicion of a failure: Triton's kernel for that head size (wrong from one length of row on,
or not compiled at all: then the error says so); of one in float32 alone, products in TF32.
"""

from __future__ import annotations

import pytest
import torch

from grpo.attention import interface
from grpo.attention.layout import Pack, make_layout

# prompt and completions of each pack; rows of several lengths, one of them whole blocks
ROWS = [
    [(150, [200, 30, 77])],
    [(1, [1, 300]), (400, [90] * 8), (60, [500])],
    [(256, [128, 128])],
]


@pytest.mark.parametrize(
    ("heads", "keys", "dim", "dtype"),
    [
        (9, 3, 64, torch.bfloat16),  # SmolLM2-135M
        (4, 4, 16, torch.bfloat16),
        (8, 2, 128, torch.bfloat16),  # Qwen3's heads
        (14, 2, 64, torch.float16),  # Qwen2.5-0.5B
        (4, 1, 80, torch.float32),  # no power of two
    ],
)
def test_flex_attention_is_as_exact_as_attention_in_parts(
    device: torch.device,
    flex_calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
    heads: int,
    keys: int,
    dim: int,
    dtype: torch.dtype,
) -> None:
    """Off by no more than 1.5 times the parts, which round once more, each token by itself too."""
    for row in ROWS:
        packs, N = _laid(row)
        torch.manual_seed(0)
        given = [torch.randn((1, n, N, dim)).to(device, dtype) for n in (heads, keys, keys)]
        upstream = torch.randn((1, N, heads, dim)).to(device, dtype)
        exact = _attended([t.double() for t in given], upstream.double(), packs)
        assert flex_calls == []
        flex = _attended(given, upstream, packs)
        assert flex_calls == [N]
        with monkeypatch.context() as patch:
            patch.setattr(interface, "uses_flex", lambda *_: False)
            parts = _attended(given, upstream, packs)
        flex_calls.clear()
        for ours, theirs, right in zip(flex, parts, exact, strict=True):
            assert _distance(ours, right) < 1.5 * _distance(theirs, right) + 1e-6
        # [1, N, H, D]: a block that is wrong for a few tokens is lost in the norm of all
        apart, size = ((flex[0].double() - exact[0]), exact[0])
        worst = (apart.flatten(2).norm(dim=-1) / size.flatten(2).norm(dim=-1)).max()
        assert worst < {torch.float32: 1e-5}.get(dtype, 3e-2)


def test_blocks_made_for_one_row_do_not_serve_another(
    device: torch.device, flex_calls: list[int]
) -> None:
    """Rows of one length and other packs: what is compiled for the first must not be kept."""
    torch.manual_seed(0)
    shapes: list[list[tuple[int, list[int]]]] = [
        [(100, [100, 100])],
        [(20, [280])],
        [(200, [50, 50])],
        [(100, [100, 100])],
    ]
    given = [torch.randn((1, n, 300, 16)).to(device) for n in (4, 2, 2)]
    upstream = torch.randn((1, 300, 4, 16)).to(device)
    for row in shapes:
        packs, N = _laid(row)
        assert N == 300
        found = _attended(given, upstream, packs)
        exact = _attended([t.double() for t in given], upstream.double(), packs)
        for ours, right in zip(found, exact, strict=True):
            assert _distance(ours, right) < 1e-5
    assert flex_calls == [300] * 4


def _laid(row: list[tuple[int, list[int]]]) -> tuple[tuple[Pack, ...], int]:
    packs: list[Pack] = []
    at = 0
    for prompt, lengths in row:
        start, at = at, at + prompt
        completions: list[tuple[int, int]] = []
        for length in lengths:
            completions.append((at, length))
            at += length
        packs.append(Pack(start=start, prompt=prompt, completions=tuple(completions)))
    return tuple(packs), at


def _attended(
    given: list[torch.Tensor], upstream: torch.Tensor, packs: tuple[Pack, ...]
) -> tuple[torch.Tensor, ...]:
    """Outputs, and gradients of queries, keys and values."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    layout = make_layout(packs, upstream.device)
    out, _ = interface.attention(
        torch.nn.Identity(), *leaves, None, scaling=0.1, shared_layout=layout
    )
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


def _distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
