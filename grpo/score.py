"""What `grpo score` prints: JSON for each row, and on standard error what they come to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from grpo.lines import to_line
from grpo.terminal import write_data


def print_scores(rows: Iterable[dict[str, Any]]) -> int:
    """Print each row as it comes, then the mean; the exit code, 1 where graders failed on all."""
    counts: dict[str, int] = {}
    failures: dict[str, int] = {}  # why a grader failed -> rows
    total, scored = 0.0, 0
    live = sys.stderr.isatty() and not sys.stdout.isatty()
    for row in rows:
        write_data(to_line(row), flush=sys.stdout.isatty())
        counts[row["status"]] = counts.get(row["status"], 0) + 1
        if row["status"] == "grader_error":
            failures[row["detail"]] = failures.get(row["detail"], 0) + 1
        if row["value"] is not None:
            total, scored = total + row["value"], scored + 1
        if live:
            print(f"\r{sum(counts.values())} rows", end="", file=sys.stderr, flush=True)
    mean = f"mean {total / scored:.4f} of {scored} scored" if scored else "none scored"
    statuses = ", ".join(f"{status} {n}" for status, n in sorted(counts.items())) or "empty file"
    start = "\r" if live else ""
    print(f"{start}{sum(counts.values())} rows: {mean} ({statuses})", file=sys.stderr)
    if failures:
        why, failed = max(failures, key=failures.__getitem__), sum(failures.values())
        print(f"the grader failed on {failed} rows; most often: {why}", file=sys.stderr)
    return 1 if failures and not scored else 0
