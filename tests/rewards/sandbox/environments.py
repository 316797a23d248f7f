"""Small Python environments in any folder: the packages that graders need, linked or copied."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4", "numpy")
# Python without the environment that the tests run in
PYTHON = os.path.realpath(sys.executable)
LIBRARY = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def _place(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or somebody else's file
        shutil.copy2(source, target)


def _copy(source: Path, target: Path) -> None:
    """A copy of a folder; bytecode comes along, or imports would take seconds."""
    ignored = shutil.ignore_patterns("tests")
    shutil.copytree(source, target, copy_function=_place, ignore=ignored)


def copy_packages(folder: Path, names: tuple[str, ...] = PACKAGES, info: bool = True) -> None:
    """Copy installed packages to a folder; with `info`, and what pip leaves beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.submodule_search_locations is not None
        place = Path(found.submodule_search_locations[0])
        _copy(place, folder / name)
        libraries = place.with_name(f"{name}.libs")
        if libraries.is_dir():
            _copy(libraries, folder / libraries.name)
    if info:
        for package in importlib.metadata.distributions():
            if package.name == "antlr4-python3-runtime":  # latex2sympy asks for its version
                place = Path(str(package.locate_file("")))
                for entry in place.glob("antlr4_python3_runtime-*.dist-info"):
                    _copy(entry, folder / entry.name)


def copy_checkout(folder: Path) -> Path:
    """The files of this project that are imported, with its links, as in a checkout."""
    folder.mkdir(parents=True)
    for name in ("grpo", "rewards", "rollout", "data", "recipes"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    return folder


def copy_installed(site_packages: Path) -> None:
    """The project as a wheel holds it: no links."""
    shutil.copytree(ROOT / "grpo", site_packages / "grpo")


def make_venv(folder: Path) -> Path:
    """A virtual environment without packages; its site-packages."""
    command = [PYTHON, "-m", "venv", "--without-pip", "--symlinks", str(folder)]
    subprocess.run(command, check=True)
    return folder / LIBRARY


def python_in(folder: Path) -> str:
    """The interpreter of a virtual environment."""
    return str(folder / "bin" / "python")
