"""Every test marked `gpu`, with its outcome, its seconds and the reason of a failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from gpu import marked
from gpu.section import Result, Section, Setup, Step
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


def _steps(setup: Setup) -> list[Step]:
    files = marked.files()
    session = marked.Session(
        files, setup.folder / "tests.jsonl", on_cpu=setup.device == "cpu", again=setup.again
    )
    return [Step(name=_name(file), run=_run(session, file)) for file in files]


def _table(results: Mapping[str, Result]) -> str:
    rows: list[list[object]] = []
    wrong: list[tuple[str, str]] = []
    skipped: Counter[str] = Counter()
    for file in marked.files():
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


SECTION = Section(name="tests", title="Tests on the card", minutes=4.0, steps=_steps, table=_table)
