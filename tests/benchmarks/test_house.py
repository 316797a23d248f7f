"""Every counter of the house counts: on a toy house whose numbers are known by drawing it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from house import (
    Figure,
    arrows,
    circles,
    device_tests,
    functions,
    highest,
    layers,
    measure,
    modules,
    table,
)

LONG = "def long():\n" + "    x = 1\n" * 70
HOUSE = {
    "grpo/__init__.py": "from grpo import door\n",
    "grpo/door.py": "import grpo.hall\nfrom . import attic\nfrom grpo.rewards import rule\n",
    "grpo/hall/__init__.py": "",
    "grpo/hall/stairs.py": "def up():\n    from ..attic import roof\n    import grpo.cellar\n",
    "grpo/hall/lamp.py": "from grpo.hall.stairs import up\nfrom grpo import hall\n",
    "grpo/attic.py": "import typing\nif typing.TYPE_CHECKING:\n    from grpo import cellar\n",
    "grpo/cellar.py": "import torch\n" + LONG,
    "rewards/__init__.py": "",
    "rewards/devices.py": "ON_CPU = device.type == 'cpu'\n",
    "rewards/rule.py": "from grpo.cellar import wine\n\ndef ask(x):\n    return x.is_cuda\n",
    "pyproject.toml": """
[[tool.importlinter.contracts]]
layers = ["door", "hall | attic"]
[[tool.importlinter.contracts]]
forbidden_modules = ["torch"]
""",
    "tests/test_hall.py": "def test_a(): ...\nclass B:\n    def test_b(self): ...\nhelp = 1\n",
    "tests/helpers.py": "def test_not_collected(): ...\n",
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """The toy house on disk."""
    for name, text in HOUSE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "grpo" / "rewards").symlink_to("../rewards")
    return tmp_path


def test_arrows_are_found_wherever_an_import_stands(house: Path) -> None:
    assert arrows(modules(house)) == {
        ("door", "hall"),
        ("door", "attic"),  # relative
        ("door", "rewards"),
        ("hall", "attic"),  # two dots, in a function
        ("hall", "cellar"),
        ("attic", "cellar"),  # for type checkers only
        ("rewards", "cellar"),  # through the link
    }


def test_the_table_of_the_toy_house(house: Path) -> None:
    found = {row.name: row for row in measure(house, still=True)}
    values = {name: row.value for name, row in found.items()}
    assert values == {
        "rooms directly in grpo/": 4,
        "rooms, the links with them": 5,
        "floors": 4,
        "arrows between rooms": 5,
        "arrows, the links with them": 7,
        "circles": 0,
        "layers of the import contract": 2,
        "returns of the rows of a step": None,
        "files from command to loss": None,
        "tests of the device": 1,
        "tests where it is decided": 1,
        "lines of Python": 89,  # the sum of the files below
        "lines of C++": 0,
        "median file": 2.5,  # of 0 0 1 1 2 3 3 3 4 72
        "longest file": 72,
        "longest function": 71,
        "test functions": 2,
    }
    assert found["floors"].where == "door > hall > attic > cellar"
    assert found["tests of the device"].where == "rule.py 1"
    assert found["tests where it is decided"].where == "devices.py 1"
    assert found["longest function"].where == "cellar.py: long"
    assert [row.name for row in found.values() if not row.holds] == ["longest function"]


def test_a_circle_is_named_and_shares_a_floor(house: Path) -> None:
    (house / "grpo" / "cellar.py").write_text("def f():\n    import grpo.hall.lamp\n")
    found = arrows(modules(house))
    assert circles(found) == [{"hall", "attic", "cellar"}]
    assert highest(found) == ["door", "rewards", "attic+cellar+hall"]
    row = next(row for row in measure(house, still=True) if row.name == "circles")
    assert (row.value, row.holds, row.where) == (1, False, "attic cellar hall")


def test_two_circles_are_two() -> None:
    assert circles([("a", "b"), ("b", "a"), ("b", "c"), ("c", "d"), ("d", "c")]) == [
        {"a", "b"},
        {"c", "d"},
    ]


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        ("x.device.type == 'cpu'", 1),
        ("'cuda' != device.type", 1),
        ("self.device.type in ('cpu', 'mps')", 1),
        ("torch.device(name).type == 'cpu'", 1),
        ("kind = x.device.type\nif kind == 'cpu': pass\nif kind == 'mps': pass", 2),
        ("if x.is_cuda: pass", 1),
        ("torch.autocast(x.device.type)", 0),  # hands it on
        ("error.type == 'cpu'", 0),
        ("device == other", 0),
    ],
)
def test_asking_a_device_is_counted(code: str, asked: int) -> None:
    assert len(list(device_tests(ast.parse(code)))) == asked


def test_functions_within_functions_and_methods_are_measured() -> None:
    code = "class A:\n    @cached\n    async def f(self):\n        def g():\n            pass\n"
    assert dict(functions(ast.parse(code))) == {"f": 3, "g": 2}


def test_the_contract_with_most_layers_counts(house: Path) -> None:
    assert layers(house) == 2


def test_a_broken_bar_stands_out() -> None:
    held, broken = Figure(name="held", value=2, bar=2), Figure(name="broken", value=3, bar=2)
    assert held.holds
    assert Figure(name="no bar", value=9).holds
    assert not broken.holds
    assert "| broken | **3** | <= 2 |" in table([held, broken])
    assert "| held | 2 | <= 2 |" in table([held, broken])
