"""How long each way into the toolkit takes in an empty environment, and how much it installs.

    python benchmarks/ways_in.py [pip plain uv module container] [--torch-index URL]

Each way begins with a clone of the commit that is checked out, an empty home and no environment,
and ends with two steps of the demo. Caches of packages are not used. The results go to
benchmarks/results/ways_in.json.

* pip: `pip install` with the tested versions and PyTorch's index of CPU builds
* plain: `pip install .` and nothing else, which on Linux takes PyPI's CUDA build of torch
* uv: `uv run`; needs uv
* module: `python -m grpo` in the clone itself, after pip installed what it needs and no toolkit
* container: builds Containerfile and runs it; needs buildah, or docker by `--builder docker`

* --torch-index: another index for torch, where PyTorch's own is out of reach
* --base, --build-args: another base image, and more arguments for the builder as one text
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from record import ROOT, merge, origin

OUT = ROOT / "benchmarks" / "results" / "ways_in.json"
INDEX = "https://download.pytorch.org/whl/cpu"
TWO_STEPS = ["train", "parity-r1-zero", "learner.max_steps=2", "eval.num_tasks=16"]
QUIET = ["--quiet", "--no-compile", "-c", "grpo/constraints.txt"]


class Place:
    """A clone of the commit, beside an empty home."""

    def __init__(self, top: Path, asked: argparse.Namespace) -> None:
        self.clone, self.home, self.asked = top / "clone", top / "home", asked
        self.home.mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, self.clone], check=True)
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        caches = {"PIP_NO_CACHE_DIR": "1", "UV_CACHE_DIR": str(self.home / "uv")}
        self.env = {**kept, "HOME": str(self.home), **caches, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(self, *command: str) -> str:
        """What a command prints, on stdout and then on stderr."""
        done = subprocess.run(
            command, cwd=self.clone, env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"ways_in: {shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
        return done.stdout + done.stderr

    def environment(self) -> str:
        """The interpreter of a new environment in the clone."""
        self.run(sys.executable, "-m", "venv", ".venv")
        return str(self.clone / ".venv" / "bin" / "python")


def pip(place: Place) -> dict[str, Any]:
    """The line of the README."""
    python, start = place.environment(), time.perf_counter()
    index = ["--extra-index-url", place.asked.torch_index]
    place.run(python, "-m", "pip", "install", *QUIET, *index, ".")
    return trained(place, start, str(Path(python).parent / "grpo"))


def plain(place: Place) -> dict[str, Any]:
    """Without the index of CPU builds."""
    python, start = place.environment(), time.perf_counter()
    place.env |= {"PIP_FIND_LINKS": ""}
    place.run(python, "-m", "pip", "install", "--quiet", ".")
    return trained(place, start, str(Path(python).parent / "grpo"))


def uv(place: Place) -> dict[str, Any]:
    """`uv run`, which makes the environment."""
    start = time.perf_counter()
    place.env |= {"UV_PYTHON": sys.executable}
    other = [] if place.asked.torch_index == INDEX else [f"pytorch-cpu={place.asked.torch_index}"]
    index = ["--index", *other] if other else []
    return trained(place, start, place.asked.uv, "run", *index, "grpo")


def module(place: Place) -> dict[str, Any]:
    """`python -m grpo` in the clone."""
    python, start = place.environment(), time.perf_counter()
    index = ["--extra-index-url", place.asked.torch_index]
    asks = "from grpo.commands.api.packages import requirements as r; print(*r(), sep='\\n')"
    needs = place.run(python, "-c", asks).splitlines()
    place.run(python, "-m", "pip", "install", *QUIET, *index, *needs)
    return trained(place, start, python, "-m", "grpo")


def container(place: Place) -> dict[str, Any]:
    """The image is built and run; its size is that of all its layers."""
    asked, start = place.asked, time.perf_counter()
    arguments = ["--build-arg", f"TORCH_INDEX={asked.torch_index}"]
    if asked.base:
        arguments += ["--build-arg", f"BASE={asked.base}"]
    image = "grpo-ways-in"
    arguments += [*shlex.split(asked.build_args), "-t", image, "-f", "Containerfile", "."]
    place.run(asked.builder, "build", *arguments)
    built = time.perf_counter() - start
    size = "{{.Size}}"
    if asked.builder == "docker":
        begin = ["docker", "run", "--rm", image]
        told = place.run("docker", "image", "inspect", "--format", size, image)
    else:  # its sandbox asks for less than podman's, so it works inside another container
        name = place.run("buildah", "from", image).split()[0]
        begin = ["buildah", "run", "--isolation", "chroot", "--user", "grpo", name, "--", "grpo"]
        told = place.run("podman", "image", "inspect", "--format", size, image)
    first, last = lines(place.run(*begin, *TWO_STEPS))
    found = {"seconds_to_install": round(built, 1), "first_line": first, "last_line": last}
    return {
        **found,
        "seconds": round(time.perf_counter() - start, 1),
        "image_gb": gb(int(told.split()[0])),
    }


def trained(place: Place, start: float, *command: str) -> dict[str, Any]:
    """Seconds until the version is printed and until the demo is done; size of the packages."""
    place.run(*command, "--version")
    installed = time.perf_counter() - start
    first, last = lines(place.run(*command, *TWO_STEPS))
    seconds = time.perf_counter() - start
    packages = next((place.clone / ".venv" / "lib").glob("python*/site-packages"))
    found = {"seconds_to_install": round(installed, 1), "first_line": first, "last_line": last}
    return {**found, "seconds": round(seconds, 1), **sizes(packages)}


def lines(printed: str) -> tuple[str, str]:
    """The first line of a run and the one that says how long it was, without colors or places."""
    told = re.sub(r"\x1b\[[0-9;]*m", "", printed).strip().splitlines()
    return told[0], next((line for line in told if "steps of reinforcement" in line), "")


def sizes(packages: Path) -> dict[str, Any]:
    """GB of all packages, MB of the ten largest, the version of torch."""
    by_name: dict[str, int] = {}
    for one in metadata.distributions(path=[str(packages)]):
        files = [Path(str(file.locate())) for file in one.files or []]
        by_name[one.name] = sum(file.stat().st_size for file in files if file.is_file())
    total = sum(file.stat().st_size for file in packages.rglob("*") if file.is_file())
    largest = sorted(by_name.items(), key=lambda item: -item[1])[:10]
    torch = next(one.version for one in metadata.distributions(name="torch", path=[str(packages)]))
    megabytes = {name: round(size / 1e6) for name, size in largest}
    return {"packages_gb": gb(total), "largest_mb": megabytes, "torch": torch}


def gb(size: int) -> float:
    """10^9 bytes, two digits."""
    return round(size / 1e9, 2)


WAYS: dict[str, Callable[[Place], dict[str, Any]]] = {
    way.__name__: way for way in (pip, plain, uv, module, container)
}


def main() -> None:
    """Try, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ways", nargs="*", help=f"of {', '.join(WAYS)}; all of them")
    parser.add_argument("--torch-index", default=INDEX, help="where CPU builds of torch are")
    parser.add_argument("--uv", default="uv", help="the command")
    parser.add_argument("--builder", default="buildah", choices=["buildah", "docker"])
    parser.add_argument("--base", default="", help="image instead of Containerfile's")
    parser.add_argument("--build-args", default="", help="more arguments for `build`")
    asked = parser.parse_args()
    for name in asked.ways or WAYS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="way-") as folder:
            found = WAYS[name](Place(Path(folder).resolve(), asked))
        found["torch_from"] = INDEX if asked.torch_index == INDEX else "a local index"
        if name == "container":
            found["base"] = asked.base or "Containerfile's"
        command = f"python benchmarks/ways_in.py {name}"
        merge(OUT, name, found, origin(command, time.perf_counter() - start, {}))
        print(name, found, flush=True)


if __name__ == "__main__":
    main()
