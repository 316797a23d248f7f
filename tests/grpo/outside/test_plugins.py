"""Plug-ins: three ways to name one, and a sentence for each way that leads nowhere."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import PluginError
from grpo.outside.code import plugins

SOURCE = """
from pathlib import Path
COUNTER = Path(__file__).with_suffix(".count")
COUNTER.write_text(COUNTER.read_text() + "x" if COUNTER.exists() else "x")

def bonus(*, completions, size=1.0, **columns):
    return [size for _ in completions]

class Scaled:
    def __init__(self, factor, offset=0):
        self.factor, self.offset = factor, offset

value = 3
"""


class Factory:
    def __init__(self, *, low: int, high: int = 10) -> None:
        self.range = (low, high)


BUILTINS: dict[str, Any] = {"range": Factory, "fixed": lambda: "made"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"  # the name a user is most likely to pick
    path.write_text(SOURCE)
    return path


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewards of this file for the built-in ones."""
    monkeypatch.setitem(plugins.BUILTINS, "reward", f"{__name__}:BUILTINS")


@pytest.mark.usefixtures("ours")
def test_built_ins_are_factories() -> None:
    assert plugins.load("reward", "fixed") == "made"
    assert plugins.load("reward", "range", {"low": 3}).range == (3, 10)


def test_functions_come_back_as_they_are_and_classes_are_made(file: Path) -> None:
    bonus = plugins.load("reward", f"{file}:bonus")
    assert bonus(completions=["a", "b"], answer=["1", "2"]) == [1.0, 1.0]
    half = plugins.load("reward", f"{file}:bonus", {"size": 0.5})
    assert half(completions=["a"]) == [0.5]
    assert plugins.load("reward", f"{file}:Scaled", {"factor": 2}).factor == 2
    assert (file.parent / "rewards.count").read_text() == "x"  # the file ran once


def test_modules_are_imported_by_name() -> None:
    import math

    assert plugins.load("reward", "math:sqrt") is math.sqrt
    assert plugins.load("reward", "os.path:join")("a", "b").endswith("b")


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for folder, number in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rewards.py").write_text(f"def f():\n    return {number}\n")
    first = plugins.load("reward", f"{tmp_path}/a/rewards.py:f")
    second = plugins.load("reward", f"{tmp_path}/b/rewards.py:f")
    assert (first(), second()) == (1, 2)


def test_functions_of_files_can_be_pickled(file: Path) -> None:
    bonus = plugins.load("reward", f"{file}:bonus", {"size": 4.0})
    assert pickle.loads(pickle.dumps(bonus))(completions=["a"]) == [4.0]


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("spec", "args", "words"),
    [
        ("rnge", {}, ["unknown reward 'rnge'", "'range'", "fixed", "path/file.py:attr"]),
        ("range", {"lo": 1}, ["'range'", "'lo'", "'low'", "high"]),
        ("range", {}, ["'range'", "'low'", "high"]),
        ("fixed", {"x": 1}, ["'fixed'", "no arguments"]),
        ("FILE:bonsu", {}, ["'bonsu'", "'bonus'"]),
        ("FILE:value", {}, ["int"]),
        ("FILE:bonus", {"sise": 1}, ["'sise'", "'size'"]),
        ("FILE:Scaled", {"offset": 1}, ["'factor'"]),
        ("/nowhere/x.py:f", {}, ["/nowhere/x.py", "no file"]),
        ("no_such_package.sub:f", {}, ["no_such_package"]),
        ("math:no_such", {}, ["'no_such'", "sqrt"]),
        ("grpo.rewards.answers:Accuracy", {}, ["no module", "'grpo.rewards.accuracy:Accuracy'"]),
        ("grpo.rewards.math:Math", {}, ["'Math'", "mean 'grpo.rewards.math.reward:Math'"]),
    ],
)
def test_dead_ends_are_named(file: Path, spec: str, args: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PluginError) as caught:
        plugins.load("reward", spec.replace("FILE", str(file)), args)
    message = str(caught.value)
    assert all(word in message for word in words), message


def test_names_that_a_file_imports_are_not_offered(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from dataclasses import replace\n\ndef brief(completions):\n    return []\n")
    with pytest.raises(PluginError, match=r"Did you mean 'brief'\? Valid: brief\."):
        plugins.find("reward", f"{path}:brif")
    path.write_text("from dataclasses import replace\n")
    with pytest.raises(PluginError, match=r"Valid: replace\."):
        plugins.find("reward", f"{path}:brif")


def test_a_file_that_fails_says_why_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within a second, by as many characters, where Python keeps bytecode."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_anywhere\n")
    with pytest.raises(PluginError, match="no_such_module_anywhere"):
        plugins.load("reward", f"{path}:f")
    path.write_text("raise RuntimeError('half way')\n")
    with pytest.raises(PluginError, match="RuntimeError: half way"):
        plugins.load("reward", f"{path}:f")
    path.write_text("def f():\n    return 'mended and longer than before'\n")
    assert plugins.load("reward", f"{path}:f")() == "mended and longer than before"


def test_every_kind_lists_its_built_ins() -> None:
    for kind in plugins.BUILTINS:
        names = plugins.builtins(kind)
        assert names
        assert all(
            callable(entry) or kind in ("advantage", "objective") for entry in names.values()
        ), kind


def test_a_function_that_makes_a_source_is_called(tmp_path: Path) -> None:
    path = tmp_path / "made.py"
    path.write_text("def numbers(n=3):\n    return list(range(n))\n")
    assert plugins.load("source", f"{path}:numbers", {"n": 2}) == [0, 1]
    assert plugins.load("source", f"{path}:numbers") == [0, 1, 2]


def test_a_file_that_was_edited_is_read_again(tmp_path: Path, monkeypatch: Any) -> None:
    """Also one of the same size within a second; what is in use goes on, and state stays."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "edited.py"
    path.write_text("CALLS = []\n\ndef f():\n    CALLS.append(1)\n    return len(CALLS), 1\n")
    first = plugins.load("reward", f"{path}:f")
    assert [first(), plugins.load("reward", f"{path}:f")()] == [(1, 1), (2, 1)]
    path.write_text(path.read_text().replace("len(CALLS), 1", "len(CALLS), 2"))
    second = plugins.load("reward", f"{path}:f")
    assert [second(), first()] == [(1, 2), (3, 1)]
    assert pickle.loads(pickle.dumps(second)) is second
    path.write_text("def f(:\n")
    with pytest.raises(
        PluginError, match=rf"SyntaxError: invalid syntax at {re.escape(str(path))}:1\.$"
    ):
        plugins.load("reward", f"{path}:f")
    assert second() == (2, 2)
    path.write_text("def f():\n    return 3\n")
    assert plugins.load("reward", f"{path}:f")() == 3


def test_what_a_plug_in_imports_from_its_folder_is_read_again_with_it(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "limits_of_mine.py").write_text("LIMIT = 1\n")
    (tmp_path / "state_of_mine.py").write_text("SEEN = []\n")
    source = "from limits_of_mine import LIMIT\nimport state_of_mine\n"
    source += (
        "def f():\n    state_of_mine.SEEN.append(1)\n    return LIMIT, len(state_of_mine.SEEN)\n"
    )
    for name in ("one", "two"):
        (tmp_path / f"{name}_of_mine.py").write_text(source)
    file, module = f"{tmp_path / 'one_of_mine.py'}:f", "two_of_mine:f"

    def both() -> list[Any]:
        return [plugins.load("reward", spec)() for spec in (file, module)]

    assert both() == [(1, 1), (1, 2)]
    assert both() == [(1, 3), (1, 4)]
    (tmp_path / "limits_of_mine.py").write_text("LIMIT = 2\n")
    assert both() == [(2, 1), (2, 2)]  # both anew, and they still share what they shared


def test_a_module_in_a_package_is_read_again_with_its_relatives(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "package_of_mine"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "base.py").write_text("VALUE = 1\n")
    (package / "rewards.py").write_text(
        "def f():\n    from .inner import base\n    return base.VALUE\n"
    )
    spec = "package_of_mine.rewards:f"
    assert plugins.load("reward", spec)() == 1
    assert plugins.load("reward", spec)() == 1
    (package / "inner" / "base.py").write_text("VALUE = 2\n")
    assert plugins.load("reward", spec)() == 2
    import json

    assert plugins.load("reward", "json:loads") is json.loads


def test_a_module_that_a_notebook_imported_and_edited_is_read_again(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "met_before.py"
    path.write_text("def f():\n    return 1\n")
    mine = importlib.import_module("met_before")
    assert plugins.load("reward", "met_before:f") is mine.f
    del sys.modules["met_before"]
    mine = importlib.import_module("met_before")
    path.write_text("def f():\n    return 1000\n")
    assert plugins.load("reward", "met_before:f")() == 1000


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys\nsys.exit(0)\n", r"called sys.exit\(0\) at .*leaves.py:2"),
        ("raise KeyboardInterrupt\n", r"KeyboardInterrupt.* at .*leaves.py:1"),
        ("import json\njson.loads('{')\n", r"JSONDecodeError.* at .*leaves.py:2"),
        (
            "import sys\nclass f:\n    def __init__(self):\n        sys.exit()\n",
            r"called sys.exit\(\) at .*leaves.py:4",
        ),
    ],
)
def test_a_plug_in_cannot_end_the_program(tmp_path: Path, source: str, words: str) -> None:
    path = tmp_path / "leaves.py"
    path.write_text(source)
    with pytest.raises(PluginError, match=words):
        plugins.load("source", f"{path}:f")


def test_what_an_import_changes_in_the_process_is_put_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "wide.py"
    path.write_text("import torch\ntorch.set_default_dtype(torch.float64)\ndef f(): pass\n")
    plugins.load("reward", f"{path}:f")
    assert torch.get_default_dtype() is torch.float32


def test_guarded_functions_say_where_they_failed(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import sys\ndef f(x):\n    sys.exit(3)\nasync def g(x):\n    return x\n")
    for name, words in (
        ("f", r"advantage .*mine.py:f' called sys.exit\(3\) at .*:3"),
        ("g", "async"),
    ):
        spec = f"{path}:{name}"
        function = plugins.guard("advantage", spec, plugins.find("advantage", spec))
        with pytest.raises(PluginError, match=words):
            function(1)
