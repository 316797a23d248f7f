"""Where a benchmark's figures come from, and how they are put beside those measured before."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo.outside.files.durable import write_json

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "grpo",
    "rollout",
    "rewards",
    "data",
    "benchmarks/perf",
    "benchmarks/gpu",
    "benchmarks/kit",
)
CODE = (*FOLDERS, "recipes/*.py", "benchmarks/*.py")
COMMIT = ROOT / "COMMIT"  # in a copy without git: what `commit` said where the copy was made

_ASK = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def merge(file: Path, section: str, found: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Replace one section of a results file; the others stay as they were measured."""
    results = json.loads(file.read_text()) if file.exists() else {}
    results[section] = {**found, "from": dict(origin)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, results)


def origin(command: str, seconds: float, versions: Mapping[str, Any]) -> dict[str, Any]:
    """Command, date, duration, commit, versions and machine of a measurement."""
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
        "commit": commit(),
        "versions": dict(versions),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
    }


def versions(packages: Sequence[str], python: str = sys.executable) -> dict[str, str]:
    """Python's version and those of the packages that an interpreter has, by name."""
    done = subprocess.run(
        [python, "-c", _ASK, *packages], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    """The commit checked out, and whether the code differs from it; "unknown" without git."""
    if COMMIT.exists():
        return COMMIT.read_text().strip()

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
    return (git("rev-parse", "HEAD") or "unknown") + (
        " with uncommitted changes" if changed else ""
    )
