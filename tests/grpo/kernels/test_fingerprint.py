"""The fingerprint of bytes: its definition by hand, one number on every way, what it notices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.kernels import fingerprint, native
from grpo.kernels.fingerprint import (
    BLOCK,
    SOURCE,
    by_kernel,
    by_numpy,
    by_torch,
    fingerprints,
)
from grpo.model.content_hash import content_hash

WORD = 2**64
LENGTHS = st.one_of(
    st.integers(0, 40), st.sampled_from([4 * BLOCK * n + d for n in (1, 2, 3) for d in (-5, 0, 3)])
)


def random_bytes(length: int, seed: int = 0) -> torch.Tensor:
    array = np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)
    return torch.empty(length, dtype=torch.uint8).copy_(torch.from_numpy(array))


def split_mix(counter: int) -> int:
    """SplitMix64 with Python's integers, as its authors' C has it."""
    x = (counter + 1) * 0x9E3779B97F4A7C15 % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def by_definition(raw: bytes) -> tuple[int, int]:
    """The two sums, term by term, without a table."""
    raw += b"\0" * (-len(raw) % 4)
    sums = [0, 0]
    for lane in range(len(raw) // 4):
        w = int.from_bytes(raw[4 * lane : 4 * lane + 4], "little", signed=True)
        block, place = divmod(lane, BLOCK)
        for k in range(2):
            c = split_mix(k * BLOCK + place) >> 32 | 1
            c -= 2**32 if c >= 2**31 else 0
            m = split_mix(2**32 + 2 * block + k) | 1
            sums[k] = (sums[k] + m * c * w) % WORD
    return sums[0], sums[1]


def every_way(flat: torch.Tensor) -> list[list[int]]:
    compiled = SOURCE.load()
    ways = [by_torch(flat), by_numpy(flat)]
    ways += [] if compiled is None else [by_kernel(compiled, flat)]
    return [way.tolist() for way in ways]


def test_split_mix_is_the_one_that_was_published():
    """The first numbers of the generator with seed 0, as other implementations give them."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [split_mix(n) for n in range(3)] == expected


@given(length=LENGTHS, seed=st.integers(0, 5))
def test_kernel_torch_and_numpy_agree_with_the_definition(length, seed):
    flat = random_bytes(length, seed)
    expected = by_definition(flat.numpy().tobytes())
    for found in every_way(flat):
        assert tuple(n % WORD for n in found) == expected


def test_they_agree_beyond_what_is_multiplied_at_once(monkeypatch):
    monkeypatch.setattr(fingerprint, "ON_DEVICE", 3)
    flat = random_bytes(4 * BLOCK * 70 + 9)
    first, *others = every_way(flat)
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.complex64),
        *(torch.int8, torch.uint8, torch.int16, torch.int64, torch.float8_e4m3fn),
    ],
)
def test_any_type_is_read_as_its_bytes(dtype):
    for shape in ((), (0,), (1,), (7, 5), (3, 0, 2)):
        count = int(np.prod(shape))
        tensor = (torch.arange(count) % 3 - 1).to(dtype).reshape(shape)
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert fingerprints([tensor]) == [by_definition(raw)]


def test_strides_and_offsets_do_not_matter():
    x = torch.randn(6, 10).to(torch.bfloat16)
    odd = random_bytes(41)[1:]  # begins at no multiple of a lane
    views = [x.T, x[:, 1:], x[::2], x.flatten()[1:], x[0].expand(4, 10), odd]
    views += [x[0, :1].expand(1), x[::9, 3], torch.from_numpy(np.empty(0, np.float32))]
    for view, found in zip(views, fingerprints(views), strict=True):
        plain = view.clone(memory_format=torch.contiguous_format)
        assert [found] == fingerprints([plain])
        ways = every_way(fingerprint._flat(view))
        assert [n % WORD for n in ways[0]] == list(found)
        assert ways.count(ways[0]) == len(ways)


def test_threads_do_not_matter():
    flat = random_bytes(4 * BLOCK * 100)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = fingerprints([flat])
    finally:
        torch.set_num_threads(before)
    assert two == fingerprints([flat])


@given(length=st.integers(1, 3 * 4 * BLOCK), where=st.floats(0, 1), bit=st.integers(0, 7))
def test_one_flipped_bit_changes_both_sums(length, where, bit):
    flat = random_bytes(length)
    ((a, b),) = fingerprints([flat])
    flat[int(where * (length - 1))] ^= 1 << bit
    ((c, d),) = fingerprints([flat])
    assert a != c
    assert b != d


@given(st.data())
def test_exchanged_elements_are_noticed(data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int8]))
    flat = torch.arange(2 * BLOCK + 50).to(dtype)
    i, j = (data.draw(st.integers(0, len(flat) - 1)) for _ in range(2))
    before = fingerprints([flat])
    same = bool(flat[i] == flat[j])
    flat[[i, j]] = flat[[j, i]]
    assert (fingerprints([flat]) == before) is same


def test_a_row_that_moved_and_blocks_that_changed_places_are_noticed():
    blocks = random_bytes(4 * BLOCK * 8).view(8, -1)
    found = {fingerprints([blocks.roll(n, 0)])[0] for n in range(8)}
    found |= {fingerprints([blocks.roll(4 * n, 1)])[0] for n in range(1, 8)}
    assert len(found) == 15


def test_names_types_and_shapes_are_part_of_the_hash():
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    alike = [("a", a), ("b", b)]
    others = [
        [("a", b), ("b", a)],  # exchanged
        [("a", a), ("b", b.view(3, 2))],
        [("a", a.int()), ("b", b)],  # the same bytes
        [("a", a), ("b", b.bfloat16())],
        [("a", a), ("b", b), ("c", b)],
        [("a", a)],
        [],
    ]
    assert content_hash(alike) == content_hash(reversed(alike))
    assert len({content_hash(named) for named in (alike, *others)}) == len(others) + 1


def test_tied_tensors_are_hashed_under_each_name():
    tied = torch.randn(4, 4)
    named = [("head", tied), ("embedding", tied)]
    assert content_hash(named) == content_hash([(name, t.clone()) for name, t in named])
    assert content_hash(named) != content_hash(named[:1])


def test_the_hash_of_known_bytes_does_not_change():
    """Whoever reads a hash in an old record can compute it again: a change of it is noticed here.

    Worked out from the definition with Python's integers and hashlib alone.
    """
    import hashlib

    tensor = torch.arange(5, dtype=torch.int16)
    first, second = by_definition(tensor.numpy().tobytes())
    line = f"w|torch.int16|(5,)|{first:016x}{second:016x}"
    digest = hashlib.sha256(line.encode()).digest()
    expected = hashlib.blake2b(digest, digest_size=8).hexdigest()
    assert content_hash([("w", tensor)]) == expected == "aaa14f246b2cb3a2"


def test_nothing_of_a_tensor_is_kept():
    """Weights are cast one at a time; all casts at once would be a second copy of the model."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []

    def one_after_another():
        for n in range(5):
            assert sum(ref() is not None for ref in alive) <= 1
            tensor = torch.full((100,), float(n))
            alive.append(weakref.ref(tensor))
            yield tensor
            del tensor

    assert len(fingerprints(one_after_another())) == 5


def test_of_tensors_on_a_device_one_copy_comes_to_the_host(monkeypatch):
    """`meta` raises wherever a number is asked for; here it may be once, for all tensors."""
    asked: list[tuple[int, ...]] = []

    def tolist(tensor):
        asked.append(tuple(tensor.shape))
        return [[0, 0]] * len(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    shapes = [(300, 70), (), (0,), (3, 5), (2**11 * BLOCK * 2 + 7,)]
    named = [
        (str(n), torch.empty(s, dtype=t, device="meta"))
        for n, s in enumerate(shapes)
        for t in (torch.bfloat16, torch.float32, torch.bool)
    ]
    assert len(content_hash(named)) == 16
    assert asked == [(15, 2)]


def test_a_kernel_refuses_what_does_not_lie_in_order():
    compiled = SOURCE.load()
    if compiled is None:
        pytest.skip("no C++ compiler")
    with pytest.raises(ValueError, match="strides"):
        by_kernel(compiled, torch.zeros(8, dtype=torch.uint8)[::2])


def test_where_nothing_is_compiled_the_hash_is_the_same(monkeypatch):
    tensors = [torch.randn(3000).to(torch.bfloat16), torch.tensor(True)]
    before = fingerprints(tensors)
    monkeypatch.setenv(native.SWITCH, "0")
    native.library.cache_clear()
    try:
        assert SOURCE.load() is None
        assert fingerprints(tensors) == before
    finally:
        native.library.cache_clear()
