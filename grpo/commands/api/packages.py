"""`grpo.setup`: the packages that the toolkit lacks in this Python, and what it computes on.

Of the standard library alone, since it runs before anything is installed. What is installed
already stays as it is: a hosted notebook has a torch that fits its driver, and other packages that
rely on the versions they came with.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from grpo.commands.api import output
from grpo.commands.api.calling import called
from grpo.errors import RunError, unknown_name

PACKAGE = "grpo-toolkit"
HERE = Path(__file__).resolve().parents[2]
PINS = HERE / "constraints.txt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


@called
def setup(extras: str = "") -> str:
    """Install the packages that are missing; one line about the processor or GPU, and the type.

        grpo.setup()  # 'NVIDIA L4 with 22 GiB, compute type bfloat16'

    extras: optional parts of the toolkit, as in pip's brackets, say "smollm2,lora". No package that
    is installed is replaced; missing ones get the versions that the toolkit was tested with,
    or, where those do not fit what is installed, the newest that do. Raises RunError where pip
    fails, and for an extra that does not exist.
    """
    lacking = missing(requirements(extras), installed())
    if lacking:
        print(f"installing {', '.join(map(_name, lacking))}", flush=True)
        install(lacking, installed())
        importlib.invalidate_caches()
    return machine()


def machine() -> str:
    """What a run computes on here, and in which type where the recipe says `auto`."""
    with output.loading("looking for a GPU"):
        from grpo.model import compute_types

        return compute_types.computer()


def requirements(extras: str = "") -> list[str]:
    """What the toolkit needs, as pip reads it, with the given extras. Raises RunError."""
    wanted = {name.strip() for name in extras.split(",") if name.strip()}
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # a checkout that is on the path and not installed
        lines = _of_checkout()
    offered = {extra for line in lines for extra in _EXTRA.findall(line)}
    for name in sorted(wanted - offered):
        raise RunError(unknown_name("extra", name, offered))
    return [
        line.partition(";")[0].strip()
        for line in lines
        if not _EXTRA.search(line) or wanted & set(_EXTRA.findall(line))
    ]


def installed() -> dict[str, str]:
    """Normalized name -> version of every package that this Python has."""
    found = {_name(one.metadata["Name"]): one.version for one in metadata.distributions()}
    return {name: version for name, version in found.items() if name != PACKAGE}


def missing(lines: Iterable[str], there: Iterable[str]) -> list[str]:
    """The requirements whose package is not there."""
    have = set(there)
    return [line for line in lines if _name(line) not in have]


def install(lacking: list[str], there: dict[str, str]) -> None:
    """Install requirements beside what is there. Raises RunError with what pip said.

    First with the tested versions of what is missing. Where these do not fit the packages that are
    there, pip chooses.
    """
    pins = [line for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    held = [f"{name}=={version}" for name, version in sorted(there.items())]
    tested = [line for line in pins if _name(line) not in there]
    said = _pip(lacking, held + tested) and _pip(lacking, held)
    if said:
        raise RunError(
            f"pip cannot add {', '.join(lacking)} to what is installed without replacing a "
            f"package: {said}; restart in a new environment, or install them yourself"
        )


def _pip(lacking: list[str], constraints: list[str]) -> str:
    """The last error of pip; "" where it worked."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text("\n".join(constraints))
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        command = [sys.executable, "-m", "pip", "install", *quiet, "-c", str(file), *lacking]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or ["ERROR: pip failed without a word"])[-1].removeprefix("ERROR: ")


def _of_checkout() -> list[str]:
    """The requirements in the pyproject.toml beside `grpo/`."""
    file = HERE.parent / "pyproject.toml"
    if not file.is_file():
        raise RunError(f"{PACKAGE} is not installed, and there is no {file}; pip install it")
    project = tomllib.loads(file.read_text())["project"]
    optional = project["optional-dependencies"].items()
    extras = [f'{line}; extra == "{extra}"' for extra, lines in optional for line in lines]
    return project["dependencies"] + extras


def _name(requirement: str) -> str:
    """The package of a requirement, as PEP 503 writes it: "trl" of "trl>=1.16"."""
    found = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""
