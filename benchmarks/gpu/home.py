"""Takes home what was measured on another machine, as `run.sh results` has packed it."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import merge

from gpu.results import newest, so_far
from gpu.section import Setup
from grpo.errors import RunError

STATE, RESULTS, KIND = "state.tar.xz", "gpu.json", Path("state", "kind.json")


def take(out: Path, setup: Setup, results: Path, sections: Mapping[str, str]) -> list[str]:
    """Put the sections of a folder, {name: module}, into `results`; the names of those taken.

    A section that was cut counts with the steps it has. One that is not newer than that in
    `results` stays out. Raises RunError where the folder has no state, or figures of another kind.
    """
    if not (out / STATE).is_file():
        raise RunError(f"--take = {str(out)!r} has no {STATE}; name what `run.sh results` has left")
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(out / STATE) as packed:
            packed.extractall(scratch, filter="data")
        there = replace(setup, folder=Path(scratch) / "run")
        _of_this_kind(out, there)
        found = so_far(out / RESULTS, there, sections)
    here: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    taken = [name for name in found if newest(found[name]) > newest(here.get(name))]
    for name in taken:
        merge(results, name, found[name], found[name]["from"])
    return taken


def _of_this_kind(out: Path, setup: Setup) -> None:
    path = setup.folder / KIND
    if not path.exists():
        raise RunError(f"--take = {str(out)!r}: nothing was measured there")
    kind = json.loads(path.read_text())
    wanted = {"device": setup.device, "tiny": setup.tiny}
    if {name: kind[name] for name in wanted} != wanted:
        raise RunError(
            f"--take = {str(out)!r} has measurements of {kind}, and this call is for {wanted}; "
            "a rehearsal's figures are taken with --device cpu --tiny, into a folder of its own"
        )
