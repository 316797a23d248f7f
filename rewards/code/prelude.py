"""Names that a program and its tests find without an import: LeetCode's.

A program gets what LeetCode's own header imports, as LiveCodeBench repeats it (arXiv 2403.07974,
`lcb_runner/evaluation/testing_util.py`): every name of these modules, then the modules themselves.
The tests get fewer, since each name that they have already may also be the one that is tested.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

# The classes are LeetCode's own; the functions are those that LeetCodeDataset's tests call.
SOURCE = """
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from builtins import pow
from typing import *
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def is_same_list(a, b):
    while a and b and a.val == b.val:
        a, b = a.next, b.next
    return a is None and b is None
def tree_node(values):
    if not values:
        return None
    root = TreeNode(values[0])
    waiting, rest = [root], iter(values[1:])
    for node in waiting:
        for side in ("left", "right"):
            value = next(rest, None)
            if value is not None:
                child = TreeNode(value)
                setattr(node, side, child)
                waiting.append(child)
    return root
def is_same_tree(a, b):
    waiting = [(a, b)]
    for a, b in waiting:
        if a is None or b is None:
            if a is not b:
                return False
        elif a.val != b.val:
            return False
        else:
            waiting += [(a.left, b.left), (a.right, b.right)]
    return True
"""
CODE = compile(SOURCE, "<prelude>", "exec", dont_inherit=True)
_HEADER = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip


def _public(module: types.ModuleType) -> dict[str, Any]:
    """What `from module import *` brings in."""
    held = vars(module)
    names = held.get("__all__") or [name for name in held if not name.startswith("_")]
    return {name: getattr(module, name) for name in names}


# Looked up once, in the process that programs are forked from.
MODULES = {name: importlib.import_module(name) for name in _HEADER}
HEADER: dict[str, Any] = {
    key: value
    for name in (*_HEADER, "builtins", "typing")
    for key, value in _public(importlib.import_module(name)).items()
}
