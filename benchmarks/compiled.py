"""Checks of our C++ and C beyond its tests.

    python benchmarks/compiled.py warnings     every source compiles without a warning
    python benchmarks/compiled.py sanitizers   the tests of kernels under AddressSanitizer and UBSan
    python benchmarks/compiled.py format       every file is laid out by clang-format (--fix: now)

The first one compiles for this machine, and for one without AVX-512 and matrix tiles. The stand-in
for a card (benchmarks/standin) is compiled where CUDA's headers are installed.

The sanitizers stop a test at the first address that is out of bounds, misaligned or freed, and at
arithmetic that C++ does not define. Two things escape them: what matrix tiles load and store, as
compilers do not instrument that, and registers of sixteen numbers, whose arithmetic wraps.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "grpo" / "kernels"
FOLDERS = (KERNELS, ROOT / "rollout" / "embedded" / "cpu", ROOT / "benchmarks" / "standin")
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
COMPILER = os.environ.get("CXX", "c++")

STRICT = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-O1", "-c", "-o", os.devnull)
# What is passed in registers of sixteen numbers stays within one file, whatever its ABI.
CPP = ("-std=c++17", "-fopenmp", "-fPIC", f"-I{KERNELS}", "-Wno-psabi")
MACHINES = ("native", "x86-64") if platform.machine() == "x86_64" else ("native",)
DEFINES = {"attention.cpp": ("FLOAT_ONLY",), "compiled_attention.cpp": ("HEAD_SIZE=64",)}
# CUDA's functions have parameters that a stand-in does not use, and signs of their own.
C = ("-Wno-unused-parameter", "-Wno-sign-conversion", f"-I{CUDA}")

SANITIZERS = "address,undefined,float-cast-overflow"
TESTS = (
    "tests/grpo/kernels",
    "tests/grpo/attention/test_shared_attention.py",
    "tests/rollout/embedded/cpu",
)
# Its bound is that of sums in sixteen lanes; checked code is not vectorized and sums one by one.
LESS_EXACT = "tests/grpo/kernels/test_kernels_head.py::test_sums_over_the_vocabulary"


def main() -> int:
    """Command line; 0 where nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("check", choices=["warnings", "sanitizers", "format"])
    parser.add_argument("--fix", action="store_true", help="lay files out instead of checking")
    arguments = parser.parse_args()
    if arguments.check == "format":
        return _format(fix=arguments.fix)
    return _warnings() if arguments.check == "warnings" else _sanitizers()


def sources(*suffixes: str) -> list[Path]:
    """Our files in C++ and C that end so."""
    return sorted(
        file for folder in FOLDERS for file in folder.glob("*") if file.suffix in suffixes
    )


def _format(*, fix: bool) -> int:
    tool = Path(sys.executable).with_name("clang-format")
    how = ["-i"] if fix else ["--dry-run", "-Werror"]
    return subprocess.run([tool, *how, *sources(".cpp", ".h", ".c")]).returncode


def _warnings() -> int:
    if shutil.which(COMPILER) is None:
        sys.exit(f"there is no C++ compiler {COMPILER!r}: install one, or set CXX")
    commands = [command for file in sources(".cpp") for command in cpp_commands(file)]
    if (CUDA / "cuda_runtime_api.h").exists():
        commands += [["cc", *STRICT, *C, str(file)] for file in sources(".c")]
    else:
        print(f"benchmarks/standin is not compiled: no CUDA headers in {CUDA} (CUDA_HOME)")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda c: subprocess.run(c, stderr=subprocess.PIPE), commands))
    for result in results:
        sys.stderr.buffer.write(result.stderr)
    failed = sum(result.returncode != 0 for result in results)
    print(f"{len(results)} compilations with {' '.join(STRICT[:5])}: {failed} failed")
    return int(failed > 0)


def cpp_commands(file: Path) -> list[list[str]]:
    """The strict compilations of a source in C++."""
    extra = [f"-D{define}" for define in DEFINES.get(file.name, ())]
    whole = [[]] if "HEAD_SIZE" not in file.read_text() else []
    return [
        [COMPILER, f"-march={machine}", *STRICT, *CPP, *defines, str(file)]
        for machine in MACHINES
        for defines in (*whole, *([extra] if extra else []))
    ]


def _sanitizers() -> int:
    libraries = [
        subprocess.check_output([COMPILER, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    flags = f"-O1 -g -fno-omit-frame-pointer -fsanitize={SANITIZERS} -fno-sanitize-recover=all"
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(libraries),  # python itself knows nothing of them
        "ASAN_OPTIONS": "detect_leaks=0",
        "GRPO_CXXFLAGS": flags,
    }
    # A finding ends its process, and is written to stderr: pytest must not keep that (-s).
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-n", "auto", "--dist", "loadfile"]
    return subprocess.run(
        [*command, *TESTS, "--deselect", LESS_EXACT], cwd=ROOT, env=environment
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
