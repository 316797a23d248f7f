"""The content hash of weights is of their bytes: the same on a card and on the host.

First suspicion: one type alone, how its bytes are viewed there; all types, a hash taken before the
copy or the kernel that writes the tensor had ended.
"""

from __future__ import annotations

import pytest
import torch

from grpo.model.content_hash import content_hash

TYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
]
SHAPES = [(), (0, 3), (1,), (7,), (3, 5), (129, 65), (1024, 600)]


def named(dtype: torch.dtype) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (f"w{i}", (torch.randn(shape, generator=generator) * 50).abs().to(dtype))
        for i, shape in enumerate(SHAPES)
    ]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_same_hash_here_and_there(device: torch.device, dtype: torch.dtype) -> None:
    here = named(dtype)
    there = [(name, tensor.to(device)) for name, tensor in here]
    wanted = content_hash(here)
    assert content_hash(there) == wanted
    assert content_hash(reversed(there)) == wanted
    with_special = [*here, ("x", torch.tensor([float("nan"), -0.0, float("inf")]))]
    moved = [(name, tensor.to(device)) for name, tensor in with_special]
    assert content_hash(moved) == content_hash(with_special) != wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_views_are_hashed_as_what_they_show(device: torch.device, dtype: torch.dtype) -> None:
    """Turned, sliced at odd places, and expanded: as the same numbers laid out plainly."""
    base = torch.randn(70, 51, generator=torch.Generator().manual_seed(1)).to(dtype)
    views = [base.T, base[1:, 3:], base[::2], base.flatten()[1:], base[0].expand(4, -1)]
    there = base.to(device)
    moved = [there.T, there[1:, 3:], there[::2], there.flatten()[1:], there[0].expand(4, -1)]
    for plain, view in zip(views, moved, strict=True):
        assert content_hash([("w", view)]) == content_hash([("w", plain.clone().contiguous())])


@pytest.mark.parametrize("place", [0, 1, 7777, 614_399])
def test_one_bit_is_seen(device: torch.device, place: int) -> None:
    (one,) = [tensor for name, tensor in named(torch.float32) if name == "w6"]
    there = one.to(device)
    before = content_hash([("w", there)])
    bits = there.view(torch.int32).view(-1)
    bits[place] ^= 1
    assert content_hash([("w", there)]) != before
    bits[place] ^= 1
    assert content_hash([("w", there)]) == before
    swapped = there.clone().view(-1)
    swapped[[0, place or 5]] = swapped[[place or 5, 0]]
    assert content_hash([("w", swapped.view_as(there))]) != before


def test_it_is_of_what_kernels_before_it_left(device: torch.device) -> None:
    """Asked for while they still run: an optimizer's step and a hash have no wait between them."""
    size = 4096 if device.type == "cuda" else 64
    value = torch.ones(size, size, device=device)
    for _ in range(50):
        value = value @ torch.eye(size, device=device)
    value.mul_(3)
    assert content_hash([("w", value)]) == content_hash([("w", torch.full((size, size), 3.0))])
