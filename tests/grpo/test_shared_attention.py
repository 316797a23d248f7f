"""The compiled attention of packed groups against the one in torch."""

import pytest
import torch

from grpo import shared_attention
from grpo.batch import Pack
from grpo.native import library
from grpo.shared_attention import attend, attend_backward, make_layout

pytestmark = pytest.mark.skipif(library(shared_attention.SOURCE) is None, reason="no C++ compiler")

# prompts and completions shorter and longer than a tile; a pack of one completion
SHAPES = [(5, (3, 9, 2)), (7, (40,)), (1, (1, 1)), (50, (33, 70))]


def laid():
    packs, place = [], 0
    for prompt, lengths in SHAPES:
        start, place = place, place + prompt
        completions = []
        for length in lengths:
            completions.append((place, length))
            place += length
        packs.append(Pack(start=start, prompt=prompt, completions=tuple(completions)))
    return make_layout(packs, torch.device("cpu")), place


def computed(dtype, heads, keys, dim):
    layout, N = laid()
    torch.manual_seed(0)
    mixed = torch.randn(N, heads + 2 * keys, dim, dtype=torch.float64)
    upstream = torch.randn(N, heads, dim, dtype=torch.float64)
    query, key, value = mixed.to(dtype).split([heads, keys, keys], 1)
    out, norm = attend(query, key, value, layout, 0.3)
    saved = (query, key, value, out, norm)
    return out, norm, *attend_backward(upstream.to(dtype), saved, layout, 0.3)


def distance(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("heads", "keys", "dim"), [(4, 2, 16), (9, 3, 64), (2, 2, 40)])
def test_as_exact_as_torch(heads, keys, dim, monkeypatch):
    exact = computed(torch.float64, heads, keys, dim)
    for dtype in (torch.float32, torch.bfloat16):
        compiled = computed(dtype, heads, keys, dim)
        with monkeypatch.context() as patch:
            patch.setattr(shared_attention, "_kernels", lambda *_: None)
            plain = computed(dtype, heads, keys, dim)
        for ours, theirs, right in zip(compiled, plain, exact, strict=True):
            assert distance(ours, right) < 1.2 * distance(theirs, right) + 1e-7


def test_the_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(computed(torch.bfloat16, 4, 2, 16))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_broken_key_is_seen():
    layout, N = laid()
    query, key, value = torch.ones(3, N, 2, 16)
    key[2] = torch.nan
    out, _ = attend(query, key, value, layout, 0.3)
    assert out[2:5].isnan().all()  # that token and those after it
    assert out[:2].isfinite().all()
