"""`grpo score`: a line of JSON for each row of a file, and a summary on standard error."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grpo.commands import out_of_memory
from grpo.config.config import parse_args
from grpo.errors import RecipeError
from grpo.outside.files.lines import to_line
from grpo.outside.terminal.streams import write_data
from grpo.rewards.score_file import score_file


def main(arguments: Namespace) -> int:
    """Score a file as the command line says; the exit code. Raises GrpoError."""
    if Path(arguments.file).is_dir():
        raise RecipeError(f"{arguments.file!r} is a folder; name a JSON-lines file to score.")
    if not Path(arguments.file).exists():  # a pipe will do
        raise RecipeError(f"there is no file {arguments.file!r} to score.")
    args = parse_args(arguments.args)
    rows = score_file(arguments.reward, arguments.file, arguments.workers, args, arguments.timeout)
    return print_scores(_within_memory(rows, arguments))


def _within_memory(
    rows: Iterator[dict[str, Any]], arguments: Namespace
) -> Iterator[dict[str, Any]]:
    """The rows. A lack of memory is reported in one sentence."""
    fewer = ["--workers 1"] if arguments.workers > 1 else []
    if arguments.reward == "reward_model":
        fewer += ["--args batch_size=1", "--args max_length=512"]
    with out_of_memory.explained_by(*fewer):
        yield from rows


def print_scores(rows: Iterable[dict[str, Any]]) -> int:
    """Print each row as it comes, then the mean; the exit code, 1 where graders failed on all."""
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()  # why a grader failed -> rows
    total, scored = 0.0, 0
    live = sys.stderr.isatty() and not sys.stdout.isatty()
    for row in rows:
        write_data(to_line(row), flush=sys.stdout.isatty())
        counts[row["status"]] += 1
        if row["status"] == "grader_error":
            failures[row["detail"]] += 1
        if row["value"] is not None:
            total, scored = total + row["value"], scored + 1
        if live:
            print(f"\r{counts.total()} rows", end="", file=sys.stderr, flush=True)
    mean = f"mean {total / scored:.4f} of {scored} scored" if scored else "none scored"
    statuses = ", ".join(f"{status} {n}" for status, n in sorted(counts.items())) or "empty file"
    start = "\r" if live else ""
    print(f"{start}{counts.total()} rows: {mean} ({statuses})", file=sys.stderr)
    if failures:
        (why, _), *_ = failures.most_common(1)
        print(f"the grader failed on {failures.total()} rows; most often: {why}", file=sys.stderr)
    return 1 if failures and not scored else 0
