"""The mode itself, on programs whose copies and synchronizations PyTorch's source tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grpo.model import transfer
from grpo.model.transfer import to_device, to_host

from .counting import CARD, Counting, ShapeUnknown

X = torch.zeros(3, 4, device=CARD)
I = torch.zeros(3, dtype=torch.int64, device=CARD)  # noqa: E741
HERE = torch.zeros(3, 4)
with torch.inference_mode():
    MADE = torch.zeros(2, device=CARD)


def counted(program):
    with Counting() as mode:
        program()
    return mode


def pinned(tensor):
    return tensor.pin_memory()


# blocking uploads, uploads, downloads, synchronizations
PROGRAMS = {
    "ordinary memory": (lambda: HERE.to(CARD), (1, 0, 0, 0)),
    "ordinary memory is waited for, asked or not": (
        lambda: HERE.to(CARD, non_blocking=True),
        (1, 0, 0, 0),
    ),
    "pinned and waited for": (lambda: pinned(HERE).to(CARD), (1, 0, 0, 0)),
    "pinned": (lambda: pinned(HERE).to(CARD, non_blocking=True), (0, 1, 0, 0)),
    "a view of pinned": (lambda: pinned(HERE)[1].to(CARD, non_blocking=True), (0, 1, 0, 0)),
    "allocated pinned": (
        lambda: torch.empty(3, pin_memory=True).to(CARD, non_blocking=True),
        (0, 1, 0, 0),
    ),
    "pinned, of another type": (
        lambda: pinned(HERE).to(CARD, torch.float64, non_blocking=True),
        (1, 0, 0, 0),
    ),
    "into a tensor": (lambda: X.copy_(HERE), (1, 0, 0, 0)),
    "into a tensor, pinned": (lambda: X.copy_(pinned(HERE), non_blocking=True), (0, 1, 0, 0)),
    "a list": (lambda: torch.tensor([1, 2], device=CARD), (1, 0, 0, 0)),
    "a list, twice": (
        lambda: (X.new_tensor([1.0]), torch.as_tensor([1], device=CARD)),
        (2, 0, 0, 0),
    ),
    "an array": (lambda: torch.as_tensor(np.zeros(3), device=CARD), (1, 0, 0, 0)),
    "places on the host": (lambda: X[torch.tensor([0])], (1, 0, 0, 0)),
    "places in a list": (lambda: X[[0, 1]], (1, 0, 0, 0)),
    "back": (lambda: X.cpu(), (0, 0, 1, 1)),
    "back into a tensor": (lambda: HERE.clone().copy_(X), (0, 0, 1, 1)),
    "back, not waited for": (lambda: X.to("cpu", non_blocking=True), (0, 0, 1, 0)),
    "as a list": (lambda: X.tolist(), (0, 0, 1, 1)),
    "a number": (lambda: float(X.sum()), (0, 0, 0, 1)),
    "a condition": (lambda: bool((X > 0).any()), (0, 0, 0, 1)),
    "equality": (lambda: torch.equal(X, X), (0, 0, 0, 1)),
    "a mask is written through": (lambda: X.__setitem__(X > 0, 0.0), (0, 0, 0, 1)),
    # and what stays where it is
    "made there": (lambda: torch.full((2,), 3.0, device=CARD).add_(1), (0, 0, 0, 0)),
    "a constant": (lambda: torch.where(X > 0, 1.0, 2.0) + torch.tensor(1.0), (0, 0, 0, 0)),
    "places on the card": (lambda: X[I], (0, 0, 0, 0)),
    "slices": (lambda: X[1:, None, 0], (0, 0, 0, 0)),
    "of the host only": (lambda: HERE[HERE > 0].tolist(), (0, 0, 0, 0)),
    "back, of inference mode": (lambda: MADE.cpu(), (0, 0, 1, 1)),
    "converted there": (lambda: X.double().to(CARD), (0, 0, 0, 0)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_counted_as_its_source_says(name):
    program, expected = PROGRAMS[name]
    assert tuple(counted(program).totals().values()) == expected
    with torch.inference_mode():
        assert tuple(counted(program).totals().values()) == expected


@pytest.mark.parametrize(
    "program",
    [
        lambda: X[X > 0],
        lambda: X.nonzero(),
        lambda: torch.unique(I),
        lambda: torch.masked_select(X, X > 0),
        lambda: torch.bincount(I),
        lambda: torch.repeat_interleave(X, I, dim=0),
    ],
)
def test_a_shape_that_depends_on_values_ends_the_program_with_its_line(program):
    mode = Counting()
    with pytest.raises(ShapeUnknown, match=r"tests/device/test_counting\.py:\d+"), mode:
        program()
    assert mode.count("synchronization") == 1


def test_an_event_names_the_line_that_asked():
    def program():
        X.cpu()

    (where,) = {event.where for event in counted(program).events}
    line = program.__code__.co_firstlineno + 1
    assert where == f"tests/device/test_counting.py:{line}"


def test_a_backward_pass_is_counted_too():
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, *gradients):
            float(gradients[0].sum())
            return gradients[0]

    leaf = torch.zeros(2, device=CARD, requires_grad=True)
    mode = counted(lambda: Waits.apply(leaf).sum().backward())
    assert mode.totals()["synchronization"] == 1
    assert leaf.grad is not None


def test_it_leaves_torch_as_it_found_it():
    before = torch.tensor, torch.Tensor.__getitem__
    counted(lambda: torch.tensor([1], device=CARD))
    assert (torch.tensor, torch.Tensor.__getitem__) == before


def test_many_arrays_are_one_upload_and_many_tensors_one_download(monkeypatch):
    arrays = {"a": np.zeros(3), "b": np.ones((2, 2), bool), "c": np.arange(5)}
    mode = counted(lambda: to_device(CARD, **arrays))
    assert mode.totals() == dict(zip(mode.totals(), (1, 0, 0, 0), strict=True))
    monkeypatch.setattr(transfer, "pins", lambda device: device == CARD)
    mode = counted(lambda: to_device(CARD, **arrays))
    assert mode.totals() == dict(zip(mode.totals(), (0, 1, 0, 0), strict=True))
    mode = counted(lambda: to_host(X, I, X.half(), X.sum()))
    assert mode.totals() == dict(zip(mode.totals(), (0, 0, 1, 1), strict=True))
