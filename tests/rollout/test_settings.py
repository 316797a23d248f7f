"""The records of engines' settings are what a recipe is checked against and what the pages say."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo.errors import PluginError
from grpo.outside.code.plugins import check_args
from grpo.rollout import ENGINES
from grpo.rollout.settings import PromptSettings, ServerSettings, TorchSettings, VllmSettings

DOCS = Path(__file__).parents[2] / "docs"
RECORDS: dict[str, type[Any]] = {
    "torch": TorchSettings,
    "vllm": VllmSettings,
    "server": ServerSettings,
    "endpoint": PromptSettings,
}
# How the page says what vLLM or the recipe decides.
IN_WORDS = {
    "max_model_len": "longest request",
    "max_num_batched_tokens": "vLLM's",
    "kv_cache_gib": "1 on CPUs",
    "head_dtype": "the model's",
    "enforce_eager": "true on CPUs",
    "speculative_model": "n-grams",
}


def defaults(record: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in fields(record)}


@pytest.mark.parametrize("name", RECORDS)
def test_an_engine_takes_a_spec_and_the_fields_of_its_record(name: str) -> None:
    spec, *others = inspect.signature(ENGINES[name]).parameters.values()
    assert (spec.name, spec.default) == ("spec", inspect.Parameter.empty)
    none = inspect.Parameter.empty
    found = {p.name: MISSING if p.default is none else p.default for p in others}
    assert found == defaults(RECORDS[name])


def test_what_it_does_not_take_is_a_sentence() -> None:
    with pytest.raises(PluginError, match=r"max_row'\. Did you mean 'max_rows'"):
        check_args("engine", "torch", ENGINES["torch"], {"spec": None, "max_row": 3})
    with pytest.raises(PluginError, match="needs 'url' in its args; it takes spec, url, model"):
        check_args("engine", "endpoint", ENGINES["endpoint"], {"spec": None})


def test_listing_engines_imports_neither_torch_nor_vllm() -> None:
    code = "import sys, grpo.rollout; print(sorted({'torch', 'vllm', 'ray'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_the_page_of_vllm_has_each_setting_with_its_default() -> None:
    text = (DOCS / "vllm.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", text, re.MULTILINE))
    known = defaults(VllmSettings)
    assert list(said) == list(known)
    for name, default in said.items():
        if name in IN_WORDS:
            assert default == IN_WORDS[name]
            assert not known[name]
        else:
            assert yaml.safe_load(default) == known[name]


@pytest.mark.parametrize(
    ("begin", "end", "record"),
    [
        ("`rollout.engine_args` of vLLM:", "The type is", VllmSettings),
        ("| `rollout.engine_args` of `server` |", "\n", ServerSettings),
    ],
)
def test_the_page_on_scaling_names_each_setting(begin: str, end: str, record: type[Any]) -> None:
    text = (DOCS / "scaling.md").read_text(encoding="utf-8")
    said = text[text.index(begin) + len(begin) :]
    said = said[: said.index(end)]
    found = dict(re.findall(r"`(\w+)`(?: \(([^)]+)\))?", said))
    known = defaults(record)
    assert list(found) == list(known)
    for name, default in found.items():
        assert not default or yaml.safe_load(default) == known[name]
