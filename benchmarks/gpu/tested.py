"""Steps and table of a section that runs tests: outcomes, seconds, and why some failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from gpu import marked
from gpu.section import Result, Setup, Step
from gpu.table import absent, markdown

OUTCOMES = ("passed", "failed", "skipped")


def _name(file: str) -> str:
    """A step's name: "gpu.test-head" for tests/gpu/test_head.py."""
    return file.removeprefix("tests/").removesuffix(".py").replace("/", ".").replace("_", "-")


def _run(session: marked.Session, file: str) -> Callable[[Setup], Result]:
    def measure(_: Setup) -> Result:
        tests = session.finish(file)
        counts = Counter(test["outcome"] for test in tests)
        found: Result = {"tests": tests, "counts": {name: counts[name] for name in OUTCOMES}}
        if counts["failed"]:
            found["failed"] = f"{counts['failed']} of {len(tests)} tests"
        return found

    return measure


def steps_of(
    session: marked.Session, files: Sequence[str], needs: tuple[str, ...] = ()
) -> list[Step]:
    """A step a file."""
    return [Step(name=_name(file), run=_run(session, file), needs=needs) for file in files]


def table_of(results: Mapping[str, Result], files: Sequence[str]) -> str:
    """A row a file, a row a test that failed, and the reasons of those that were skipped."""
    rows: list[list[object]] = []
    wrong: list[tuple[str, str]] = []
    skipped: Counter[str] = Counter()
    for file in files:
        result = results.get(_name(file), {})
        if "tests" not in result:
            rows.append([file, absent(results, _name(file)), "", "", ""])
            continue
        seconds = sum(test["seconds"] for test in result["tests"])
        counts = [result["counts"][outcome] for outcome in OUTCOMES]
        rows.append([file, *counts, f"{seconds:.1f} s"])
        for test in result["tests"]:
            if test["outcome"] == "failed":
                wrong.append((f"`{test['test'].removeprefix('tests/')}`", test["reason"]))
            skipped[test["reason"]] += test["outcome"] == "skipped"
    parts = [markdown(("", *OUTCOMES, "time"), rows)]
    if wrong:
        parts.append(markdown(("failed", "why"), wrong))
    said = [f"{count} skipped: {reason}" for reason, count in skipped.items() if count]
    return "\n\n".join([*parts, *said])
