"""Products on matrix tiles against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.kernels import matmul

pytestmark = pytest.mark.skipif(
    not matmul.has_tiles(), reason="this processor has no matrix tiles (AMX)"
)

ROUNDING = 2.0**-8  # of bfloat16, relative, with a little room for sums in float32


def numbers(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def check(found, want):
    """Rounded once: no entry further from the exact one than rounding it would be."""
    assert found.dtype == torch.bfloat16
    scale = want.abs().max()
    assert ((found.double() - want).abs() <= ROUNDING * (want.abs() + 1e-3 * scale)).all()


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 140),
    pieces=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    ending=st.sampled_from(["plain", "sum", "gated"]),
    norm=st.booleans(),
    threads=st.integers(1, 3),
)
def test_products(rows, pieces, bias, ending, norm, threads):
    outputs, size = (2 * ending.count("gated") or 1) * 32 * pieces[0], 32 * pieces[1]
    x, weight = numbers(1, rows, size), numbers(2, outputs, size)
    of_output = numbers(3, outputs) if bias else None
    term = numbers(4, rows, outputs) if ending == "sum" else None
    scales = numbers(5, size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gated = ending == "gated"
        laid = matmul.lay(matmul.by_turns(weight) if gated else weight)
        laid_bias = matmul.by_turns(of_output) if gated and bias else of_output
        how = (scales, 1e-5) if norm else None
        found = matmul.multiply(x, laid, laid_bias, term, norm=how, gated=gated)
    finally:
        torch.set_num_threads(before)
    entries = x.double()
    if norm:
        mean = entries.square().mean(1, keepdim=True)
        entries = (entries / (mean + 1e-5).sqrt() * scales.double()).bfloat16().double()
    want = entries @ weight.double().T
    want = want if of_output is None else want + of_output.double()
    if term is not None:
        want = want + term.double()
    if gated:
        gate, up = want.chunk(2, 1)
        want = gate * torch.sigmoid(gate) * up
    if norm:  # another last bit of the norm's factor may round an entry the other way
        error = (found.double() - want).norm() / want.norm()
        assert error < ROUNDING
    else:
        check(found, want)


def test_more_rows_than_the_cache_holds():
    """Rows are multiplied a part at a time: 64 of these fill it."""
    x, weight = numbers(1, 150, 8192), numbers(2, 64, 8192)
    check(matmul.multiply(x, matmul.lay(weight), None), x.double() @ weight.double().T)


def test_what_is_no_number_stays_in_its_row():
    x, weight = numbers(1, 40, 64), numbers(2, 96, 64)
    x[7, 3], x[8, 0] = torch.nan, torch.inf
    laid = matmul.lay(matmul.by_turns(weight[:64]))
    for found in (
        matmul.multiply(x, matmul.lay(weight), None),
        matmul.multiply(x, laid, None, gated=True),
        matmul.multiply(x, laid, None, norm=(numbers(3, 64), 1e-5)),
    ):
        assert not found[7].isfinite().any()
        assert found[9:].isfinite().all()
        assert found[:7].isfinite().all()


def test_gates_far_from_zero():
    """silu of large numbers is 0 or the number itself, never nan."""
    gate = torch.tensor([-3e4, -300.0, -90.0, 90.0, 300.0]).bfloat16()
    x = torch.zeros(5, 32, dtype=torch.bfloat16)
    x[:, 0], x[:, 1] = gate, 1.0
    weight = torch.zeros(64, 32, dtype=torch.bfloat16)
    weight[:32, 0], weight[32:, 1] = 1.0, 1.0  # gates are x[:, 0], the rest 1
    found = matmul.multiply(x, matmul.lay(matmul.by_turns(weight)), None, gated=True)
    assert found[:3].abs().max() < 1e-30
    assert torch.equal(found[3:, 0], gate[3:])


def test_other_shapes_are_refused():
    assert not matmul.fits(48, 32)
    for weight in (numbers(1, 48, 32), numbers(1, 32, 48), numbers(1, 32, 32).float()):
        with pytest.raises(ValueError, match="multiples of 32"):
            matmul.lay(weight)
