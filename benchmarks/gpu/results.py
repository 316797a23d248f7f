"""A section's steps as they stand in a results file, and on what they were measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record import origin, processor, versions

from gpu.section import Result, Setup, Step
from gpu.sections import load
from gpu.state import DONE, FAILED, NOT_RUN, Record, State
from grpo.errors import RunError

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "accelerate",
    "numpy",
    "trl",
    "peft",
    "datasets",
    "vllm",
    "flashinfer-python",
)

_ASK = """
import json, torch
found = {"name": "", "CUDA": torch.version.cuda}
if torch.cuda.is_available():
    about = torch.cuda.get_device_properties(0)
    found = {
        "name": about.name,
        "memory GiB": round(about.total_memory / 2**30, 1),
        "multiprocessors": about.multi_processor_count,
        "compute capability": f"{about.major}.{about.minor}",
        "CUDA": torch.version.cuda,
        "cards": torch.cuda.device_count(),
    }
print(json.dumps(found))
"""


def find_card(device: str) -> dict[str, Any]:
    """Name, memory, driver and compute capability; for "cpu" the processor's name.

    The name is "" where torch sees no card. Raises RunError where there is no torch.
    """
    if device == "cpu":
        return {"name": processor()}
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    if asked.returncode:
        raise RunError(f"torch cannot be asked for a card: {asked.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(asked.stdout)
    if found["name"] and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True).stdout.split()
        found["driver"] = said[0] if said else "unknown"
    return found


def begin(state: State, command: str, setup: Setup, card: Mapping[str, Any]) -> None:
    """Note on what a section is measured now."""
    found = origin(command, 0.0, versions(PACKAGES))
    about = {"device": setup.device, "card": dict(card), "threads": setup.threads}
    state.write("_from", {**found, **about})


def gather(steps: Sequence[Step], state: State, ending: str) -> dict[str, Any]:
    """A section as the results file has it: its status in words, its steps, where they are from.

    ending: how the run of it ended early, say "stopped at its limit"; "" where it did not. The
    commit is that of the steps, where they differ all of them.
    """
    records = state.records(steps)
    where = dict(state.read("_from") or {})
    where["seconds"] = round(sum(record["seconds"] for record in records.values()), 1)
    if records:
        where["commit"] = ", ".join(sorted({record["commit"] for record in records.values()}))
        where["date"] = max(record["date"] for record in records.values())[:10]
    return {"status": status(steps, records, ending), "steps": records, "from": where}


def so_far(results: Path, setup: Setup, sections: Mapping[str, str]) -> dict[str, Any]:
    """A results file, and what the folder has of sections that have not come to their end."""
    found: dict[str, Any] = read(results)
    for name, module in sections.items():
        if (setup.folder / "state" / name / "_from.json").exists():
            gathered = gather(load(module).steps(setup), State.of(setup, name), "unfinished")
            if newest(gathered) > newest(found.get(name)):
                found[name] = gathered
    return found


def newest(section: Mapping[str, Any] | None) -> str:
    """When the last step of a section ended, "" where there is none."""
    return max(
        (record["date"] for record in (section or {"steps": {}})["steps"].values()), default=""
    )


def status(steps: Sequence[Step], records: Mapping[str, Record], ending: str) -> str:
    """In words: "finished, 5 steps", "stopped at its limit after 3 of 5 steps (1 failed)"."""
    counts = {
        kind: sum(record["status"] == kind for record in records.values())
        for kind in (DONE, FAILED, NOT_RUN)
    }
    others = [f"{counts[kind]} {kind}" for kind in (FAILED, NOT_RUN) if counts[kind]]
    said = f" ({', '.join(others)})" if others else ""
    finished = len(records)
    if finished == len(steps):
        return f"finished, {finished} steps{said}"
    return f"{ending} after {finished} of {len(steps)} steps{said}"


def shown(found: Mapping[str, Any]) -> dict[str, Result]:
    """{step: result} of a section in a results file, as its `table` takes it."""
    return {name: _shown(record) for name, record in found["steps"].items()}


def _shown(record: Record) -> Result:
    if record["status"] == DONE:
        return record["result"]
    return {**record["result"], record["status"]: record["reason"]}


def read(path: Path) -> dict[str, Any]:
    """A results file; empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}
