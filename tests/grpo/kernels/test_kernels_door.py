"""What a kernel is given: refused where it is not what the C++ takes it to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grpo.attention.layout import Pack, make_layout
from grpo.attention.shared import attend
from grpo.kernels import head, layers, matmul
from grpo.rollout.embedded.cpu.compiled_attention import (
    CompiledAttention,
    attention_kernels,
    make_step,
)
from grpo.rollout.embedded.cpu.draw import draw
from grpo.rollout.embedded.cpu.group_cache import GroupCache
from grpo.rollout.embedded.cpu.rotation import Rotation

pytestmark = pytest.mark.skipif(head.SOURCE.load() is None, reason="no C++ compiler")

N, D, V = 5, 32, 97


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def everything() -> list[torch.Tensor]:
    """The results of every kernel on the same float32 numbers."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    product, x, weight, gate_up = some(N, V), some(N, D), some(D), some(N, 2 * D)
    targets = torch.arange(N) * 7
    found = [head.normalize(product, targets, 0.7)]
    rows = torch.stack([found[0][0], found[0][2], some(N), some(N)])
    found.append(head.pull_back_(product.clone(), targets, rows, 0.7))
    found += layers.rms_norm(x, weight, 1e-5, torch.float32)
    found += layers.rms_norm_backward(some(N, D), x, weight, found[3], some(N, D))
    found += [layers.swiglu(gate_up), *layers.swiglu_backward(gate_up, some(N, D))]
    narrow = some(N, 64).bfloat16()
    found.append(layers.weight_gradient(narrow, narrow, torch.float32))
    layout = make_layout([Pack(start=0, prompt=2, completions=((2, 2), (4, 1)))], x.device)
    found += attend(some(N, 4, 16), some(N, 2, 16), some(N, 2, 16), layout, 0.25)
    uniform = np.linspace(0, 0.9, N)
    found += draw(product, uniform, np.full(N, 0.5, np.float32))
    return found


def test_numbers_do_not_depend_on_torchs_default_type(in_float64):
    """float64 memory where a kernel writes float32 is half read, and the rest is rubbish."""
    found = everything()
    torch.set_default_dtype(torch.float32)
    for one, other in zip(found, everything(), strict=True):
        assert one.dtype is other.dtype
        assert torch.equal(one, other)


def test_the_head_refuses_targets_that_lead_out_of_a_row():
    product = torch.randn(N, V, dtype=torch.float32)
    rows = torch.zeros(4, N)
    for targets, words in (
        (torch.full((N,), V), f"from {V} to {V}; valid: 0 to {V - 1}"),
        (torch.full((N,), -1), "from -1 to -1"),
        (torch.zeros(N, dtype=torch.int32), "torch.int32"),
        (torch.zeros(N - 1, dtype=torch.int64), r"\(4,\)"),
    ):
        for call in (
            lambda t=targets: head.normalize(product, t, 1.0),
            lambda t=targets: head.pull_back_(product, t, rows, 1.0),
        ):
            with pytest.raises(ValueError, match=words):
                call()


def test_layers_refuse_other_types_shapes_and_layouts():
    x, weight = torch.randn(N, D), torch.randn(D)
    for call in (
        lambda: layers.rms_norm(x, torch.randn(D - 1), 1e-5, torch.float32),
        lambda: layers.rms_norm(torch.randn(D, N).T, weight, 1e-5, torch.float32),
        lambda: layers.rms_norm_backward(x, x, weight, torch.ones(N - 1), x),
        lambda: layers.add(x, torch.randn(N, D - 1)),
        lambda: layers.swiglu(torch.randn(N, 2 * D + 1)),
        lambda: layers.swiglu_backward(torch.randn(N, 2 * D), torch.randn(N, D + 1)),
        lambda: layers.rotate_(torch.randn(N, 2, 8), torch.randn(N - 1, 8), torch.randn(N, 8), 2),
        lambda: layers.rotate_(torch.randn(N, 2, 8), torch.randn(N, 8), torch.randn(N, 8), 3),
        lambda: layers.rotate_(
            torch.randn(N, 8, 2).transpose(1, 2), torch.randn(N, 8), torch.randn(N, 8), 2
        ),
    ):
        with pytest.raises(ValueError, match=r"kernel was given|cannot be rotated"):
            call()


@pytest.mark.skipif(not matmul.has_tiles(), reason="this processor has no matrix tiles (AMX)")
def test_tiles_refuse_what_does_not_fit():
    laid = matmul.lay(torch.randn(64, 32).bfloat16())
    for call in (
        lambda: matmul.lay(torch.randn(32, 64).bfloat16().T),
        lambda: matmul.lay(torch.randn(64, 32).bfloat16(), torch.empty(64).bfloat16()),
        lambda: matmul.multiply(torch.randn(3, 32), laid, None),
        lambda: matmul.multiply(torch.randn(3, 64).bfloat16()[:, ::2], laid, None),
        lambda: matmul.multiply(torch.randn(3, 32).bfloat16(), laid, torch.randn(63).bfloat16()),
    ):
        with pytest.raises(ValueError, match="kernel was given"):
            call()


def test_attention_refuses_a_layout_of_more_tokens():
    layout = make_layout(
        [Pack(start=0, prompt=2, completions=((2, 2), (4, 2)))], torch.device("cpu")
    )
    query, key = torch.randn(5, 4, 16), torch.randn(5, 2, 16)
    with pytest.raises(ValueError, match="6 tokens is not one of 5"):
        attend(query, key, key, layout, 0.25)
    layout = make_layout([Pack(start=0, prompt=2, completions=((2, 3),))], torch.device("cpu"))
    with pytest.raises(ValueError, match="do not belong together"):
        attend(query, key, torch.randn(4, 2, 16), layout, 0.25)


def test_a_draw_refuses_numbers_of_another_type():
    logits = torch.randn(N, V)
    with pytest.raises(ValueError, match="float64"):
        draw(logits, np.zeros(N), np.ones(N))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        draw(logits, np.zeros(N - 1), np.ones(N, np.float32))


def test_decoding_refuses_places_that_the_cache_does_not_have():
    cache = GroupCache(4, 2, 16, 1, pair=1)
    (group,) = cache.open([0], [3])
    cache.begin_prefill(torch.tensor([group]))
    cache.update(torch.randn(1, 2, 3, 16), torch.randn(1, 2, 3, 16), 0)
    cache.reserve(1, 1, torch.zeros(1))
    tables = torch.randn(64, 16), torch.randn(64, 16)

    def step(position: int, kind: type = np.int64, tables=tables):
        shared = {"heads": 4, "kv_heads": 2, "size": 16, "cache": cache, "tables": tables}
        return make_step(positions=np.array([position], kind), **shared)

    compiled = attention_kernels(16, torch.float32)
    assert compiled is not None
    attend = CompiledAttention(compiled, Rotation(None, 16), torch.float32)
    given = [cache, 0, None, None]
    mixed = torch.randn(1, 8 * 16)
    assert attend(step(3), mixed, *given).isfinite().all()
    for position, words in ((2, "from -1 to -1"), (3 + 32, "from 32 to 32; valid: 0 to 31")):
        with pytest.raises(ValueError, match=words):
            step(position)
    with pytest.raises(ValueError, match="int32"):
        step(3, np.int32)
    with pytest.raises(ValueError, match="float64"):
        step(3, tables=(tables[0].double(), tables[1]))
    for wrong in (mixed.bfloat16(), mixed[:, :-1], mixed.double()):
        with pytest.raises(ValueError, match="kernel was given queries"):
            attend(step(3), wrong, *given)
    cache.group[0] = -1
    with pytest.raises(ValueError, match="groups of rows from -1"):
        step(3)
