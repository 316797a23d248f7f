r"""The verifiers on adversarial answers: what they pay that is wrong, and miss that is right.

    python benchmarks/verifier_cases.py [FILE.jsonl …] [--section NAME] [--out FILE.json]

The rows are `verifier_cases/*.jsonl`, written without looking at any verifier's code: a reward, a
kind, a completion as small models write it, the row's `answer` or `tests`, and what is `expected`:
1, 0, or a status for rows that must stay unscored.

hedges: answers that claim several things, nothing, or the opposite, beside plain statements of the
same golds. wholes: golds of which a hasty reader sees only a number. forms: units, words, tuples,
intervals, Unicode, complex values. code: programs.

Prints each miss and writes benchmarks/results/verifier_cases.json, one section for each state of
the code that was measured. Exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from record import ROOT, merge, origin, versions

from grpo.rewards.code.reward import Code
from grpo.rewards.math.reward import Math
from grpo.types import Score, Task

FOLDER = ROOT / "benchmarks/verifier_cases"
PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy")
DEADLINE = 30.0  # seconds a comparison: verdicts are measured here, not a loaded machine
# file -> (share of wrong rows that may be paid, recall over right ones that must be reached)
BARS = {
    "hedges": (8 / 166, 0.92),
    "wholes": (3 / 62, 0.92),
    "forms": (3 / 62, 0.92),
    "code": (0.0, 0.97),
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of one file, each with its `place`, e.g. "hedges:12"."""
    with path.open(encoding="utf-8") as lines:
        return [
            {**json.loads(line), "place": f"{path.stem}:{number}"}
            for number, line in enumerate(lines, start=1)
        ]


def scored(rows: Sequence[Mapping[str, Any]]) -> list[Score]:
    """Each row's score by its own reward, in order."""
    found: dict[str, Score] = {}
    for name in sorted({row["reward"] for row in rows}):
        chosen = [row for row in rows if row["reward"] == name]
        reward = Math(timeout=DEADLINE) if name == "math" else Code()
        try:
            scores = reward.verify_all(
                [row["completion"] for row in chosen], list(map(task_of, chosen))
            )
        finally:
            reward.close()
        found |= {row["place"]: score for row, score in zip(chosen, scores, strict=True)}
    return [found[row["place"]] for row in rows]


def task_of(row: Mapping[str, Any]) -> Task:
    columns = {"tests": row["tests"]} if "tests" in row else {}
    return Task(uid=row["place"], prompt="", answer=row.get("answer"), columns=columns)


def as_expected(row: Mapping[str, Any], score: Score) -> bool:
    """Whether the value is the one expected; where a status is expected, whether it is that."""
    expected = row["expected"]
    return score.status == expected if isinstance(expected, str) else score.value == expected


def summary(pairs: Iterable[tuple[Mapping[str, Any], Score]]) -> dict[str, Any]:
    """Counts of right, wrong and unscored rows and of what became of them."""
    rows = list(pairs)
    right = [(row, score) for row, score in rows if row["expected"] == 1]
    wrong = [(row, score) for row, score in rows if row["expected"] == 0]
    unscored = [(row, score) for row, score in rows if isinstance(row["expected"], str)]
    hits = sum(as_expected(*pair) for pair in right)
    return {
        "wrong": len(wrong),
        "wrong_paid": sum(score.value == 1.0 for _, score in wrong),
        "wrong_unscored": sum(score.value is None for _, score in wrong),
        "right": len(right),
        "recall": round(hits / len(right), 4) if right else None,
        "right_unscored": sum(score.value is None for _, score in right),
        "unscored": len(unscored),
        "unscored_kept": sum(as_expected(*pair) for pair in unscored),
    }


def measured(files: Sequence[Path]) -> dict[str, Any]:
    """The figures of each file and kind, and the rows that did not come out as expected."""
    found: dict[str, Any] = {}
    for path in files:
        rows = rows_of(path)
        pairs = list(zip(rows, scored(rows), strict=True))
        kinds = list(dict.fromkeys(row["kind"] for row in rows))
        found[path.stem] = summary(pairs) | {
            "kinds": {kind: summary(p for p in pairs if p[0]["kind"] == kind) for kind in kinds},
            "missed": [
                {"place": row["place"], "expected": row["expected"], "status": score.status}
                for row, score in pairs
                if not as_expected(row, score)
            ],
        }
        for row, score in pairs:
            if not as_expected(row, score):
                told = f"{row['place']} [{row['kind']}] expected {row['expected']}: {score.status}"
                print(f"{told}\n    {row['completion'][-100:]!r} gold {row.get('answer')!r}")
    return found


def reached(found: Mapping[str, Any]) -> dict[str, bool]:
    """Each bar of the files measured, and whether it holds."""
    bars: dict[str, bool] = {}
    for name, (share, recall) in BARS.items():
        if name in found:
            figures = found[name]
            most = int(share * figures["wrong"])
            bars[f"{name}: at most {most} wrong paid"] = figures["wrong_paid"] <= most
            bars[f"{name}: recall >= {recall}"] = figures["recall"] >= recall
    return bars


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("files", nargs="*", type=Path, metavar="FILE.jsonl")
    arguments.add_argument("--section", default="now")
    arguments.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/verifier_cases.json"
    )
    given = arguments.parse_args()
    start = time.perf_counter()
    found = measured(given.files or sorted(FOLDER.glob("*.jsonl")))
    bars = reached(found)
    seconds = time.perf_counter() - start
    command = "python benchmarks/verifier_cases.py"
    source = origin(command, seconds, versions(PACKAGES))
    merge(given.out, given.section, {"files": found, "bars": bars}, source)
    for name, figures in found.items():
        kinds = {name: figures} | figures["kinds"]
        for kind, counts in kinds.items():
            print(
                f"{kind}: {counts['wrong_paid']} of {counts['wrong']} wrong paid, "
                f"recall {counts['recall']} of {counts['right']}"
            )
    print(json.dumps(bars, indent=2))
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
