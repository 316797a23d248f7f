"""YAML from outside as plain data: of bounded size, depth and growth, or one sentence.

A few hundred bytes of aliases can stand for billions of values ("billion laughs"), nested brackets
exhaust Python's stack, and PyYAML takes seconds for a megabyte. So all three have a limit. Tags of
Python (`!!python/…`) are refused, and so is a key that is written twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import yaml

from grpo.errors import RecipeError

Tree = dict[str, Any]

LONGEST = 1 << 18  # bytes of a recipe; the longest shipped one has 4 KB
DEEPEST = 40  # mappings and lists in one another
LONGEST_NUMBER = 100  # digits of a whole number
MOST = 20_000  # values, those behind each alias counted again


class _Loader(yaml.SafeLoader):
    """YAML with two repairs: 1e-4 is a number, and a key written twice is an error."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML, within the limits. Raises RecipeError."""
        self._depth += 1
        if self._depth > DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise RecipeError(
                f"line {line}: more than {DEEPEST} mappings and lists in one another."
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            self._measure(node)
        return node

    def _measure(self, node: yaml.Node) -> None:
        """Count the values of a node, whose parts were counted before it."""
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            for pair in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
                parts += pair
        elif isinstance(node, yaml.SequenceNode):
            parts = cast("list[yaml.Node]", node.value)
        size = 1 + sum(self._sizes.get(id(part), 1) for part in parts)
        self._sizes[id(node)] = size
        if size > MOST:
            raise RecipeError(
                f"line {node.start_mark.line + 1}: more than {MOST} values, those behind aliases "
                "(*name) included; write less, or move rows into a file."
            )


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > LONGEST_NUMBER:
        raise RecipeError(
            f"line {node.start_mark.line + 1}: a number of {len(node.value)} digits is too long."
        )
    return loader.construct_yaml_int(node)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Tree:
    construct = cast(Callable[..., Any], loader.construct_object)  # pyright: ignore[reportUnknownMemberType]
    found: Tree = {}
    for nodes in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
        key, value = (construct(one, deep=True) for one in nodes)
        if type(key) is int:  # {1: 8192, 1001: 16384}; text in JSON
            key = str(key)
        if not isinstance(key, str):
            raise RecipeError(f"key {key!r} is not text (line {node.start_mark.line + 1}).")
        if key in found:
            raise RecipeError(f"key {key!r} appears twice (line {node.start_mark.line + 1}).")
        found[key] = value
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_yaml(text: str, where: str) -> Any:
    """The plain data in `text`; `where` begins the sentence. Raises RecipeError."""
    if len(text) > LONGEST:
        raise RecipeError(f"{where} has more than {LONGEST} characters, which no settings need.")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise RecipeError(
            f"{where} is not valid YAML: line {line}: {problem or 'it cannot be parsed'}."
        ) from error
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        # a date that there is none of, a number of thousands of digits, keys in keys
        reason = "too deep" if isinstance(error, RecursionError) else str(error)
        raise RecipeError(f"{where} holds a value that cannot be read: {reason}.") from error


def read_yaml_file(file: Path, where: str) -> Any:
    """The same of a file, of which no more is read than may be there. Raises RecipeError."""
    try:
        with file.open("rb") as opened:
            text = opened.read(LONGEST + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError) and file.stat().st_size > LONGEST:
            text = " " * (LONGEST + 1)  # cut within a character
        else:
            raise RecipeError(f"{where} cannot be read: {error}.") from error
    return read_yaml(text, where)
