"""What only a GPU can show: engine and learner on one device, agreeing, and a run that learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from grpo import shared_attention
from grpo.batch import Pack
from grpo.config import load
from grpo.flex_attention import attend_in_blocks
from grpo.run import train_recipe
from grpo.shared_attention import make_layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    # said by PyTorch's compiler, of itself and of float32
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parity_learns_and_the_sampler_agrees(tmp_path: Path, dtype: str) -> None:
    settings = [f"run.dir={tmp_path / 'run'}", "eval.num_tasks=128", f"model.dtype={dtype}"]
    summary = train_recipe(load("parity-r1-zero", settings), Console(quiet=True))
    assert torch.cuda.max_memory_allocated() > 0
    assert summary["after"]["greedy"] >= 0.95
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    name = "sampling/sampling_logp_difference/mean"
    gaps = [json.loads(line).get(name, 0.0) for line in lines]
    assert max(gaps) < (1e-3 if dtype == "float32" else 0.05)


# prompt and completions of each pack; rows of several lengths, one of them whole blocks
ROWS = [
    [(150, [200, 30, 77])],
    [(1, [1, 300]), (400, [90] * 8), (60, [500])],
    [(256, [128, 128])],
]


@pytest.mark.parametrize(("heads", "keys", "dim"), [(9, 3, 64), (4, 4, 16), (8, 2, 128)])
def test_flex_attention_is_as_exact_as_attention_in_parts(
    monkeypatch: pytest.MonkeyPatch, heads: int, keys: int, dim: int
) -> None:
    calls: list[int] = []

    def counted(*given: Any) -> torch.Tensor:
        calls.append(given[0].shape[-2])
        return attend_in_blocks(*given)

    monkeypatch.setattr(shared_attention, "attend_in_blocks", counted)
    for row in ROWS:
        packs, N = _laid(row)
        torch.manual_seed(0)
        given = [torch.randn((1, n, N, dim), device="cuda").bfloat16() for n in (heads, keys, keys)]
        upstream = torch.randn((1, N, heads, dim), device="cuda").bfloat16()
        exact = _attended([t.double() for t in given], upstream.double(), packs)
        before = len(calls)
        flex = _attended(given, upstream, packs)
        assert calls[before:] == [N]
        with monkeypatch.context() as patch:
            patch.setattr(shared_attention, "uses_flex", lambda *_: False)
            parts = _attended(given, upstream, packs)
        for ours, theirs, right in zip(flex, parts, exact, strict=True):
            assert _distance(ours, right) < 1.5 * _distance(theirs, right) + 1e-4


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
    out, _ = shared_attention.attention(
        torch.nn.Identity(), *leaves, None, scaling=0.1, shared_layout=layout
    )
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


def _distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
