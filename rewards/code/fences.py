"""Which text of a completion is the program: exactly one block, and never several put together.

The choice looks at the blocks, and at which names the tests ask for; never at what passes. An
answer that holds two programs is therefore judged by one of them, the later one.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Sequence, Set

from grpo.rewards.extract import last_answer_block, split_thought

_PROGRAM = re.compile(
    r"^(?:(?:def|class|import|from|print|for|while|async|if|with|try)(?!\w)|@"
    r"|[A-Za-z_]\w*(?: *, *[A-Za-z_]\w*)* *=)",
    re.MULTILINE,
)
_DEFINED = re.compile(r"^(?:async +)?(?:def|class) +(\w+)", re.MULTILINE)
# Within an example: strings and comments, names that it binds at any depth, names that it calls. A
# string that is never closed goes to the end of its line, or of the text: nothing is tried twice.
_NO_CODE = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:""")?'
    r"|'''(?:[^'\\]|\\.|'(?!''))*+(?:''')?"
    r'|"(?:[^"\\\n]|\\.)*+"?'
    r"|'(?:[^'\\\n]|\\.)*+'?|#[^\n]*",
    re.DOTALL,
)
_BOUND = re.compile(r"(?:def|class) +(\w+)|^[ \t]*(\w+) *=(?!=)", re.MULTILINE)
_CALLED = re.compile(r"(?<![\w.])(\w+) *\(")
_IMPORTED = re.compile(r"^from +(\w+)[\w.]* +import +([^\n]*)", re.MULTILINE)
_WORD = re.compile(r"\w+")


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(label, body) of each closed ``` fence, in order. A fence's own indentation is taken off."""
    found: list[tuple[str, str]] = []
    opened: tuple[int, str, str] | None = None  # first line of the body, fence, label
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        mark = line.strip().removeprefix("<answer>").removesuffix("</answer>").strip()
        if opened is None:
            if mark.startswith("```"):
                label = mark.lstrip("`")
                opened = (number + 1, mark[: len(mark) - len(label)], label.strip().lower())
        elif mark == opened[1]:
            found.append((opened[2], textwrap.dedent("".join(lines[opened[0] : number]))))
            opened = None
    return found


def asked_names(entry: str | None, parts: Sequence[str]) -> set[str]:
    """What tests may ask a program for: their entry point, else all names they do not define."""
    if entry and entry.isidentifier():
        return {entry}
    asked = {word for part in parts for word in _WORD.findall(part)}
    return asked.difference(*(_DEFINED.findall(part) for part in parts))


def chosen_block(text: str, asked: Callable[[], Set[str]] | None = None) -> str | None:
    """The body of the closed ``` fence that is the program, or None.

    What a program prints, how it is called, or an example of its use often stands in a fence after
    it. So the program is the last block of Python that defines a function or class whose name the
    tests ask for (`asked`); where none does, the last that is no example. An example calls what an
    earlier block defines, and does not have it itself.
    """
    blocks = [(label, body) for label, body in code_blocks(text) if _is_python(label)]
    programs = [body for _, body in blocks if _PROGRAM.search(body)]
    if not programs:
        return next((body for label, body in reversed(blocks) if label), None)
    names = asked() if asked and len(programs) > 1 else set[str]()
    for body in reversed(programs) if names else ():
        if not names.isdisjoint(_DEFINED.findall(body)):
            return body
    program, earlier = programs[0], set[str]()
    for body in programs:
        if not _is_example(body, earlier):
            program = body
        earlier |= set(_DEFINED.findall(body))
    return program


def _is_python(label: str) -> bool:
    name = label.strip("{}. ")
    return not name or name.startswith(("py", "ipy"))


def _is_example(body: str, earlier: Set[str]) -> bool:
    if not earlier:
        return False
    code = _NO_CODE.sub(" ", body)
    own = {name for pair in _BOUND.findall(code) for name in pair if name}
    used = set(_CALLED.findall(code))
    for module, names in _IMPORTED.findall(code):
        imported = set(_WORD.findall(names))
        if module in sys.stdlib_module_names:
            own |= imported
        else:
            used |= imported
    return not earlier.isdisjoint(used - own)


def program_of(completion: str, asked: Callable[[], Set[str]] | None = None) -> str | None:
    """The program in a completion: a code block after the thought, else the answer block.

    Without either, text that has a line of Python at the left margin is taken as it is.
    """
    _, text = split_thought(completion)
    if text is None:
        return None
    code = chosen_block(text, asked)
    if code is not None:
        code = code.lstrip("\ufeff")
        return code if code.strip() else None
    block = last_answer_block(text)
    code = block if block is not None else text if "```" not in text else None
    return code if code is not None and _PROGRAM.search(code) else None
