"""`grpo/model/transfer.py`: bytes, alignment and sharing; how often it copies is
`test_counting.py`'s.

Its way to a device runs here on the CPU under another name of the device, so that bytes can be
compared: `meta` has none.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grpo.model.transfer import ALIGNMENT, pins, to_device, to_host

CPU = torch.device("cpu")


class Elsewhere:
    """A device that computes as the CPU does and is not called so."""

    type = "elsewhere"


@pytest.fixture
def elsewhere(monkeypatch):
    """`to_device` copies its buffer to this device; `to_host` finds tensors of it there."""
    plain_to = torch.Tensor.to

    def to(tensor, device, **options):
        assert isinstance(device, Elsewhere)
        assert options == {"non_blocking": False}
        return plain_to(tensor, "cpu", copy=True)

    monkeypatch.setattr(torch.Tensor, "to", to)
    return Elsewhere()


def some_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "mask": random.random((3, 5)) < 0.5,  # 15 bytes: what follows would lie at odd places
        "ids": random.integers(-(2**40), 2**40, (2, 3), dtype=np.int64),
        "small": random.integers(-9, 9, 7, dtype=np.int32),
        "none": np.empty((0, 4), np.float64),
        "real": random.random((3, 1)).astype(np.float32),
        "wide": random.random(5),
        "one": np.array(2.5),
        "turned": random.random((2, 3)).T,
    }


@pytest.mark.parametrize("way", ["cpu", "elsewhere"])
def test_what_arrives_has_the_same_names_shapes_types_and_bytes(way, elsewhere):
    arrays = some_arrays()
    there = to_device(CPU if way == "cpu" else elsewhere, **arrays)
    assert list(there) == list(arrays)
    for name, array in arrays.items():
        assert there[name].shape == array.shape
        assert there[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(there[name].numpy(), array)


def test_on_a_cpu_nothing_is_copied():
    array = np.arange(4)
    tensor = to_device(CPU, array=array)["array"]
    array[0] = 9
    assert tensor[0] == 9
    (back,) = to_host(tensor)
    back[1] = 8
    assert array[1] == 8


def test_elsewhere_all_are_views_of_one_aligned_buffer(elsewhere):
    there = to_device(elsewhere, **some_arrays())
    assert len({t.untyped_storage().data_ptr() for t in there.values()}) == 1
    assert ALIGNMENT % 8 == 0
    for tensor in there.values():
        assert tensor.storage_offset() * tensor.element_size() % ALIGNMENT == 0
    # 15 bytes take 16, then 48, 28 take 32, 0, 12 take 16, 40 take 48, 8 take 16, 48
    assert there["mask"].untyped_storage().nbytes() == 16 + 48 + 32 + 0 + 16 + 48 + 16 + 48


def test_nothing_at_all_is_no_arrays(elsewhere):
    assert to_device(elsewhere) == {}
    empty = to_device(elsewhere, none=np.empty(0, np.int64))["none"]
    assert (empty.shape, empty.dtype) == ((0,), torch.int64)
    assert to_host() == ()


def test_back_on_the_host_they_are_as_they_were(monkeypatch):
    tensors = {name: torch.from_numpy(array) for name, array in some_arrays().items()}
    tensors["grad"] = torch.ones(2, requires_grad=True)
    tensors["half"] = torch.tensor([0.5, -2.0], dtype=torch.float16)
    # The way of a device: as if none of them were on a CPU.
    monkeypatch.setattr("grpo.model.transfer.all", lambda _: False, raising=False)
    found = to_host(*tensors.values())
    for tensor, array in zip(tensors.values(), found, strict=True):
        assert array.shape == tensor.shape
        np.testing.assert_array_equal(array, tensor.detach().numpy())
        assert array.dtype == tensor.detach().numpy().dtype
    assert found[0].base is not None  # one copy, of which each is a part


def test_a_type_that_numpy_lacks_is_refused(monkeypatch):
    with pytest.raises(TypeError):
        to_host(torch.zeros(1, dtype=torch.bfloat16))
    monkeypatch.setattr("grpo.model.transfer.all", lambda _: False, raising=False)
    with pytest.raises(TypeError):
        to_host(torch.zeros(1, dtype=torch.bfloat16))


def test_only_devices_with_pinned_memory_are_not_waited_for():
    assert pins(torch.device("cuda", 0))
    assert not any(pins(torch.device(name)) for name in ("cpu", "meta", "mps"))
