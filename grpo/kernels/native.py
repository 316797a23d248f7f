"""Kernels in C++, compiled on the machine that runs them; where that fails, torch does the work.

A source file is compiled once for a machine, by the C++ compiler that `torch.compile` would use
too, and kept in the user's cache folder. Nothing needs it: every kernel has a torch counterpart
that tests compare it with, and which is used where there is no compiler, no CPU that it knows, or
GRPO_NATIVE=0 in the environment.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

# Reductions are vectorized where the source says so (omp simd) and nowhere else: no -ffast-math,
# which would also assume that there is no infinity and no NaN.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")
HEADERS = Path(__file__).parent
SWITCH = "GRPO_NATIVE"  # variable of the environment; 0: no kernels
MORE_FLAGS = "GRPO_CXXFLAGS"  # variable of the environment: flags that follow these, for sanitizers
WIDE = ("-mprefer-vector-width=512",)  # compilers shy away from these registers


@functools.cache
def library(source: Path, *defines: str) -> ctypes.CDLL | None:
    """The compiled `source`, None where it cannot be had (the reason is logged once).

    `defines` are macros, "NAME=value".
    """
    if os.environ.get(SWITCH, "1") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        logger.info("%s is not compiled: no C++ compiler; torch is used", source.name)
        return None
    try:
        return ctypes.CDLL(str(_compiled(source, compiler, defines)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning("%s cannot be compiled, torch is used instead: %s", source.name, said)
        return None


def is_on() -> bool:
    """Whether kernels are compiled: nobody has switched them off, and there is a compiler."""
    return os.environ.get(SWITCH, "1") != "0" and can_compile()


def can_compile() -> bool:
    """Whether this machine has what compiling needs."""
    return _compiler() is not None


def compiler() -> str:
    """The compiler's name and version, by its own words; "" where there is none."""
    found = _compiler()
    try:
        said = subprocess.run([found or "", "--version"], capture_output=True, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.decode(errors="replace").partition("\n")[0]


def switch(value: str | None) -> None:
    """Set the switch (None: unset it) for what is loaded from here on."""
    os.environ.pop(SWITCH, None)
    if value is not None:
        os.environ[SWITCH] = value
    library.cache_clear()


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++")) if sys.platform == "linux" else None


def _compiled(source: Path, compiler: str, defines: tuple[str, ...]) -> Path:
    """The library's file, made now if this machine has none of this source."""
    headers = sorted(HEADERS.glob("*.h"))
    text = b"\0".join(file.read_bytes() for file in (source, *headers))
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    flags = (
        *FLAGS,
        *(WIDE if platform.machine() == "x86_64" else ()),
        *(f"-D{define}" for define in defines),
        *shlex.split(os.environ.get(MORE_FLAGS, "")),
    )
    parts = (text, version, " ".join(flags).encode(), _processor().encode())
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    folder = _folder()
    path = folder / f"{source.stem}-{key}.so"
    if path.exists():
        return path
    print(f"compiling {source.name} for this machine, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / path.name
        command = [compiler, *flags, "-I", str(HEADERS), "-o", str(made), str(source)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        made.replace(path)  # whole or not at all, also when several processes compile at once
    return path


def _processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    kept = {n for n in lines if n.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(kept)])


def _folder() -> Path:
    """A folder that this user alone can write to; raises OSError where there is none."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "grpo-toolkit"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            return folder
    except OSError:
        pass  # a home that is read-only or does not exist
    return _fallback()


@functools.cache
def _fallback() -> Path:
    return Path(tempfile.mkdtemp(prefix="grpo-native-"))
