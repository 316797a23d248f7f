"""What vLLM is told by the environment before it is imported; without vLLM."""

from __future__ import annotations

import importlib.util
import os
from types import SimpleNamespace

import pytest

from grpo.rollout.vllm import compat

SAMPLER = "VLLM_USE_FLASHINFER_SAMPLER"
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"


@pytest.fixture
def told(monkeypatch):
    """Imports a vLLM that is not there, beside the packages given; what it would read."""

    def imported(*packages, **before):
        for key in (*compat.ENVIRONMENT, SAMPLER):
            monkeypatch.setenv(key, "")  # so that it is put back, whatever becomes of it
            monkeypatch.delenv(key)
        for key, value in before.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(compat, "version", lambda: (0, 26))
        monkeypatch.setattr(compat, "is_cpu", lambda: False)
        monkeypatch.setattr(compat.importlib, "import_module", lambda _: SimpleNamespace())
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in packages or None)
        compat.import_vllm()
        return dict(os.environ)

    return imported


def test_a_sampler_that_would_import_flashinfer_is_off_where_it_is_missing(told):
    assert told()[SAMPLER] == "0"
    assert SAMPLER not in told("flashinfer")


def test_the_runner_is_the_one_the_engine_was_written_against(told):
    assert told()[RUNNER] == "0"


def test_what_a_user_has_set_stays_but_for_the_one_process(told):
    found = told(**{SAMPLER: "1", RUNNER: "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    assert (found[SAMPLER], found[RUNNER]) == ("1", "1")
    assert found["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
