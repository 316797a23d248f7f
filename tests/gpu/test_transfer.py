"""Copies between host and card by `grpo/model/transfer.py`: pinned, not waited for, and right.

First suspicion: values wrong in `reuse` only, a pinned buffer that was filled again before its copy
ran; a copy that waits, memory that was not pinned; types, the alignment of a part of the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from grpo.model.transfer import to_device, to_host


def arrays_of(seed: int, size: int = 1000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 2**60, (3, size)),
        "mask": rng.random(size + 1) < 0.5,
        "weights": rng.random((size, 2), dtype=np.float32),
        "bytes": rng.integers(0, 255, 7, dtype=np.uint8),
        "noise": rng.random(size),
        "none": np.zeros((0, 5), dtype=np.float32),
        "one": np.array(rng.integers(9)),
        "turned": rng.random((5, 4), dtype=np.float32).T,
    }


def test_there_and_back(device: torch.device) -> None:
    arrays = arrays_of(0)
    there = to_device(device, **arrays)
    assert {t.device.type for t in there.values()} == {device.type}
    back = to_host(*there.values())
    for (name, array), tensor, found in zip(arrays.items(), there.values(), back, strict=True):
        assert tensor.shape == array.shape, name
        assert found.dtype == array.dtype, name
        np.testing.assert_array_equal(found, array, err_msg=name)


def test_buffers_are_not_reused_before_their_copy_ran(device: torch.device) -> None:
    """Many uploads in a row while the card is busy with kernels queued before them.

    The host runs far ahead: each buffer is free for the host's allocator before its copy has begun.
    """
    rounds = 200 if device.type == "cuda" else 20
    busy = torch.randn(4096 if device.type == "cuda" else 64, device=device).repeat(64, 1)
    kept: list[dict[str, torch.Tensor]] = []
    for step in range(rounds):
        for _ in range(20):
            busy = torch.tanh(busy @ busy.T @ busy * 1e-4)
        arrays = arrays_of(step, 20_000 if device.type == "cuda" else 100)
        kept.append(to_device(device, **arrays))
        del arrays
    for step, there in enumerate(kept):
        wanted = arrays_of(step, 20_000 if device.type == "cuda" else 100)
        for (name, array), found in zip(wanted.items(), to_host(*there.values()), strict=True):
            np.testing.assert_array_equal(found, array, err_msg=f"{name} of upload {step}")


def test_an_array_that_changes_after_the_call_does_not_change_its_tensor(
    card: torch.device,
) -> None:
    """The arrays are copied to the buffer at once; on a CPU tensors share their memory instead."""
    array = np.arange(1_000_000)
    with _waiting(card):
        there = to_device(card, array=array)["array"]
        array[:] = -1
    np.testing.assert_array_equal(to_host(there)[0], np.arange(1_000_000))


def test_an_upload_is_not_waited_for(card: torch.device) -> None:
    """It returns while the card sleeps; and one copy is made for all arrays."""
    arrays = arrays_of(0, 100_000)
    to_device(card, **arrays)  # the first one makes the pinned buffer
    torch.cuda.synchronize()
    with _waiting(card) as asleep:
        to_device(card, **arrays)
        assert not asleep.query(), "the call came back after the kernels before it had ended"
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        to_device(card, **arrays)
        torch.cuda.synchronize()
    copies = [e for e in profile.events() if "Memcpy HtoD" in e.name]
    assert len(copies) == 1
    assert "Pinned" in copies[0].name


@contextmanager
def _waiting(card: torch.device) -> Iterator[torch.cuda.Event]:
    """The card does nothing for about half a second; an event behind that."""
    done = torch.cuda.Event()
    torch.cuda._sleep(10**9)  # clock cycles, at 1 to 2 GHz
    done.record(torch.cuda.current_stream(card))
    yield done


def test_results_are_of_what_was_started_before(device: torch.device) -> None:
    """A copy back waits for the kernels that make what it copies."""
    value = torch.ones(512, 512, device=device)
    for _ in range(100 if device.type == "cuda" else 3):
        value = value @ torch.full_like(value, 1 / 512)
    (found,) = to_host(value)
    np.testing.assert_allclose(found, np.ones((512, 512)), rtol=1e-3)


def test_gradients_pass_through_views_of_the_buffer(device: torch.device) -> None:
    there = to_device(device, a=np.ones(5, dtype=np.float32), b=np.arange(5, dtype=np.float32))
    leaf = torch.zeros(5, device=device, requires_grad=True)
    ((leaf + there["a"]) * there["b"]).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.int8, np.uint8, np.bool_, np.float64])
def test_types(device: torch.device, dtype: type) -> None:
    array = (np.random.default_rng(0).random((3, 5)) * 100).astype(dtype)
    there = to_device(device, before=np.ones(3, dtype=np.uint8), it=array)["it"]
    np.testing.assert_array_equal(to_host(there)[0], array)
