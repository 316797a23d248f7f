"""Compiled kernels against their torch counterparts in float64, at sizes that fill no block."""

import pytest
import torch

from grpo.kernels import layers as kernels
from grpo.kernels import matmul, native

N, D, F = 37, 50, 70
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}  # of bfloat16: one rounding

pytestmark = pytest.mark.skipif(kernels.SOURCE.load() is None, reason="no C++ compiler")


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request):
    torch.manual_seed(0)
    return request.param


def close(found, exact, dtype):
    assert (found.double() - exact).abs().max() < TOLERANCE[dtype] * exact.abs().max()


def test_norm_and_its_gradients(dtype):
    x, weight, residual = torch.randn(N, D) * 3, torch.randn(D), torch.randn(N, D)
    of_out = torch.randn(N, D).to(dtype)
    exact = x.double().requires_grad_()
    exact_weight = weight.double().requires_grad_()
    out = torch.nn.functional.rms_norm(exact, (D,), exact_weight, 1e-2)
    out.backward(of_out.double())
    found, scale = kernels.rms_norm(x, weight, 1e-2, dtype)
    of_x, of_weight = kernels.rms_norm_backward(of_out, x, weight, scale, residual)
    assert found.dtype is dtype
    close(found, out, dtype)
    close(of_x, exact.grad + residual.double(), torch.float32)
    close(of_weight, exact_weight.grad, torch.float32)


def test_gated_activation_and_its_gradients(dtype):
    gate_up = (torch.randn(N, 2 * F) * 4).to(dtype)
    of_out = torch.randn(N, F).to(dtype)
    exact = gate_up.double().requires_grad_()
    gate, up = exact.chunk(2, -1)
    out = torch.nn.functional.silu(gate) * up
    out.backward(of_out.double())
    close(kernels.swiglu(gate_up), out, dtype)
    of_gate_up, again = kernels.swiglu_backward(gate_up, of_out)
    close(of_gate_up, exact.grad, dtype)
    assert torch.equal(again, kernels.swiglu(gate_up))


def test_gates_far_from_zero():
    gate_up = torch.tensor([[-1e4, -100.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(kernels.swiglu(gate_up), torch.tensor([[0.0, 0.0, 100.0, 1e4]]))
    assert kernels.swiglu(torch.full((1, 2), torch.nan)).isnan().all()


def test_rotation_and_its_transposed(dtype):
    values = torch.randn(N, 5, 8).to(dtype)
    cos, sin = torch.randn(N, 8), torch.randn(N, 8)  # halves that differ, so that places matter
    for backward in (False, True):
        found, exact = values.clone(), values.double()
        kernels.rotate_(found, cos, sin, 3, backward)
        kernels.rotate_(exact, cos.double(), sin.double(), 3, backward)
        close(found, exact, dtype)
        assert torch.equal(found[:, 3:], values[:, 3:])


def test_rotation_in_torch_is_what_autograd_says():
    values = torch.randn(N, 3, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = (torch.randn(N, 1, 8, dtype=torch.float64) for _ in range(2))
    low, high = values.chunk(2, -1)
    upstream = torch.randn(N, 3, 8, dtype=torch.float64)
    (values * cos + torch.cat([-high, low], -1) * sin).backward(upstream)
    kernels.rotate_(upstream, cos[:, 0], sin[:, 0], 3, backward=True)
    torch.testing.assert_close(upstream, values.grad)


def test_sum_into_the_residual_stream(dtype):
    x, y = torch.randn(N, D), torch.randn(N, D).to(dtype)
    assert torch.equal(kernels.add(x, y), x + y.float())


def test_gradient_of_a_weight_in_blocks_of_outputs(dtype, monkeypatch):
    monkeypatch.setattr(kernels, "TRANSPOSED", 48)  # 130 outputs: two blocks and a margin
    of_out, x = torch.randn(N, 130).to(dtype), torch.randn(N, D).to(dtype)
    exact = of_out.double().T @ x.double()
    found = kernels.weight_gradient(of_out, x, torch.float32)
    close(found, exact, dtype)
    total = torch.ones_like(found)
    assert kernels.weight_gradient(of_out, x, torch.float32, total) is total
    close(total, exact + 1, dtype)


@pytest.mark.skipif(
    kernels.TILED_SOURCE.tiles() is None, reason="this processor has no matrix tiles (AMX)"
)
@pytest.mark.parametrize("rows", [1, 31, 64, 333, 2700])  # more than are summed at a time
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 96), (416, 32)])
@pytest.mark.parametrize("threads", [1, 3])
def test_gradient_of_a_weight_on_tiles(rows, outputs, inputs, threads):
    """Sums in float32: a thousand times nearer than a sum that is rounded to bfloat16."""
    of_out, x = torch.randn(rows, outputs).bfloat16(), torch.randn(rows, inputs).bfloat16()
    exact = of_out.double().T @ x.double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = kernels.weight_gradient(of_out, x, torch.float32)
        total = torch.ones_like(found)
        assert kernels.weight_gradient(of_out, x, torch.float32, total) is total
    finally:
        torch.set_num_threads(before)
    for sums, want in ((found, exact), (total, exact + 1)):
        torch.testing.assert_close(sums.double(), want, rtol=0, atol=3e-6 * float(want.abs().max()))


@pytest.mark.parametrize("outputs", [130, 128])
def test_what_lay_in_memory_does_not_matter(outputs):
    torch.manual_seed(0)
    of_out, x = torch.randn(N, outputs).bfloat16(), torch.randn(N, 64).bfloat16()  # N is odd
    torch.use_deterministic_algorithms(True)  # fills what `empty` returns with NaN
    try:
        found = kernels.weight_gradient(of_out, x, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    close(found, of_out.double().T @ x.double(), torch.bfloat16)


def test_other_types_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(native, "library", lambda *_: pytest.fail("float64 has no kernels"))
    kernels.rms_norm(torch.ones(2, 4, dtype=torch.float64), torch.ones(4), 0.0, torch.float64)
    kernels.swiglu(torch.ones(2, 4, dtype=torch.float16))


@pytest.mark.skipif(not matmul.has_tiles(), reason="this processor has no matrix tiles (AMX)")
def test_engine_and_learner_round_alike():
    """Norm and gate inside a product of tiles, bit for bit those of the learner's layers.

    A weight of ones and zeros lets numbers through as they are.
    """
    x, weight = (torch.randn(40, 64) * 3).bfloat16(), torch.randn(64).bfloat16()
    through = matmul.lay(torch.eye(64).bfloat16())
    one = matmul.multiply(x, through, None, norm=(weight, 1e-2))
    other, _ = kernels.rms_norm(x.float(), weight.float(), 1e-2, torch.bfloat16)
    assert torch.equal(one, other)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-2, torch.bfloat16)[0], other)
    one = matmul.multiply(
        x, matmul.lay(matmul.by_turns(torch.eye(64).bfloat16())), None, gated=True
    )
    assert torch.equal(one, kernels.swiglu(x))
