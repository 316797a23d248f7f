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
from functools import lru_cache
from typing import Any

from math_verify import parse, verify  # pyright: ignore[reportMissingTypeStubs]

from grpo.rewards import wire

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
    """Load the grammar's tables in the zygote, so that every worker is forked with them."""
    for gold, answer in (("\\frac{1}{2}x+1", "1+x/2"), ("(1,2]", "[1,2)"), ("\\sqrt{2}", "1.41")):
        for form in _parse(gold):
            verify(form, _parse(answer)[0], timeout_seconds=None)  # pyright: ignore


def serve(channel: socket.socket) -> None:
    """Answer {"gold": parsed?, "answer": parsed?, "same": …} to each {"gold", "answer"}."""
    while True:
        request = wire.receive(channel)
        try:
            gold = _gold(request["gold"])
        except MemoryError:
            raise
        except Exception:
            gold = []
        wire.send(channel, {"stage": "answer"})
        if not gold:
            wire.send(channel, {"gold": False, "answer": True, "same": False})
            continue
        try:
            answer = _parse(request["answer"])
            same = any(
                # -2 <= x <= 7 is [-2, 7], whichever of the two the gold is
                verify(g, a, timeout_seconds=None, allow_set_relation_comp=True)  # pyright: ignore
                for a in answer
                for g in gold
            )
        except MemoryError:
            raise
        except Exception:
            answer, same = [], False
        wire.send(channel, {"gold": True, "answer": bool(answer), "same": bool(same)})


warm_up()
