"""Where the answer is in a completion. Every function is one linear scan: no regex backtracks here.

The thought ends at the last `</think>`. A `<think>` after that was never closed, so the completion
has no answer at all: a box inside an unfinished thought must not be paid.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_RAISED = r" ?\^ ?(?:[-+]?[0-9]+|\{[-+]?[0-9]+\})"
_NUMBER = re.compile(
    rf"[-+]?10{_RAISED}|[-+]?(?:[0-9](?:[0-9,]|\{{,\}})*)?(?:\.[0-9]+|[0-9])"
    rf"(?:/[0-9]+|[eE][-+]?[0-9]+(?![A-Za-z0-9])"
    rf"| ?(?:\\times|\\cdot|[\u00d7\u00b7*]) ?10{_RAISED})?"
)


def split_thought(completion: str) -> tuple[str, str | None]:
    """(thought, answer part). The answer part is None when the thought was never closed."""
    thought, closing, after = completion.rpartition("</think>")
    if "<think>" in after:
        return completion, None
    return (thought, after) if closing else ("", completion)


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of each outermost balanced `\boxed{}`, in order of appearance."""
    opening: dict[int, int] = {}  # position of a box's "{" -> start of its "\boxed"
    for match in _BOX.finditer(text):
        brace = match.end()
        while brace < len(text) and text[brace] == " ":
            brace += 1
        if brace < len(text) and text[brace] == "{":
            opening[brace] = match.start()
    if not opening:
        return []
    found: list[tuple[int, int, str]] = []
    stack: list[int] = []
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            stack.append(match.start())
        elif match.group() == "}" and stack:
            brace = stack.pop()
            if brace in opening:
                start = opening[brace]
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, match.end(), text[brace + 1 : match.start()]))
    return found


def last_box(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{}`."""
    found = boxes(text)
    return found[-1][2] if found else None


def last_answer_block(text: str) -> str | None:
    """The content of the last complete `<answer>…</answer>`."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end] if start >= 0 else None


def last_number(text: str) -> str | None:
    """The last integer, decimal, a/b or number with a power of ten written in the text."""
    found = None
    for match in _NUMBER.finditer(text):
        found = match.group()
    return found


def final_answer(completion: str, *, lenient: bool = False) -> str | None:
    r"""The answer of a completion: last `\boxed{}` after the thought, else the `<answer>` block.

    `lenient` also accepts the last number written after the thought; a thought that never closed
    then counts as text. None: there is no answer.
    """
    _, text = split_thought(completion)
    if text is not None:
        for find in (last_box, last_answer_block):
            found = find(text)
            if found is not None and found.strip():
                return found.strip()
    return last_number(text if text is not None else completion) if lenient else None
