"""Which classes of the program's the tests may mean as exceptions, found by reading the tests.

Only these become classes in the tests' process. A program that makes an exception of any other,
`class Solution(Exception)`, would leave nothing there to ask it for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

_CATCHING = re.compile(r"[rR]aises(?:Regex)?$|^suppress$")  # pytest's, unittest's, contextlib's
_ASKING = ("isinstance", "issubclass")


def caught(classes: Iterable[str], trees: Iterable[ast.AST]) -> list[str]:
    """Those of `classes` that the tests may mean as exceptions: caught, raised, or only named.

    A class that they call, take a member of or give to a function is none, unless they catch it.
    """
    used: set[str] = set()
    sure: set[str] = set()
    for node in (part for tree in trees for part in ast.walk(tree)):
        match node:
            case ast.ExceptHandler(type=ast.AST() as kind) | ast.Raise(exc=ast.AST() as kind):
                sure |= names_in([kind])
            case ast.Call(func=function, args=given) if _CATCHING.search(_last_name(function)):
                sure |= names_in(given)
            case ast.Call(func=function, args=given, keywords=keywords):
                inside = [*given, *(keyword.value for keyword in keywords)]
                asks = isinstance(function, ast.Name) and function.id in _ASKING
                direct = [function] if asks else [function, *inside]
                used |= {part.id for part in direct if isinstance(part, ast.Name)}
            case ast.Attribute(value=ast.Name(id=name)):
                used.add(name)
            case _:
                pass
    return [name for name in classes if name in sure or name not in used]


def names_in(nodes: Iterable[ast.AST]) -> set[str]:
    """All names in these trees."""
    below = (node for tree in nodes for node in ast.walk(tree))
    return {node.id for node in below if isinstance(node, ast.Name)}


def _last_name(function: ast.expr) -> str:
    return str(getattr(function, "attr", getattr(function, "id", "")))
