"""What a checkpoint's generation_config.json says of sampling changes no completion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grpo
from grpo.commands.api.settings import merged
from grpo.config import config as recipes
from grpo.errors import RecipeError
from grpo.rollout import ENGINES
from grpo.types import EngineSpec, Request, Sampling
from tests.rollout.tiny_models import run

BASE = Path(str(grpo.__file__)).parent / "recipes" / "assets" / "parity-base"
# Qwen2.5-Instruct's own, and what else such a file may have.
OF_QWEN: dict[str, Any] = {
    "do_sample": True,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[3], [4]],
    "suppress_tokens": [5],
    "max_new_tokens": 3,
}


def completions(folder: Path) -> dict[Any, Any]:
    spec = EngineSpec(model=str(folder), dtype="float32", max_length=64, seed=1, threads=1)
    engine = ENGINES["torch"](spec=spec)
    sampling = Sampling(max_tokens=24, eos_ids=(1,))
    requests = [
        Request(uid=str(i), ids=(2, 5, 6, 7 + i), n=4, sampling=sampling, key=(9, i))
        for i in range(3)
    ]
    try:
        return run(engine, requests)
    finally:
        engine.close()


def test_the_embedded_engine_reads_none_of_it(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "plain")
    shutil.copytree(BASE, tmp_path / "qwen")
    own = json.loads((tmp_path / "qwen" / "generation_config.json").read_text())
    (tmp_path / "qwen" / "generation_config.json").write_text(json.dumps(own | OF_QWEN))
    plain, qwen = completions(tmp_path / "plain"), completions(tmp_path / "qwen")
    assert plain.keys() == qwen.keys()
    for key, completion in plain.items():
        assert completion.ids.tolist() == qwen[key].ids.tolist()
        np.testing.assert_array_equal(completion.logprobs, qwen[key].logprobs)
    assert max(len(completion.ids) for completion in plain.values()) > 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.repetition_penalty=1.1",
            r"unknown key 'repetition_penalty' in rollout: it chang",
        ),
        ("rollout.guided_json={}", "reward the form"),
        ("rollout.num_beams=4", "a beam search draws none"),
        ("rollout.max_tokens=4", r"write rollout\.max_completion_length"),
        ("rollout.skip_special_tokens=true", "without special tokens"),
        ("repetition_penalty=1.1", "unknown key 'repetition_penalty': it changes"),
        (
            "rollout.engine_args.logit_bias={a: 1.0}",
            r"rollout\.engine_args\.logit_bias = .*changes",
        ),
        ("rollout.engine_args.stop=['x']", r"rollout\.engine_args\.stop = .*write rollout\.stop"),
        ("rollout.temperature_=1.1", "Did you mean 'temperature'"),
        ("eval.top_k=3", "unknown key 'top_k' in eval"),
    ],
)
def test_settings_of_other_engines_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.load("parity-r1-zero", [override])


def test_keywords_of_a_call_are_refused_by_name_too() -> None:
    with pytest.raises(RecipeError, match="no setting 'frequency_penalty': it changes the distri"):
        merged("rl", {}, {"frequency_penalty": 0.5})
    assert merged("rl", {}, {"stop": ["x"]}) == {"rollout": {"stop": ["x"]}}


def test_a_request_of_an_endpoint_may_have_any_field() -> None:
    """Its completions are text to be scored or taught: no learner computes their probabilities."""
    body = "rollout.engine_args={url: 'http://x/v1', body: {frequency_penalty: 0.5}}"
    found = recipes.load("parity-r1-zero", ["rollout.engine=endpoint", body])
    assert recipes.resolved(found)["stages"][0]["rollout"]["engine_args"]["body"] == {
        "frequency_penalty": 0.5
    }
