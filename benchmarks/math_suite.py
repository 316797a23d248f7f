r"""`math` on math-verify's own test suite, beside math-verify itself.

    python benchmarks/math_suite.py FOLDER [--section NAME] [--out FILE.json]

FOLDER holds test files of github.com/huggingface/Math-Verify (MIT), which are not part of this
repository; `pip download --no-deps --no-binary math-verify math-verify==0.9.0` brings them in the
source archive. They are read as syntax and never imported (see `suite_pairs`). Writes
benchmarks/results/math_suite.json, and exits 1 if a bar is missed.

A prediction stands after a closed thought: as it is if it has a box, else as the answer block, as
math-verify is told, too, that this text is the answer (`block`, which the bars are for). `text` is
stricter: a prediction of more than SHORT characters stays without a block, and the last number
counts (extraction=lenient), as if such a model had never been asked for a box. What the suite
expects only under an option that `math` has not, or of the layout, is left out and listed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import ROOT, merge, origin, versions
from suite_pairs import Pair, pairs_of

from grpo.errors import DataError
from grpo.rewards.math.reward import Math
from grpo.types import Task

SHORT = 250  # characters of an answer that a model would put between <answer> and </answer>
WRAPPINGS = {"block": sys.maxsize, "text": SHORT}
RECALL = 0.985
DEADLINE = 30.0  # seconds a pair: verdicts are measured here, not a loaded machine
PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy")


def completion_of(prediction: str, longest: int) -> str:
    """The prediction as a completion with a closed thought; `longest`: characters of a block."""
    if "</think>" in prediction:
        return prediction
    plain = "\\boxed" in prediction or len(prediction) > longest
    text = prediction if plain else f"<answer>{prediction}</answer>"
    return f"<think>Step by step.</think>\n{text}"


def ours(pairs: Sequence[Pair], longest: int) -> tuple[list[bool], list[str]]:
    """Whether `math` pays each pair, and its statuses."""
    completions = [completion_of(pair.prediction, longest) for pair in pairs]
    tasks = [Task(uid=str(i), prompt="", answer=pair.gold) for i, pair in enumerate(pairs)]
    reward = Math(extraction="lenient", timeout=DEADLINE)
    try:
        scores = reward.verify_all(completions, tasks)
    finally:
        reward.close()
    return [score.value == 1.0 for score in scores], [score.status for score in scores]


def theirs(pairs: Sequence[Pair]) -> list[bool]:
    """Whether math-verify, as its tests call it, accepts each pair."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    found: list[bool] = []
    for pair in pairs:
        targets = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
        gold, prediction = parse(pair.gold, targets), parse(pair.prediction, targets)
        found.append(bool(verify(gold, prediction, allow_set_relation_comp=True)))
    return found


def summary(pairs: Sequence[Pair], paid: Sequence[bool]) -> dict[str, Any]:
    """Recall over the right pairs, and how many wrong ones were paid."""
    right = [got for pair, got in zip(pairs, paid, strict=True) if pair.expected]
    wrong = [got for pair, got in zip(pairs, paid, strict=True) if not pair.expected]
    return {
        "right": len(right),
        "wrong": len(wrong),
        "recall": round(sum(right) / len(right), 4) if right else None,
        "false_positives": sum(wrong),
    }


def measured(folder: Path) -> dict[str, Any]:
    """Both verifiers on every pair of the folder's files, with the pairs that `math` misses."""
    pairs, left_out = pairs_of(folder)
    if not pairs:
        raise DataError(f"FOLDER {str(folder)!r} has no test file with pairs of math-verify's")
    found: dict[str, Any] = {"math_verify": by_file(pairs, theirs(pairs))}
    for name, longest in WRAPPINGS.items():
        paid, statuses = ours(pairs, longest)
        found[f"math_{name}"] = by_file(pairs, paid) | {
            "missed": [
                {"place": pair.place, "expected": int(pair.expected), "status": status}
                for pair, got, status in zip(pairs, paid, statuses, strict=True)
                if got != pair.expected
            ]
        }
    return found | {"left_out": left_out}


def by_file(pairs: Sequence[Pair], paid: Sequence[bool]) -> dict[str, Any]:
    """The summary of all pairs, and that of each file's."""
    rows = list(zip(pairs, paid, strict=True))
    files: dict[str, Any] = {}
    for name in sorted({pair.file for pair in pairs}):
        here = [(pair, got) for pair, got in rows if pair.file == name]
        files[name] = summary([pair for pair, _ in here], [got for _, got in here])
    return summary(pairs, paid) | {"files": files}


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("folder", type=Path, metavar="FOLDER")
    arguments.add_argument("--section", default="now")
    arguments.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/math_suite.json")
    given = arguments.parse_args()
    start = time.perf_counter()
    found = measured(given.folder)
    seconds = time.perf_counter() - start
    command = "python benchmarks/math_suite.py FOLDER"
    merge(given.out, given.section, found, origin(command, seconds, versions(PACKAGES)))
    print(json.dumps(found, indent=2))
    figures = found["math_block"]
    return 0 if figures["recall"] >= RECALL and figures["false_positives"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
