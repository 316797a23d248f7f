"""YAML from outside: bounded, plain, and one sentence for whatever it is not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from grpo.config import config
from grpo.errors import RecipeError
from grpo.outside.files.yaml_tree import DEEPEST, LONGEST, MOST, read_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
REFUSED = {
    "billion laughs": (LAUGHS, rf"line 5: more than {MOST} values, those behind aliases"),
    "too many": ("a: [" + "1," * MOST + "1]", f"more than {MOST} values"),
    "brackets": ("[" * 100_000, f"more than {DEEPEST} mappings and lists in one another"),
    "braces": ("{a: " * 5_000, f"more than {DEEPEST} mappings"),
    "questions": ("? " * 5_000, f"more than {DEEPEST} mappings"),
    "dashes": ("- " * 50_000, f"more than {DEEPEST} mappings"),
    "itself": ("a: &a [*a]", "recursive"),
    "too long": ("x" * (LONGEST + 1), "more than 262144 characters"),
    "python": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "no date": ("a: 2001-99-99", "holds a value that cannot be read: month"),
    "digits": ("a: " + "9" * 6_000, "a number of 6000 digits is too long"),
    "hexadecimal": ("a: 0x" + "f" * 200_000, "a number of 200002 digits is too long"),
    "a key twice": ("a: {b: 1, b: 2}", r"key 'b' appears twice \(line 1\)"),
    "control": ("a: \x1b", "special characters are not allowed"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_within_a_moment(kind: str) -> None:
    text, says = REFUSED[kind]
    start = time.perf_counter()
    with pytest.raises(RecipeError, match=says) as raised:
        read_yaml(text, "the recipe 'r'")
    assert str(raised.value).startswith("the recipe 'r'")
    assert time.perf_counter() - start < 10  # a second on an idle machine


def test_aliases_within_reason_are_read() -> None:
    text = "base: &b {lr: 1e-4}\none: *b\ntwo: [*b, *b]\n"
    assert read_yaml(text, "r") == {
        "base": {"lr": 1e-4},
        "one": {"lr": 1e-4},
        "two": [{"lr": 1e-4}, {"lr": 1e-4}],
    }
    deep = "[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1)
    assert str(read_yaml(deep, "r")) == deep


@pytest.mark.parametrize("form", ["file", "override"])
def test_a_bomb_ends_in_a_sentence_wherever_yaml_is_read(form: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("\ufeff" + LAUGHS if form == "file" else "kind: rl\n", encoding="utf-8")
    override = ["data.args={" + LAUGHS.replace("]\n", "], ") + "}"] if form == "override" else []
    with pytest.raises(RecipeError, match="values, those behind aliases"):
        config.load(recipe, override)


def test_no_more_of_a_file_is_read_than_a_recipe_may_have(tmp_path: Path) -> None:
    recipe = tmp_path / "huge.yaml"
    with recipe.open("wb") as file:
        file.truncate(8 << 30)  # 8 GiB that are not on the disk
    with pytest.raises(RecipeError, match=r"huge\.yaml' has more than 262144 characters"):
        config.load(recipe)
    recipe.write_bytes("é".encode() * LONGEST)  # cut within a character
    with pytest.raises(RecipeError, match="has more than 262144 characters"):
        config.load(recipe)
    recipe.write_bytes(b"a: \xff")
    with pytest.raises(RecipeError, match="cannot be read"):
        config.load(recipe)
