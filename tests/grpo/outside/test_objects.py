"""Objects of Python by address: what another process takes for the same one, and who finds them."""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.errors import PluginError, RunError
from grpo.outside.code import objects

SOURCE = """
import functools, re

LIMIT = 10
WORDS = ("yes", "no")
RUNS = []

def helper(text):
    return len(text) + LIMIT

@functools.lru_cache
def slow(text):
    return helper(text) / 2

def score(completions, scale=2.0, *, offset=0.5, **_):
    found = [helper(text) * scale for text in completions]
    RUNS.append(len(found))
    first, second = (lambda x: x + 1), (lambda x: x + 2)
    return [first(second(value)) + offset + slow("a") for value in found]

def scaled(by):
    def inner(completions, **_):
        return [by * len(text) for text in completions]
    return inner

class Judge:
    TOP = 3

    def __init__(self):
        self.calls = 0

    def _one(self, text):
        return min(len(text), self.TOP)

    def __call__(self, completions, **_):
        self.calls += 1
        return [self._one(text) for text in completions]

FOUND = {
    "function": score,
    "lambda": lambda completions, **_: [helper(text) for text in completions],
    "partial": functools.partial(score, scale=3.0),
    "closure": scaled(2),
    "object": Judge(),
    "method": Judge().__call__,
}
"""
SAME = {  # what may change
    "names of variables": ("found", "values"),
    "lines": ("LIMIT = 10", "\n\n\nLIMIT = 10"),
    "comments": ("LIMIT = 10", "LIMIT = 10  # tokens"),
    "what it filled": ("RUNS = []", "RUNS = [1, 2, 3]"),
}
CHANGES = {  # name -> (old, new, the objects that it changes)
    "its code": ("first(second(value))", "second(first(value)) - 1", {"function", "partial"}),
    "a second lambda": ("x + 2", "x + 3", {"function", "partial"}),
    "a helper": ("len(text) + LIMIT", "len(text) - LIMIT", {"function", "partial", "lambda"}),
    "a constant": ("LIMIT = 10", "LIMIT = 11", {"function", "partial", "lambda"}),
    "a helper that is cached": ("helper(text) / 2", "helper(text) / 3", {"function", "partial"}),
    "a default": ("scale=2.0", "scale=2.5", {"function", "partial"}),
    "a keyword's default": ("offset=0.5", "offset=0.25", {"function", "partial"}),
    "an argument of a partial": ("scale=3.0", "scale=4.0", {"partial"}),
    "what it encloses": ("scaled(2)", "scaled(3)", {"closure"}),
    "a method": ("min(len(text)", "max(len(text)", {"object", "method"}),
    "a value of a class": ("TOP = 3", "TOP = 4", {"object", "method"}),
}


def digests(source: str, folder: Path, name: str = "mine") -> dict[str, str]:
    """name of an object -> its digest, of a module with this source in a file of its own."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        return {key: objects.identity(value)[1] for key, value in module.FOUND.items()}
    finally:
        del sys.modules[name]


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_does_the_same_is_the_same(change: tuple[str, str], tmp_path: Path) -> None:
    assert change[0] in SOURCE
    moved = digests(SOURCE.replace(*change), tmp_path / "elsewhere", "other")
    assert moved == digests(SOURCE, tmp_path)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_does_something_else_is_another(
    change: tuple[str, str, set[str]], tmp_path: Path
) -> None:
    before = digests(SOURCE, tmp_path)
    assert change[0] in SOURCE
    after = digests(SOURCE.replace(change[0], change[1]), tmp_path / "after")
    assert {name for name in before if before[name] != after[name]} == change[2]
    assert len(set(before.values())) == len(before)


def test_an_object_stays_the_same_while_it_works(tmp_path: Path) -> None:
    class Counter:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, completions: list[str], **_: Any) -> list[float]:
            self.calls += 1
            return [0.0] * len(completions)

    counter = Counter()
    before = objects.identity(counter)
    counter([])
    assert objects.identity(counter) == before
    assert before[0] == "Counter object"


def test_networks_are_told_apart_by_their_weights() -> None:
    networks = [torch.nn.Linear(2, 2) for _ in range(2)]
    with torch.no_grad():
        for network in networks:
            network.weight.fill_(0.5)
            network.bias.zero_()
    assert objects.identity(networks[0]) == objects.identity(networks[1])
    with torch.no_grad():
        networks[1].bias[1] = 1e-30
    assert objects.identity(networks[0]) != objects.identity(networks[1])


def test_a_table_exists_while_its_call_runs_and_no_longer() -> None:
    with objects.given({"short": len}):
        assert objects.find("reward", "object:short") is len
        assert objects.has("object:short")
    assert not objects.has("object:short")
    with pytest.raises(PluginError, match="reward 'short' is a Python object of the program"):
        objects.find("reward", "object:short")
    with pytest.raises(ZeroDivisionError), objects.given({"short": len}):
        _ = 1 / 0
    assert not objects.has("object:short")


def test_one_call_at_a_time() -> None:
    told: list[str] = []

    def second() -> None:
        try:
            with objects.given({"long": len}):
                pass
        except RunError as error:
            told.append(str(error))

    with objects.given({"short": len}):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert objects.has("object:short")
        assert not objects.has("object:long")
    assert "another call of grpo is running in this process" in told[0]


def test_titles() -> None:
    assert objects.identity(functools.partial(test_titles))[0] == "function test_titles"
    assert objects.identity(torch.nn.Linear(1, 1))[0] == "Linear object"


def test_a_function_that_counts_and_keeps_is_the_same_function_later() -> None:
    def made(start: int) -> Any:
        kept: list[int] = []
        count = start

        def reward(completions: list[str], **_: Any) -> list[float]:
            nonlocal count
            count += 1
            kept.append(count)
            return [0.0] * len(completions)

        return reward

    first = made(0)
    before = objects.identity(first)
    first(["a"])
    assert objects.identity(first) == before  # it goes on in this process
    assert objects.identity(made(0)) == before  # or begins anew in another
    assert objects.identity(made(1)) != before
    known = len(objects._met)
    del first
    assert len(objects._met) < known
