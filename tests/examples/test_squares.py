"""The data source of docs/data.md, as a reader copies it."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo.config.config import load as load_recipe
from grpo.errors import GrpoError
from grpo.outside.code import plugins
from grpo.stages import preflight
from tests.examples.pages import DOCS, write_files


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"{write_files('data', tmp_path, DOCS)['squares.py']}:Squares"


def test_its_tasks_are_squares_and_the_splits_are_disjoint(address: str):
    source = plugins.load("source", address, {"largest": 20})
    asked = {
        split: [source.task(split, i) for i in range(source.size(split))]
        for split in ("train", "heldout")
    }
    assert [(t.prompt, t.answer) for t in asked["heldout"]] == [
        ("What is 10 * 10?", "100"),
        ("What is 20 * 20?", "400"),
    ]
    assert len(asked["train"]) == 18
    assert not {t.uid for t in asked["train"]} & {t.uid for t in asked["heldout"]}


def test_a_recipe_takes_it_and_its_arguments(address: str):
    recipe = load_recipe(
        "parity-r1-zero", [f"data.source={address}", "data.args={largest: 20}", "data.template=raw"]
    )
    assert preflight.known(recipe)


def test_a_misspelled_argument_is_a_sentence(address: str):
    recipe = load_recipe("parity-r1-zero", [f"data.source={address}", "data.args={larges: 20}"])
    with pytest.raises(GrpoError, match="Did you mean 'largest'"):
        preflight.known(recipe)
