"""Compiled kernels where loops end early: no rows, one row, widths that fill no register, NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from grpo.kernels import head, layers, native
from grpo.kernels.fingerprint import fingerprints

pytestmark = pytest.mark.skipif(head.SOURCE.load() is None, reason="no C++ compiler")

SHAPES = [(0, 8), (1, 1), (1, 33), (2, 15), (3, 17), (5, 31)]  # a register holds 16 numbers


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(0)
    return request.param


def all_layers(x: Tensor, weight: Tensor, gate_up: Tensor, of_out: Tensor) -> list[Tensor]:
    """What the functions of layers.py make of float32 x [N, D] and the rest in another type."""
    out, scale = layers.rms_norm(x, weight, 1e-2, of_out.dtype)
    found = [out, scale, layers.add(x, of_out), layers.swiglu(gate_up)]
    found += layers.rms_norm_backward(of_out, x, weight, scale, x)
    found += layers.swiglu_backward(gate_up, of_out)
    return [*found, layers.weight_gradient(of_out, of_out, torch.float32)]


def given(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, weight = torch.randn(rows, width) * 3, torch.randn(width)
    return x, weight, torch.randn(rows, 2 * width).to(dtype), torch.randn(rows, width).to(dtype)


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_layers_are_those_of_torch(
    rows: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = given(rows, width, dtype)
    compiled = all_layers(*tensors)
    monkeypatch.setattr(native, "library", lambda *_: None)
    for ours, theirs in zip(compiled, all_layers(*tensors), strict=True):
        assert ours.dtype == theirs.dtype
        close = 2**-7 if ours.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_in_its_row(wrong: float, dtype: torch.dtype) -> None:
    x, weight, gate_up, of_out = given(5, 33, dtype)
    whole = all_layers(x, weight, gate_up, of_out)[:4]
    x[2, 32], gate_up[2, 32] = wrong, wrong
    for before, after in zip(whole, all_layers(x, weight, gate_up, of_out)[:4], strict=True):
        for row in (0, 1, 3, 4):
            assert torch.equal(before[row], after[row])
        assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize(("rows", "vocab"), [(0, 7), *SHAPES[1:], (2, 1025)])
def test_the_head(rows: int, vocab: int, dtype: torch.dtype) -> None:
    product = (torch.randn(rows, vocab) * 4).to(dtype)
    targets = torch.randint(0, vocab, (rows,))
    found = head.normalize(product, targets, 0.5)
    assert found is not None
    logp = torch.log_softmax(product.double() * 0.5, 1)
    exact = logp.gather(1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(1)
    torch.testing.assert_close(found[1].double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[2].double(), entropy, rtol=1e-5, atol=1e-5)
    rows_4 = torch.stack([found[0], found[2], torch.ones(rows), torch.zeros(rows)])
    back = head.pull_back_(product, targets, rows_4, 0.5)
    assert back is not None
    want = (torch.nn.functional.one_hot(targets, vocab) - logp.exp()) * 0.5
    close = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(back.double(), want, rtol=close, atol=close)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8191, 8192, 8193])
def test_bytes_of_any_number(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of four is filled up, and nothing behind it is read."""
    values = torch.arange(count + 1, dtype=torch.int64).to(torch.uint8)
    tensors = [values[:count], values[1:]]  # the second begins at an odd address
    compiled = fingerprints(tensors)
    monkeypatch.setattr(native, "library", lambda *_: None)
    assert fingerprints(tensors) == compiled
