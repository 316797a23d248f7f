"""Writes the two small corpora of recipes/mini-r1.yaml, the same bytes every time.

    python benchmarks/cold_start.py

`recipes/assets/mini-r1-cold-start.jsonl`: 12 right, single-language (English) long thoughts, what
annotators made for DeepSeek-R1 by the thousands (arXiv 2501.12948, section 2.3.1).
`recipes/assets/mini-r1-general.jsonl`: 100 questions that need no thought, in place of R1's 200k
non-reasoning rows (section 2.3.3). Both are of the training split; no held-out task is among them.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from grpo.data.parity import Bilingual
from grpo.data.source import TaskOrder, stable_hash

ASSETS = Path(__file__).resolve().parent.parent / "recipes" / "assets"
SEED = 2501_12948
BITS = 12
ENGLISH = Bilingual(bits=BITS, long_fraction=1.0, english=1.0, switch=0.0)


def rows(source: Bilingual, count: int) -> list[dict[str, str]]:
    """`count` demonstrations of different training tasks, as prompt-completion rows."""
    found: list[dict[str, str]] = []
    for task, _ in TaskOrder(source, "train", SEED).take(count):
        rng = random.Random(stable_hash("cold start", task.uid))
        found.append({"prompt": str(task.prompt), "completion": source.demonstration(task, rng)})
    return found


def main() -> None:
    """Write both files."""
    for name, source, count in (
        ("mini-r1-cold-start", ENGLISH, 12),
        ("mini-r1-general", Bilingual(bits=BITS, ask="last"), 100),
    ):
        path = ASSETS / f"{name}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(source, count))
        path.write_text("".join(lines), encoding="utf-8")
        print(
            f"{path.relative_to(ASSETS.parent.parent)}: {count} rows, {path.stat().st_size} bytes"
        )


if __name__ == "__main__":
    main()
