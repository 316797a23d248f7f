"""The tables of docs/gpu.md that need no card: counts, and kernels compiled for a stand-in.

python -m tests.device.page     from the repository's root, after the tables have changed
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import tables

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "gpu.md"
STANDIN = ROOT / "benchmarks" / "results" / "standin.json"
PROGRAM = "tests/device/page.py"


def main() -> None:
    """Put the tables between their markers."""
    tables.put(PAGE, PROGRAM, made())


def split() -> tuple[str, str, str]:
    """The page before the tables, the tables as they stand there, and the page after them."""
    return tables.split(PAGE, PROGRAM)


def made() -> str:
    """The tables."""
    learner, engine = (read(HERE / f"{name}_counts.json") for name in ("learner", "engine"))
    parts = [learner_table(learner), engine_table(engine)]
    standin = read(STANDIN) if STANDIN.exists() else {}
    parts += [shown(standin[name]) for name, shown in ON_STANDIN.items() if name in standin]
    return "\n\n".join(parts)


def read(file: Path) -> dict[str, Any]:
    """A file of JSON."""
    return json.loads(file.read_text(encoding="utf-8"))


def learner_table(counts: dict[str, Any]) -> str:
    """A learner's step, by kind."""
    heads = ("learner's step", "micro-batches", "blocking copies", "other copies", "waits")
    rows = [
        (
            name,
            found["micro_batches"],
            found["blocking_copies"],
            found["copies"] - found["blocking_copies"],
            found["synchronizations"],
        )
        for name, found in counts.items()
    ]
    return table(heads, rows)


def engine_table(counts: dict[str, Any]) -> str:
    """A token of all rows, by kind of sampling or decoder."""
    heads = ("a decoded token of all rows", "blocking copies", "other copies", "waits")
    rows = [
        (
            name,
            *(
                f"{value:g}"
                for value in (
                    found["a token"]["blocking_copies"],
                    found["a token"]["copies"] - found["a token"]["blocking_copies"],
                    found["a token"]["synchronizations"],
                )
            ),
        )
        for name, found in counts.items()
    ]
    return table(heads, rows)


def standin_table(flex: dict[str, Any]) -> str:
    """FlexAttention, forward and backward, by card."""
    rows = []
    for capability, cases in flex["capabilities"].items():
        failed = {case: said for case, said in cases.items() if said != "compiled"}
        said = "; ".join(f"{case}: {why}" for case, why in failed.items()) or "none"
        rows.append(
            (f"{int(capability) / 10}", f"{len(cases) - len(failed)} of {len(cases)}", said)
        )
    made = table(("compute capability", "shapes compiled", "refused"), rows)
    return f"{made}\n\n{made_by(flex)}"


def made_by(section: dict[str, Any]) -> str:
    """Command, date and versions of a section of the stand-in's results."""
    where = section["from"]
    versions = ", ".join(f"{n} {v}" for n, v in where["versions"].items() if n != "python")
    return f"`{where['command']}`, {where['date']}, {versions}."


def counts_table(counts: dict[str, Any]) -> str:
    """Calls of PyTorch's CUDA build to the runtime: of a learner's step, and of a decoded token."""
    kinds = ("launches", "waits", "blocking_copies", "copies", "to_host")
    named = [(f"learner's step: {name}", found) for name, found in counts["learner"].items()]
    named += [(f"a decoded token: {name}", found) for name, found in counts["engine"].items()]
    heads = ("on the stand-in", "launches", "waits", "blocking copies", "other copies", "to host")
    rows = [(name, *(f"{found[kind]:g}" for kind in kinds)) for name, found in named]
    return f"{table(heads, rows)}\n\n{made_by(counts)}"


ON_STANDIN = {"flex": standin_table, "counts": counts_table}


def table(heads: tuple[str, ...], rows: list[Any]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


if __name__ == "__main__":
    main()
