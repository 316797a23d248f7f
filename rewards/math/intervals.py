r"""Regions of the number line, as answers write them: intervals, inequalities, set-builder sets.

`read` turns a normalized answer into a small tree. It evaluates nothing: endpoints and the sides of
relations stay text, for algebra to read. The tree is a tuple whose first element is its kind:

    ("interval", low, high, low is open, high is open)
    ("relation", left, operator, right, variable or "")      operator: < > le ge ne =
    ("points", [text, …])   ("reals",)   ("empty",)
    ("or", [tree, …])   ("and", [tree, …])   ("list", [tree, …])   ("minus", tree, tree)

A "list" (x > 2, x < 5) means both, or, where nothing is both (x < 2, x > 5), either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from grpo.rewards.math.spelling import closing, split

MAX_PARTS = 32
Tree = tuple[Any, ...]
_OPERATOR = re.compile(r"\\(le|ge|ne)(?![a-z])|\\not ?(=)|([<>=])")
_NAME = re.compile(
    r"[A-Za-z]\([a-z]\)|[A-Za-z](?:_\{?\w{1,20}\}?)?|\\(?!pi(?![a-z])|infty)[a-z]{1,12}"
)
_MEMBER = re.compile(
    r"([A-Za-z](?:_\{?\w{1,20}\}?)?|\\[a-z]{1,12}) ?\\in(?![a-z]) ?(.+)", re.DOTALL
)
_REALS = frozenset(("\\mathbb{R}", "R", "(-\\infty,\\infty)", "\\mathbf{R}", "\\Re"))
_BUILDER = re.compile(r"\||:|\\mid(?![a-z])|\\colon(?![a-z])")
_TURNED = re.compile(
    r"(\[|\])([^][(),;]{1,80})([,;])([^][(),;]{1,80})([\[\])])|(\()([^][(),;]{1,80})([,;])([^][(),;]{1,80})(\[)"
)
_OR = re.compile(r"(?<![A-Za-z\\])or(?![A-Za-z])|\\lor(?![a-z])|\\vee(?![a-z])")
_AND = re.compile(r"(?<![A-Za-z\\])and(?![A-Za-z])|\\land(?![a-z])|\\wedge(?![a-z])")
_LIST = re.compile(r"[,;]")
_UNION = re.compile(r"\\cup(?![a-z])")
_INTERSECTION = re.compile(r"\\cap(?![a-z])")
_MINUS = re.compile(r"\\setminus(?![a-z])|(?<=[})\]]) ?- ?(?=\\\{)")
_SURE = re.compile(r"\\(?:cup|cap|setminus|le|ge|ne|infty|mathbb|emptyset)(?![a-z])|[<>|]|\\mid|:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A tree, the names of its variable (none or one), and whether it can be nothing but a region.

    (1, 2) may as well be a point: `sure` is False.
    """

    tree: Tree
    names: frozenset[str]
    sure: bool

    @property
    def two_names(self) -> bool:
        """Whether it compares two letters (x > y), either of which may be the variable."""
        return self.tree[0] == "relation" and all(map(_NAME.fullmatch, self.tree[1:4:2]))


def read(text: str) -> Region | None:
    """The region that a normalized answer is, None if it is not one as a whole."""
    names: set[str] = set()
    turned = text != (text := _unturned(text))
    tree = _read(text, names, 0)
    if tree is None or len(names) > 1 or _finite(tree):
        return None
    point = tree[0] == "interval" and tree[3] == tree[4] and not names and not turned
    sure = not point or bool(_SURE.search(text))
    return Region(tree=tree, names=frozenset(names), sure=sure)


def _finite(tree: Tree) -> bool:
    """Whether a tree is values, listed: the business of who compares lists."""
    if tree[0] in ("or", "and", "list"):
        return all(map(_finite, tree[1]))
    return tree[0] == "points" or (tree[0] == "relation" and tree[2] == "=")


def _unturned(text: str) -> str:
    """]a,b[ as (a,b)."""

    def turn(match: re.Match[str]) -> str:
        opening, low, _, high, end = (part for part in match.groups() if part is not None)
        if opening == "[" and end in "])":
            return match[0]
        return f"{'(' if opening == ']' else opening}{low},{high}{')' if end == '[' else end}"

    return _TURNED.sub(turn, text) if "[" in text or "]" in text else text


def _read(text: str, names: set[str], depth: int) -> Tree | None:
    text = text.strip()
    if not text or depth > 8:
        return None
    for mark, kind in ((_OR, "or"), (_AND, "and"), (_LIST, "list")):
        parts = [part for part in split(text, mark) if part]
        if 1 < len(parts) <= MAX_PARTS:
            return _all(kind, parts, names, depth)
    if (member := _MEMBER.fullmatch(text)) and member[1] not in ("\\mathbb", "\\infty"):
        names.add(member[1])
        return _read(member[2], names, depth + 1)
    for mark, kind in ((_UNION, "or"), (_INTERSECTION, "and")):
        parts = split(text, mark)
        if 1 < len(parts) <= MAX_PARTS:
            return _all(kind, parts, names, depth)
    parts = split(text, _MINUS)
    if len(parts) == 2:
        whole, part = _read(parts[0], names, depth + 1), _read(parts[1], names, depth + 1)
        return ("minus", whole, part) if whole and part else None
    return _set(text, names, depth) or _chain(text, names)


def _all(kind: str, parts: list[str], names: set[str], depth: int) -> Tree | None:
    trees = [_read(part, names, depth + 1) for part in parts]
    if any(tree is None or (kind == "list" and tree[0] == "interval") for tree in trees):
        return None  # (1,2), (3,4) are points
    return (kind, trees)


def _set(text: str, names: set[str], depth: int) -> Tree | None:
    if text in _REALS:
        return ("reals",)
    if text == "\\emptyset":
        return ("empty",)
    if text.startswith("\\{") and text.endswith("\\}"):
        return _builder(text[2:-2].strip(), names, depth)
    if text[0] not in "([" or closing(text) != len(text) - 1:
        return None
    inner = text[1:-1]
    parts = split(inner, _LIST)
    if len(parts) == 2 and all(parts) and not any(_OPERATOR.search(part) for part in parts):
        return ("interval", parts[0], parts[1], text[0] == "(", text[-1] == ")")
    return _read(inner, names, depth + 1) if text[0] == "(" and text[-1] == ")" else None


def _builder(inner: str, names: set[str], depth: int) -> Tree | None:
    r"""x \mid 1 < x < 3, or x \in \mathbb{R} : x \ne 1, or the elements of a finite set."""
    if (mark := _BUILDER.search(inner)) and mark.start():
        bound, condition = inner[: mark.start()].strip(), inner[mark.end() :].strip()
        if _NAME.fullmatch(bound):
            names.add(bound)
            return _read(condition, names, depth + 1)
        domain = _read(bound, names, depth + 1) if "\\in" in bound else None
        rest = _read(condition, names, depth + 1)
        return ("and", [domain, rest]) if domain and rest else None
    parts = [part for part in split(inner, _LIST) if part]
    return ("points", parts) if parts and not _OPERATOR.search(inner) else None


def _chain(text: str, names: set[str]) -> Tree | None:
    r"""x > 2, 3 \le m, 1 < x < 3, |x| \le 3."""
    marks = list(_OPERATOR.finditer(text))
    if not marks or len(marks) > 3:
        return None
    starts, ends = [0, *(m.end() for m in marks)], [*(m.start() for m in marks), len(text)]
    sides = [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    if not all(sides):
        return None
    named = [side for side in sides if _NAME.fullmatch(side) and side not in ("e", "i")]
    name = (sides[1] if sides[1] in named and len(sides) > 2 else named[0]) if named else ""
    if name:
        names.add(name)
    found = [
        ("relation", left, mark[1] or mark[3] or "ne", right, name)
        for mark, left, right in zip(marks, sides, sides[1:], strict=False)
    ]
    return found[0] if len(found) == 1 else ("and", found)
