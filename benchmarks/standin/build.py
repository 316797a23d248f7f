"""Runs a command on a stand-in for a card: a CUDA runtime that computes nothing.

    python benchmarks/standin/build.py [--capability 90] COMMAND …

COMMAND begins with a Python that has a CUDA build of torch and its nvidia packages. The library is
built once, with a C compiler and CUDA's headers. runtime.c says what it shows and what it cannot.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADERS = ("/usr/local/cuda/include",)  # looked in after those of the nvidia packages
LIBRARIES = ("libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*")
OURS = re.compile(r"^(?:__)?(?:cuda|cublas)\w+$")


def main() -> None:
    """Command line; does not return."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--capability", type=int, default=90, help="75, 80, 86, 89, 90 or 100")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("no command was given")
    os.execvpe(
        arguments.command[0],
        arguments.command,
        environment(arguments.command[0], arguments.capability),
    )


def environment(python: str, capability: int = 90) -> dict[str, str]:
    """That of a process whose CUDA is the stand-in; `python` is its interpreter."""
    library = build(python)
    kept = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    return kept | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": f"{library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "PYTHONPATH": f"{HERE / 'told'}:{os.environ.get('PYTHONPATH', '')}",
        "GRPO_STANDIN_CAPABILITY": str(capability),
    }


def build(python: str) -> Path:
    """The library for the nvidia packages of `python`, under the name of CUDA's driver."""
    packages = nvidia(python)
    names = sorted({*exported(packages), *declared(headers(packages))} - defined())
    defaults = "\n".join(f"long {name}() {{ return 0; }}" for name in names)
    key = hashlib.sha256((defaults + (HERE / "runtime.c").read_text()).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "grpo-toolkit"
    folder = folder / f"standin-{key}"
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "defaults.c").write_text(defaults + "\n")
        made = folder / f"{os.getpid()}.so"
        sources = [HERE / "runtime.c", folder / "defaults.c"]
        subprocess.run(
            ["cc", "-w", "-O1", "-shared", "-fPIC", f"-I{headers(packages)}", "-o", made, *sources],
            check=True,
        )
        made.rename(library)
    return library


def nvidia(python: str) -> Path:
    """The folder of the nvidia packages that torch brought along."""
    ask = "import nvidia; print(list(nvidia.__path__)[0])"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python} has no CUDA build of torch: its nvidia packages are not there")
    return Path(done.stdout.strip())


def headers(packages: Path) -> Path:
    """Where cuda.h and cuda_runtime_api.h lie."""
    for folder in (*packages.glob("*/include"), *map(Path, HEADERS)):
        if all((folder / name).exists() for name in ("cuda.h", "cuda_runtime_api.h", "crt")):
            return folder
    sys.exit("no cuda.h and cuda_runtime_api.h: install CUDA's headers, or set them in HEADERS")


def exported(packages: Path) -> Iterator[str]:
    """Names of the runtime and of cuBLAS."""
    for pattern in LIBRARIES:
        for library in packages.rglob(pattern):
            said = subprocess.run(
                ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
            )
            for line in said.stdout.splitlines():
                name = line.split()[-1].partition("@")[0]
                if OURS.match(name):
                    yield name


def declared(folder: Path) -> set[str]:
    """Names of the driver, with those that its header's macros turn them into."""
    text = (folder / "cuda.h").read_text()
    found = set(re.findall(r"CUDAAPI\s+(cu[A-Z]\w+)\s*\(", text))
    found |= set(re.findall(r"#define\s+(cu[A-Z]\w+)\s", text))
    return found | set(re.findall(r"\b(cu[A-Z]\w+_v\d)\b", text))


def defined() -> set[str]:
    """Names that runtime.c has itself, macros of cuda.h unfolded both ways."""
    text = (HERE / "runtime.c").read_text()
    found = set(re.findall(r"\b((?:__)?(?:cuda|cu|cublas)[A-Z]\w+)\([^;{]*\)\s*\{", text))
    return found | set(re.findall(r"^PRODUCT\((\w+)\)", text, re.M))


if __name__ == "__main__":
    main()
