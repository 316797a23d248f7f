"""The confined side of `math`: math-verify on one pair, golds parsed once.

math-verify hands text to a parser that can evaluate, loop for ever or eat all memory; here it is
alone in a process that holds nothing, sees nothing and is killed when its time is up. Its own
alarms stay off: they do not fire in C code, nor with gmpy2 installed.
"""

from __future__ import annotations

import logging
import re
import socket
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from math_verify import parse, verify  # pyright: ignore[reportMissingTypeStubs]

from grpo.rewards import wire
from grpo.rewards.faults import MACHINERY, GraderFault, describe, watch

PACKAGES = ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4")
_FORMULA = re.compile(r"[A-Za-z\\^_{}+*=<>!]|[0-9]:[0-9]")
_WORDS = re.compile(
    r"(?<![A-Za-z\\])(?:[A-Za-z]{2,} +[A-Za-z]{2,}|[A-Za-z]{3,}:? +[-0-9])|[0-9] +[A-Za-z]{3,}"
)

logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")


def forms(text: str) -> list[str]:
    """The ways of writing an answer that math-verify reads differently, best first.

    Bare text makes it look for a last number, which is right for a sentence or a number and wrong
    for a formula (it reads 8n^2+4n+1 as 1).
    """
    if "$" in text or "\\(" in text or "\\[" in text or "\\boxed" in text:
        return [text]
    wrapped = [f"\\boxed{{{text}}}", f"${text}$"]
    bare = not _FORMULA.search(text) or _WORDS.search(text)
    return [*wrapped, text] if bare else wrapped


def _parse(text: str) -> list[Any]:
    found: list[Any] = []
    seen: set[str] = set()
    for form in forms(text):
        parsed: list[Any] = parse(form, parsing_timeout=None)  # pyright: ignore
        key = repr([(type(item).__name__, str(item)) for item in parsed])
        if parsed and key not in seen:
            seen.add(key)
            found.append(parsed)
    return found


_gold = lru_cache(maxsize=4096)(_parse)


def warm_up() -> None:
    """Load what golds and answers need in the zygote, so that every worker is forked with it."""
    for gold, answer in (
        ("\\frac{1}{2}x+1", "1+x/2"),
        ("(1,2]", "[1,2)"),
        ("\\sqrt{2}", "1.41"),
        ("[2,\\infty)", "x \\ge 2"),
    ):
        for form in _parse(gold):
            _same(form, _parse(answer)[0])


def _same(gold: Any, answer: Any) -> bool:
    # -2 <= x <= 7 is [-2, 7], whichever of the two the gold is
    return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))  # pyright: ignore


def judge(gold: str, answer: str, at_answer: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """{"gold": parsed?, "answer": parsed?, "same": …}; `at_answer` is called before the answer is
    read. Raises MemoryError, and MACHINERY or GraderFault where the grader itself fails.

    Whatever else is raised comes from the text that is read: parsers and SymPy raise all kinds of
    errors on formulas that make no sense. A gold of that kind cannot be used. An answer of that
    kind is wrong and not a fault of the grader, or a policy would learn to break it: unscored
    completions leave the baseline, wrong ones do not.
    """
    try:
        golds = _gold(gold)
    except (MemoryError, *MACHINERY):
        raise
    except Exception:
        golds = []
    at_answer()
    if not golds:
        return {"gold": False, "answer": True, "same": False}
    try:
        answers = _parse(answer)
        same = any(_same(g, a) for a in answers for g in golds)
    except (MemoryError, *MACHINERY):
        raise
    except Exception:
        answers, same = [], False
    return {"gold": True, "answer": bool(answers), "same": same}


def serve(channel: socket.socket) -> None:
    """Answer `judge`'s dict, or {"fault": why}, to each {"gold", "answer"}."""
    watch(PACKAGES)
    while True:
        request = wire.receive(channel)
        try:
            found = judge(
                request["gold"], request["answer"], lambda: wire.send(channel, {"stage": "answer"})
            )
        except (GraderFault, *MACHINERY) as error:
            found = {"fault": describe(error)[:300]}
        wire.send(channel, found)


warm_up()
