"""Keywords of a call as settings of a recipe."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from grpo.commands.api.settings import USUAL, known, merged
from grpo.config.schema import STAGES
from grpo.errors import RecipeError


@pytest.mark.parametrize(
    "keywords",
    [
        {"max_steps": 3, "num_generations": 4},
        {"learner": {"max_steps": 3}, "rollout": {"num_generations": 4}},
        {"learner.max_steps": 3, "rollout.num_generations": 4},
        {"learner": {"max_steps": np.int64(3)}, "num_generations": np.int32(4)},
    ],
)
def test_the_ways_to_write_a_setting_mean_the_same(keywords: dict[str, Any]) -> None:
    expected = {"learner": {"max_steps": 3}, "rollout": {"num_generations": 4}}
    found = merged("rl", {}, keywords)
    assert found == expected
    assert type(found["learner"]["max_steps"]) is int


def test_a_section_keeps_what_the_call_does_not_name() -> None:
    tree = {"learner": {"max_steps": 9, "optim": "adamw_torch"}, "data": {"args": {"a": 1, "b": 2}}}
    found = merged("rl", tree, {"learner": {"max_steps": 3}, "data": {"args": {"a": 5}}})
    assert found["learner"] == {"max_steps": 3, "optim": "adamw_torch"}
    assert found["data"]["args"] == {"a": 5}  # arguments of a plug-in are one value


def test_the_usual_one_of_several_settings_of_a_name() -> None:
    found = merged("rl", {}, {"temperature": 0.7, "seed": 3, "dtype": torch.float32})
    expected = {"rollout": {"temperature": 0.7}, "run": {"seed": 3}, "model": {"dtype": "float32"}}
    assert found == expected
    assert merged("eval", {}, {"temperature": 0.7}) == {"temperature": 0.7}


@pytest.mark.parametrize("kind", STAGES)
def test_every_setting_alone_is_found_refused_as_ambiguous_or_the_usual_one(kind: str) -> None:
    names = known(kind)
    for name in names:
        leaf = name.rpartition(".")[2]
        same = [n for n in names if n.rpartition(".")[2] == leaf]
        sections = {*STAGES[kind].model_fields, "run", "ray"}
        if leaf in sections:
            continue
        if len(same) == 1 or USUAL.get(leaf) in same:
            (place,) = _leaves(merged(kind, {}, {leaf: "value"}))
            assert place == (USUAL[leaf] if USUAL.get(leaf) in same else name)
        else:
            with pytest.raises(RecipeError, match="several settings"):
                merged(kind, {}, {leaf: 1})


def _leaves(tree: dict[str, Any], where: str = "") -> list[str]:
    found: list[str] = []
    for key, value in tree.items():
        inner = _leaves(value, f"{where}{key}.") if isinstance(value, dict) else [f"{where}{key}"]
        found += inner
    return found


def test_values_that_are_no_setting_are_refused_by_name() -> None:
    assert merged("rl", {}, {"dir": pathlib.Path("x/y")}) == {"run": {"dir": "x/y"}}
    with pytest.raises(RecipeError, match=r"learner\.learning_rate = tensor.* of type Tensor"):
        merged("rl", {}, {"learning_rate": torch.tensor(1e-5)})
    with pytest.raises(RecipeError, match=r"'learning_rat'.*Did you mean 'learning_rate'"):
        merged("rl", {}, {"learning_rat": 1e-5})
    with pytest.raises(RecipeError, match=r"write agreement=\{'steps': 5\} or eval=\{'steps': 5\}"):
        merged("rl", {}, {"steps": 5})
