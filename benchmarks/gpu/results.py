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
from gpu.state import DONE, FAILED, NOT_RUN, Record

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
found = {"name": ""}
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

    The name is "" where torch sees no card.
    """
    if device == "cpu":
        return {"name": processor()}
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(asked.stdout)
    if found["name"] and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split()[:1]
    return found


def measured_on(
    command: str, setup: Setup, card: Mapping[str, Any], records: Mapping[str, Record]
) -> dict[str, Any]:
    """Where a section's figures come from. The commit is that of its steps, all of them named."""
    seconds = sum(record["seconds"] for record in records.values())
    found = origin(command, seconds, versions(PACKAGES))
    commits = sorted({record["commit"] for record in records.values()})
    if commits:
        found["commit"] = ", ".join(commits)
        found["date"] = max(record["date"] for record in records.values())[:10]
    return {**found, "device": setup.device, "card": dict(card), "threads": setup.threads}


def gather(steps: Sequence[Step], records: Mapping[str, Record], ending: str) -> dict[str, Any]:
    """A section as the results file has it: its status in words, and every step that has a record.

    ending: how the run of it ended early, say "stopped at its limit"; "" where it did not.
    """
    return {"status": status(steps, records, ending), "steps": dict(records)}


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
    return f"{ending or 'cut'} after {finished} of {len(steps)} steps{said}"


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
