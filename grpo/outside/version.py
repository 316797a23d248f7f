"""The version of the toolkit, installed or not."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path


def toolkit_version() -> str:
    """As its metadata has it; in a checkout that is not installed, as pyproject.toml has it."""
    try:
        return metadata.version("grpo-toolkit")
    except metadata.PackageNotFoundError:
        file = Path(__file__).resolve().parents[2] / "pyproject.toml"
        return tomllib.loads(file.read_text())["project"]["version"]
