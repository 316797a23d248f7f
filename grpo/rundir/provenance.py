"""Where an artefact comes from: versions, commit and machine, and hashes of what it was made of."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpo
from grpo.errors.printable import redacted_command

PACKAGES = ("torch", "transformers", "accelerate", "numpy")
CHUNK = 1 << 20


def provenance() -> dict[str, Any]:
    """What the figures of a run depend on beside its recipe."""
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "commit": _commit(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "command": redacted_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def origin(stage: dict[str, Any], seed: int, inputs: dict[str, str]) -> dict[str, Any]:
    """What an artefact of a stage was made of: hashes of its settings and of each local input.

    `inputs` maps a setting to the path it had. A hub id has no content here and stays a name.
    """
    return {
        "settings": text_hash(json.dumps(stage, sort_keys=True)),
        "seed": seed,
        "inputs": {
            setting: {"path": path, "sha256": content_hash(path)}
            for setting, path in sorted(inputs.items())
        },
    }


def text_hash(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash(path: str | Path) -> str | None:
    """sha256 over names and bytes of a file or of all files of a folder; None where none is."""
    root = Path(path)
    if not root.exists():
        return None
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if not file.is_file():
            continue
        name = str(file.relative_to(root)) if root.is_dir() else ""
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(CHUNK):
                digest.update(block)
    return digest.hexdigest()


def _commit() -> str | None:
    """The commit of the checkout this package runs from; None where it is installed."""
    root = Path(str(grpo.__file__)).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
