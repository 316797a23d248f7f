"""The compiled attention of packed groups against dense attention, and the one in torch."""

import pytest
import torch

from grpo.attention import shared
from grpo.attention.layout import Pack, make_layout
from grpo.attention.shared import attend, attend_backward
from grpo.kernels.attention import SOURCE
from grpo.kernels.door import Source

pytestmark = pytest.mark.skipif(SOURCE.load() is None, reason="no C++ compiler")

SCALE = 0.3
# Lengths of prompts and their completions: shorter and longer than a block of the kernels (32), and
# whole ones; a pack of one completion; prompts whose gradients take several chunks of keys.
PACKS = {
    "short": [(5, (3, 9, 2)), (7, (40,)), (1, (1, 1)), (50, (33, 70))],
    "whole blocks": [(32, (32, 64)), (31, (31, 33)), (33, (1, 65, 32))],
    "long": [(400, (70, 1, 33))],
    "growing": [(length, (71 - length, length)) for length in range(1, 71, 3)],
}
FLOAT_ONLY = Source(SOURCE.file, "FLOAT_ONLY", attend="PPP", attend_backward="PPPP")
KERNELS = {  # which kernels take part, by what they are compiled with
    "compiled": lambda query, *_: SOURCE.load(query.dtype),
    "float only": lambda query, *_: FLOAT_ONLY.load(query.dtype),
    "torch": lambda *_: None,
}


def laid(shapes):
    packs, place = [], 0
    for prompt, lengths in shapes:
        start, place = place, place + prompt
        completions = []
        for length in lengths:
            completions.append((place, length))
            place += length
        packs.append(Pack(start=start, prompt=prompt, completions=tuple(completions)))
    return packs, place


def drawn(N, heads, keys, dim):
    torch.manual_seed(0)
    mixed = torch.randn(N, heads + 2 * keys, dim, dtype=torch.float64)
    return mixed, torch.randn(N, heads, dim, dtype=torch.float64)


def computed(shapes, dtype, heads, keys, dim):
    """Outputs, normalizers, and gradients of queries, keys and values, which lie side by side."""
    packs, N = laid(shapes)
    layout = make_layout(packs, torch.device("cpu"))
    mixed, upstream = (values.to(dtype) for values in drawn(N, heads, keys, dim))
    parts = [heads, keys, keys]
    query, key, value = mixed.split(parts, 1)
    out, norm = attend(query, key, value, layout, SCALE)
    gradients = torch.full_like(mixed, torch.nan).split(parts, 1)
    attend_backward(upstream, (query, key, value, out, norm), layout, SCALE, gradients)
    return out, norm, *gradients


def exactly(shapes, heads, keys, dim):
    """The same by a mask over all pairs of tokens, and autograd."""
    packs, N = laid(shapes)
    mixed, upstream = drawn(N, heads, keys, dim)
    query, key, value = (part.requires_grad_() for part in mixed.split([heads, keys, keys], 1))
    seen = torch.zeros(N, N, dtype=torch.bool)
    for pack in packs:
        for start, length in ((pack.start, pack.prompt), *pack.completions):
            own = slice(start, start + length)
            seen[own, pack.start : pack.start + pack.prompt] = start != pack.start
            seen[own, own] = torch.ones(length, length).tril() > 0
    key_of, value_of = (t.repeat_interleave(heads // keys, 1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key_of) * SCALE
    norm = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
    probs = (scores - norm[..., None]).exp() * seen
    out = torch.einsum("hqk,khd->qhd", probs, value_of)
    gradients = torch.autograd.grad(out, (query, key, value), upstream)
    return out.detach(), norm.T.detach(), *gradients


def distance(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("kernels", ["compiled", "float only"])
@pytest.mark.parametrize(
    ("shapes", "heads", "keys", "dim"),
    [
        ("short", 4, 2, 16),
        ("short", 9, 3, 64),
        ("short", 2, 2, 40),
        ("whole blocks", 3, 1, 80),
        ("whole blocks", 2, 2, 128),
        ("long", 3, 1, 64),
        ("long", 9, 1, 32),
        ("growing", 2, 1, 64),
    ],
)
def test_as_exact_as_torch(kernels, shapes, heads, keys, dim, monkeypatch):
    packs = PACKS[shapes]
    exact = exactly(packs, heads, keys, dim)
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(shared, "_kernels", KERNELS[kernels])
        compiled = computed(packs, dtype, heads, keys, dim)
        monkeypatch.setattr(shared, "_kernels", KERNELS["torch"])
        plain = computed(packs, dtype, heads, keys, dim)
        for ours, theirs, right in zip(compiled, plain, exact, strict=True):
            assert distance(ours, right) < 1.2 * distance(theirs, right) + 1e-6


@pytest.mark.parametrize("kernels", ["compiled", "float only"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_every_token_by_itself(kernels, dtype, close, monkeypatch):
    """No error hides in a norm over all tokens; prompts and completions may be empty."""
    monkeypatch.setattr(shared, "_kernels", KERNELS[kernels])
    shapes = [(0, (5, 33)), (40, (0, 3)), (33, (31,)), (200, (40, 2))]
    exact = exactly(shapes, 4, 2, 48)
    for ours, right in zip(computed(shapes, dtype, 4, 2, 48), exact, strict=True):
        assert ours.shape == right.shape
        apart = (ours.double() - right).flatten(1).norm(dim=1)
        assert (apart <= close * (right.flatten(1).norm(dim=1) + 1)).all()


def test_tiles_are_used_where_they_can_be(monkeypatch):
    with_tiles, without = (s.load(torch.bfloat16) for s in (SOURCE, FLOAT_ONLY))
    assert with_tiles is not None
    assert without is not None
    tiled = with_tiles.has_tiles
    assert not without.has_tiles
    found = []
    for kernels in ("compiled", "float only"):
        monkeypatch.setattr(shared, "_kernels", KERNELS[kernels])
        found.append(computed(PACKS["short"], torch.bfloat16, 4, 2, 64))
    for one, other in zip(*found, strict=True):  # they round at different places
        assert torch.equal(one, other) != tiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_for_any_number_of_threads(dtype):
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(computed(PACKS["short"], dtype, 4, 2, 16))
    finally:
        torch.set_num_threads(before)
    for results in zip(*found, strict=True):
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_broken_key_is_seen(dtype):
    packs, N = laid([(5, (3, 9, 2)), (7, (40,))])
    query, key, value = torch.ones(3, N, 2, 16, dtype=dtype)
    key[2] = torch.nan
    out, _ = attend(query, key, value, make_layout(packs, torch.device("cpu")), SCALE)
    assert out[2:19].isnan().all()  # that token, and those after it in its pack
    assert out[:2].isfinite().all()
    assert out[19:].isfinite().all()
