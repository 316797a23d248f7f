"""R1's verified solutions from the hub, as the prompt-completion rows of an sft stage.

    python -m grpo.recipes.make_openr1 [--limit N] OUT.jsonl

open-r1/OpenR1-Math-220k (Apache-2.0) has two to four generations of DeepSeek-R1 for each of 94,000
problems, with what two checks said of each. The first one that is complete and passed is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from grpo.model.hub import without_scripts
from grpo.outside.files.lines import to_line

DATASET = "open-r1/OpenR1-Math-220k"


def convert(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """{prompt, completion} of each row that has a complete and correct generation.

    Correct is what math-verify accepted, or a language model where math-verify could not tell.
    """
    for row in rows:
        count = len(row["generations"])
        complete = row.get("is_reasoning_complete") or [True] * count
        by_rule = row.get("correctness_math_verify") or [False] * count
        by_model = row.get("correctness_llama") or [False] * count
        for text, whole, *right in zip(
            row["generations"], complete, by_rule, by_model, strict=True
        ):
            if whole and any(right):
                yield {"prompt": row["problem"], "completion": text}
                break


def main() -> None:
    """Command line: the file to write, and how many rows at most."""
    parser = argparse.ArgumentParser(prog="python -m grpo.recipes.make_openr1")
    parser.add_argument("out", metavar="OUT.jsonl", type=Path)
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="rows at most")
    arguments = parser.parse_args()

    import datasets
    from rich.progress import track

    rows = datasets.load_dataset(DATASET, split="train", streaming=True, **without_scripts())
    count = 0
    with arguments.out.open("w", encoding="utf-8", newline="\n") as file:
        for row in track(islice(convert(rows), arguments.limit), description=DATASET):
            file.write(to_line(row))
            count += 1
    print(f"{arguments.out}: {count} rows")


if __name__ == "__main__":
    main()
