"""The tables of docs/gpu.md, made from a results file; and words for figures that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu.results import read, shown
from gpu.section import Result
from gpu.sections import load
from gpu.state import FAILED, NOT_RUN
from grpo.errors import RunError
from grpo.outside.files import durable

START, END = "<!-- made by benchmarks/bench_gpu.py: start -->", "<!-- end -->"


def write_table(results: Path, page: Path, sections: Mapping[str, str]) -> None:
    """Put the tables between the markers of `page`. Raises RunError where they are missing."""
    text = page.read_text() if page.exists() else ""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise RunError(f"{page} has no {START} ... {END}; put both lines where the tables belong")
    made = table(read(results), sections)
    durable.write_text(page, f"{before}{START}\n{made}\n{END}{after}")


def table(results: Mapping[str, Any], sections: Mapping[str, str]) -> str:
    """Sections, {name: module}, in Markdown; what was not measured says so."""
    return "\n\n".join(part(name, module, results) for name, module in sections.items())


def part(name: str, module: str, results: Mapping[str, Any]) -> str:
    """One section. One that cannot be shown says why; the others have their tables all the same."""
    found = results.get(name)
    end = f"`{name}`: not run." if found is None else source(name, found)
    try:
        section = load(module)
        if found is None:
            end = f"`{name}`: not run; about {section.minutes:g} min on an H200, estimated."
        made = section.table({} if found is None else shown(found))
    except Exception as error:
        return f"### {name}\n\nNo table: {type(error).__name__}: {error}\n\n{end}"
    return f"### {section.title}\n\n{made}\n\n{end}"


def source(name: str, found: Mapping[str, Any]) -> str:
    """How far a section came and where its figures come from, in a line."""
    where = found["from"]
    minutes = where["seconds"] / 60
    card = where["card"]
    details = [card["name"]]
    if "memory GiB" in card:
        details.append(f"{card['memory GiB']:g} GiB")
    if "driver" in card:
        details.append(f"driver {card['driver']}")
    torch = where["versions"].get("torch", "unknown")
    return (
        f"`{name}`: {found['status']}; {minutes:.1f} minutes; {where['date']}, "
        f"commit {short(where['commit'])}; {', '.join(details)}; torch {torch}."
    )


def short(commits: str) -> str:
    """Commits by their first ten digits, with what is said of each."""
    parts = [commit.partition(" ") for commit in commits.split(", ")]
    return ", ".join(f"{digits[:10]}{space}{said}" for digits, space, said in parts)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def absent(results: Mapping[str, Result], step: str) -> str | None:
    """Why a step has no figures, in a line; None where it has them."""
    if step not in results:
        return "not run"
    result = results[step]
    for kind in (FAILED, NOT_RUN):
        if kind in result:
            return f"{kind}: {result[kind]}" if result[kind] else kind
    return None


def step_rows(
    results: Mapping[str, Result],
    labels: Mapping[str, str],
    *cells: Callable[[Result], Any],
) -> list[list[Any]]:
    """A row for each step in `labels`: its label and its cells, or why there are none.

    The reason stands in the first cell after the label.
    """
    rows: list[list[Any]] = []
    for step, label in labels.items():
        reason = absent(results, step)
        if reason is None:
            rows.append([label, *(cell(results[step]) for cell in cells)])
        else:
            rows.append([label, reason, *[""] * (len(cells) - 1)])
    return rows


def number(value: float | None, form: str = ",.0f", unit: str = "") -> str:
    """A figure as it is shown; "not known" for None (on a CPU, or without the card section)."""
    if value is None:
        return "not known"
    return f"{value:{form}}{unit}"
