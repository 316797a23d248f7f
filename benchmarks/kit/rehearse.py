"""Play a whole loan of a machine: no network, pieces late and damaged, everything killed.

    python benchmarks/kit/rehearse.py [--image FOLDER] [--sections NAME ...] [--results FILE]

Without --image it takes small pieces and a Python over this environment that sees only the packages
which the machine has. With it, the full kit and FOLDER/bin/python: an environment with Python 3.12,
torch 2.11 and the machine's packages. Every section runs with --device cpu --tiny; its figures mean
nothing. What is asserted: the first result within three minutes of the first piece, no finished
step run again, damaged pieces refused by name, and every section in the table at the end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from record import origin, versions

from kit.pack import CACHE, SMALL, TOTAL, pack
from kit.pieces import KitError, Manifest
from kit.play import play
from kit.wheels import Machine, canonical, needs

OFFLINE = {"HF_HUB_OFFLINE": "1", "no_proxy": "", "http_proxy": "http://127.0.0.1:9"}
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "huggingface_hub", "accelerate")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--sections", nargs="*", default=[])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--play", nargs=2, metavar=("SCRATCH", "PYTHON"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.play:
        found = play(Path(given.play[0]), given.play[1], given.sections)
        (Path(given.play[0]) / "played.json").write_text(json.dumps(found))
        return 0
    with tempfile.TemporaryDirectory(prefix="grpo-kit-") as scratch:
        try:
            found = rehearse(Path(scratch), given.image, given.cache, given.sections)
        except KitError as error:
            print(f"rehearse: {error}", file=sys.stderr)
            return 1
    text = json.dumps(found, indent=1)
    print(text)
    if given.results:
        given.results.write_text(text + "\n")
    return 0


def rehearse(
    scratch: Path, image: Path | None, cache: Path, sections: Sequence[str]
) -> dict[str, Any]:
    """Pack and play. Raises KitError where anything is not as it should be."""
    began = time.monotonic()
    # A rehearsal that is kept has a commit; one in a test may look at what is being changed.
    manifest = pack(scratch / "kit", small=image is None, dirty=image is None, cache=cache)
    packed = time.monotonic() - began
    python = image / "bin" / "python" if image else bare(scratch / "machine")
    command = [sys.executable, __file__, "--play", str(scratch), str(python)]
    command += ["--sections", *sections] if sections else []
    alone = subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
    if not alone:
        print("no network namespace can be made here: this rehearsal is with network", flush=True)
    done = subprocess.run(
        ["unshare", "-n", *command] if alone else command, env={**os.environ, **OFFLINE}
    )
    if done.returncode:
        raise KitError("the rehearsal failed, see above")
    played = json.loads((scratch / "played.json").read_text())
    where = origin("make gpu-kit-test", time.monotonic() - began, versions(PACKAGES, str(python)))
    return {
        "network": "none" if alone else "with network",
        "kit": "full" if image else "small",
        "seconds to pack": round(packed, 1),
        **sizes(manifest),
        **played,
        "from": {**where, "commit": manifest.commit},
    }


def sizes(manifest: Manifest) -> dict[str, Any]:
    """Bytes of pieces and parts, and what is in each part."""
    total = sum(piece.bytes for piece in manifest.pieces)
    return {
        "bytes": total,
        "limit": TOTAL,
        "pieces": {
            piece.name: {
                "bytes": piece.bytes,
                "parts": [p.name for p in manifest.parts if piece in manifest.pieces_of(p)],
            }
            for piece in manifest.pieces
        },
        "parts": {
            part.name: {"bytes": part.bytes, "holds": sorted(part.holds)} for part in manifest.parts
        },
    }


def bare(folder: Path) -> Path:
    """A Python that has, of the packages here, only those that the machine has."""
    venv.EnvBuilder(symlinks=True, with_pip=False, clear=True).create(folder)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = folder / "lib" / version / "site-packages"
    here = {
        canonical(found.metadata["Name"]): found for found in importlib.metadata.distributions()
    }
    for name in seen(here):
        found = here[name]
        for top in {file.parts[0] for file in found.files or () if ".." not in file.parts}:
            source, link = Path(str(found.locate_file(top))), packages / top
            if top == "__pycache__" or not source.exists() or link.exists():
                continue
            link.symlink_to(source)
    return folder / "bin" / "python"


def seen(here: Mapping[str, importlib.metadata.Distribution]) -> set[str]:
    """Of the packages here, those that the machine has, and what these versions of them require.

    What the small kit brings is not among them, whoever requires it.
    """
    brought = {canonical(need.name) for part in SMALL for need in needs(part)}
    left = [canonical(name) for name in Machine.read().packages]
    found: set[str] = set()
    while left:
        name = left.pop()
        if name in found or name in brought or name not in here:
            continue
        found.add(name)
        lines = here[name].requires or ()
        left += [
            canonical(re.split(r"[^\w.-]", line)[0]) for line in lines if "extra ==" not in line
        ]
    return found


if __name__ == "__main__":
    sys.exit(main())
