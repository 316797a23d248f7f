"""Everything that only a GPU can show, in sections that survive losing the machine.

    python benchmarks/bench_gpu.py [SECTION ...] [--table | --list | --take OUT]

A process per section, ended after eight minutes. Every step is on disk the moment it ends, and the
same command goes on where the last one was cut. A section goes into benchmarks/results/gpu.json,
and the tables of docs/gpu.md are made from that file.

--device cpu --tiny runs every section at the smallest size on any machine; its figures mean nothing
and go to FOLDER/gpu.json. To measure a section anew, remove FOLDER/state/SECTION.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from gpu.home import take
from gpu.needs import missing
from gpu.results import so_far
from gpu.runner import Plan, claimed, run, show
from gpu.section import Section, Setup
from gpu.sections import SECTIONS, load
from gpu.table import table
from record import ROOT

from grpo.errors import GrpoError

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PAGE = ROOT / "docs" / "gpu.md"
FOLDERS = {True: "runs/gpu", False: "runs/gpu-rehearsal"}  # whether the figures are real


def main() -> int:
    """Command line. Exit status: 0 good, 1 a step failed, 2 refused, 128 + a signal's number."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sections", nargs="*", default=[*SECTIONS], metavar="SECTION", help=", ".join(SECTIONS))
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--tiny", action="store_true", help="smallest model and shapes, once")
    add("--folder", type=Path, help="state, logs and traces (runs/gpu, runs/gpu-rehearsal)")
    add("--assets", type=Path, default=ROOT / "models", help="models, made on first use")
    add("--results", type=Path, help="results file")
    add("--page", type=Path, help="page whose tables are written (docs/gpu.md)")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--again", action="store_true", help="run what failed once more")
    add("--table", action="store_true", help="no measurement: print the tables")
    add(
        "--take",
        type=Path,
        metavar="OUT",
        help="no measurement: take home what run.sh results left",
    )
    add("--list", action="store_true", help="no measurement: sections, steps, needs, estimates")
    given = parser.parse_args()
    unknown = [name for name in given.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}; valid: {', '.join(SECTIONS)}")
    real = given.device == "cuda" and not given.tiny
    folder = (given.folder or ROOT / FOLDERS[real]).resolve()
    results = (given.results or (RESULTS if real else folder / "gpu.json")).resolve()
    page = given.page or (PAGE if real else None)
    if not real and (results == RESULTS or (page and page.resolve() == PAGE)):
        parser.error(f"figures of --tiny or --device cpu do not go to {RESULTS} or {PAGE}")
    plan = Plan(
        setup=Setup(
            device=given.device,
            tiny=given.tiny,
            assets=given.assets.resolve(),
            folder=folder,
            threads=given.threads,
            again=given.again,
        ),
        sections={name: SECTIONS[name] for name in given.sections},
        shown=SECTIONS,
        results=results,
        page=page,
        command=shlex.join(["python", "benchmarks/bench_gpu.py", *sys.argv[1:]]),
    )
    if given.list:
        listed([load(module) for module in plan.sections.values()], plan.setup)
        return 0
    try:
        if given.take:
            with claimed(folder):  # a runner here writes into the same file
                taken = take(given.take, plan.setup, plan.results, SECTIONS)
            print(f"taken into {plan.results}: {', '.join(taken) or 'nothing that is newer'}")
            show(plan)
            return 0
        return table_only(plan) if given.table else run(plan)
    except GrpoError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 2


def table_only(plan: Plan) -> int:
    """Print the tables of what is known, and write the page."""
    print(table(so_far(plan.results, plan.setup, plan.sections), plan.sections))
    show(plan)
    return 0


def listed(sections: list[Section], setup: Setup) -> None:
    """Print sections, steps, needs and estimates, and the sum of the estimates."""
    for section in sections:
        print(f"{section.name}: {section.title}; about {section.minutes:g} min")
        for step in section.steps(setup):
            reason = missing(step.needs, setup)
            needs = f" (needs {', '.join(step.needs)})" if step.needs else ""
            print(f"   {step.name}{needs}{f': not here: {reason}' if reason else ''}")
    print(f"together about {sum(section.minutes for section in sections):g} min")


if __name__ == "__main__":
    sys.exit(main())
