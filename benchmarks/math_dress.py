r"""`math` on real golds in many dresses: the same value must be paid, a changed or hedged one not.

    python benchmarks/math_dress.py --data FOLDER [--section NAME] [--out FILE.json]

FOLDER holds math500/test.jsonl and gsm8k/test.jsonl as published (MIT). Each MATH-500 gold is
answered as itself in every dress of SAME (500 answers that are right) and in every change of OTHER
(500 that are wrong); each GSM8K gold by the last line of its own solution, which states it in a
sentence with other numbers. Changes are left out where they could keep the value. Writes
benchmarks/results/math_dress.json; exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from record import ROOT, merge, origin, versions

from grpo.rewards.math.reward import Math
from grpo.types import Task

Change = Callable[[str], str | None]
DEADLINE = 30.0  # seconds a comparison: verdicts are measured here, not a loaded machine
RECALL, SENTENCES, PAID = 0.99, 0.92, 0.01
_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_POSITIVE = re.compile(r"[0-9.]+|\\frac\{[0-9]+\}\{[0-9]+\}|[0-9]*\\pi|[0-9]*\\sqrt\{[0-9]+\}")
_WORK = re.compile(r"<<[^<>]*>>")


def only(pattern: re.Pattern[str], change: Callable[[str], str]) -> Change:
    """The change where the whole gold has this form, else none; zero has no other sign."""
    return lambda gold: change(gold) if pattern.fullmatch(gold) and gold != "0" else None


def one_digit(gold: str) -> str | None:
    """Another digit in one place, the same for the same gold; never a zero, which could be lost."""
    places = [match.start() for match in re.finditer("[0-9]", gold)]
    if not places:
        return None
    place = random.Random(gold).choice(places)
    return f"{gold[:place]}{int(gold[place]) % 9 + 1}{gold[place + 1 :]}"


def scalar(change: Callable[[str], str]) -> Change:
    """The change where the gold is one value: no list, equation, words or zero."""
    return lambda gold: None if re.search(",|=|text|^0$", gold) else change(gold)


SAME: Mapping[str, Change] = {
    "itself": lambda gold: gold,
    "spaced": lambda gold: re.sub(r"([=+,<>])", r" \1 ", gold),
    "dfrac": lambda gold: gold.replace("\\frac", "\\dfrac"),
    "sentence": lambda gold: f"The answer is ${gold}$.",
    "final": lambda gold: f"Final Answer: The final answer is ${gold}$. I hope it is correct.",
    "period": lambda gold: f"{gold}.",
    "dollars": lambda gold: f"${gold}$",
    "display": lambda gold: f"\\[{gold}\\]",
    "parentheses": lambda gold: f"\\({gold}\\)",
    "bold": lambda gold: f"**{gold}**",
    "box in a sentence": lambda gold: f"Therefore, the value is $\\boxed{{{gold}}}$.",
    "equation": only(_PLAIN, lambda gold: f"x = {gold}"),
    "text": only(_PLAIN, lambda gold: f"\\text{{{gold}}}"),
    "counted": only(_PLAIN, lambda gold: f"There are {gold} of them."),
}
OTHER: Mapping[str, Change] = {
    "one digit": one_digit,
    "sign": only(_POSITIVE, lambda gold: f"-{gold}"),
    "plus 1": scalar(lambda gold: f"{gold}+1"),
    "7 times": scalar(lambda gold: f"7({gold})"),
    "million": only(_PLAIN, lambda gold: f"{gold} million"),
    "or": lambda gold: f"{gold} \\text{{ or }} 7777",
    "one more": lambda gold: f"{gold}, 7777",
    "either": lambda gold: f"either {gold} or 7777",
    "not": lambda gold: f"\\text{{not }} {gold}",
    "unequal": lambda gold: f"\\neq {gold}",
    "greater": lambda gold: f"> {gold}",
    "more than": lambda gold: f"more than {gold}",
}


def paid(reward: Math, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether each (gold, text of the answer block) is paid."""
    completions = [f"<think>t</think><answer>{text}</answer>" for _, text in pairs]
    tasks = [Task(uid=str(i), prompt="", answer=gold) for i, (gold, _) in enumerate(pairs)]
    return [score.value == 1.0 for score in reward.verify_all(completions, tasks)]


def changed(golds: Sequence[str], change: Change) -> list[tuple[str, str]]:
    """(gold, changed gold) where the change applies."""
    return [(gold, text) for gold in golds if (text := change(gold)) is not None]


def last_lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(gold, last line of the solution without the calculator's notes) of GSM8K's rows."""
    found: list[tuple[str, str]] = []
    for row in rows:
        solution, _, gold = row["answer"].rpartition("####")
        found.append((gold.strip(), _WORK.sub("", solution).strip().splitlines()[-1]))
    return found


def measured(math500: Sequence[Mapping[str, Any]], gsm8k: Sequence[Mapping[str, Any]]) -> Any:
    """Of each dress and change how many were paid."""
    golds = [row["answer"] for row in math500]
    reward = Math(timeout=DEADLINE)
    try:

        def counts(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
            return {"paid": sum(paid(reward, pairs)), "of": len(pairs)}

        return {
            "same": {name: counts(changed(golds, change)) for name, change in SAME.items()},
            "other": {name: counts(changed(golds, change)) for name, change in OTHER.items()},
            "gsm8k_last_lines": counts(last_lines(gsm8k)),
        }
    finally:
        reward.close()


def reached(found: Mapping[str, Any]) -> dict[str, bool]:
    """The bars: every dress nearly always paid, every change nearly never, most sentences read."""
    lines = found["gsm8k_last_lines"]
    return {
        f"each dress >= {RECALL}": all(
            row["paid"] >= RECALL * row["of"] for row in found["same"].values()
        ),
        f"each change <= {PAID}": all(
            row["paid"] <= PAID * row["of"] for row in found["other"].values()
        ),
        f"last lines of GSM8K >= {SENTENCES}": lines["paid"] >= SENTENCES * lines["of"],
    }


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--section", default="now")
    arguments.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/math_dress.json")
    given = arguments.parse_args()

    def rows_of(name: str) -> list[dict[str, Any]]:
        with (given.data / name / "test.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    start = time.perf_counter()
    found = measured(rows_of("math500"), rows_of("gsm8k"))
    found["bars"] = reached(found)
    packages = versions(("math-verify", "latex2sympy2_extended", "sympy"))
    command = "python benchmarks/math_dress.py --data FOLDER"
    merge(given.out, given.section, found, origin(command, time.perf_counter() - start, packages))
    print(json.dumps(found, indent=2))
    return 0 if all(found["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
