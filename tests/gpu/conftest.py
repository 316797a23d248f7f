"""Tests of a card: skipped where there is none, rehearsed on a CPU with `GRPO_GPU_TESTS=cpu`.

    python -m pytest -n0 tests/gpu                       on a machine with a card
    GRPO_GPU_TESTS=cpu python -m pytest -n0 tests/gpu    the tests' own code, anywhere

What a CPU cannot say (pinned memory, bytes of a card, capability) is skipped there with that
reason. Each file says what its failures would mean. Tests know nothing of one another.

On a card a warning is shown and fails nothing: libraries have remarks about cards that no CPU has
heard. A kernel that went wrong breaks the CUDA context of the whole process; the test in which this
shows fails, and those behind it are skipped with its name instead of failing one after the other.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as of_torch

from grpo.attention import flex, interface
from grpo.learner import layers

HERE = Path(__file__).parent
REHEARSED = os.environ.get("GRPO_GPU_TESTS") == "cpu"
if REHEARSED:  # before anything looks: accelerate would take the card, and so would child processes
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
CARD = torch.cuda.is_available()
SECONDS = 150  # for one test on a card, compilation included; a kernel that hangs costs no more
_lost: list[str] = []  # the test that broke the context


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        # said by PyTorch's compiler of itself, and by FlexAttention without it
        for said in ("The .grad attribute of a Tensor", "flex_attention called without torch"):
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{said}"))
        if CARD:
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)
            item.add_marker(pytest.mark.timeout(SECONDS))
        elif not REHEARSED:
            item.add_marker(pytest.mark.skip(reason="no card (GRPO_GPU_TESTS=cpu rehearses)"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where accelerate puts learner and engine: the card, or the CPU of a rehearsal."""
    return torch.device("cuda", 0) if CARD else torch.device("cpu")


@pytest.fixture
def card(device: torch.device) -> torch.device:
    """The device, for tests that mean nothing on a CPU."""
    if device.type != "cuda":
        pytest.skip("says something about a card's memory or kernels, which a CPU does not have")
    return device


@pytest.fixture(autouse=True)
def _from_a_clean_card() -> Iterator[None]:
    """Kernels of this test only, nothing of the test before in memory, errors where they arise."""
    if _lost:
        pytest.skip(f"the CUDA context of this process broke in {_lost[0]}")
    if torch.get_float32_matmul_precision() != "highest":
        pytest.fail("products of float32 are TF32's: some test before left it so")
    if CARD:
        torch._dynamo.reset()  # or the ninth head size of a process is no longer compiled
        flex._compiled.cache_clear()
    yield
    if CARD:
        gc.collect()
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        except RuntimeError:
            _lost.append(os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0])
            raise


@pytest.fixture
def flex_calls(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the rows that go through FlexAttention.

    In a rehearsal it runs on the CPU, without its compiler and although PyTorch refuses gradients.
    """
    calls: list[int] = []

    def counted(query: torch.Tensor, *given: Any) -> torch.Tensor:
        calls.append(query.shape[-2])
        return flex.attend_in_blocks(query, *given)

    def uses(query: torch.Tensor, *_: torch.Tensor) -> bool:
        sizes = flex.HEAD_SIZES
        return query.dtype != torch.float64 and query.shape[-2] > 128 and query.shape[-1] in sizes

    monkeypatch.setattr(interface, "attend_in_blocks", counted)
    if device.type == "cpu":
        monkeypatch.setattr(of_torch, "_validate_device", lambda *_: None)
        monkeypatch.setattr(interface, "uses_flex", uses)
        monkeypatch.setattr(layers, "_is_plain", lambda _: False)  # transformers' own layers
    return calls
