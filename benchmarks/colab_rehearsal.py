"""Does the first cell work on Colab's packages, and do the notebooks run on them?

    python benchmarks/colab_rehearsal.py [01 04] [--source wheel] [--folder DIR] [--full]

Makes an environment of Python 3.12 with the versions of Colab's GPU runtime, which are in
benchmarks/colab/requirements.txt. In it a kernel, that of Colab's ipykernel, runs the first cell as
a reader would: with `SOURCE` a wheel of this commit, and with `SOURCE` an address of a repository
that has it. Fails if a package that was there is another one afterwards, or is gone. Then each
notebook runs with its small settings. The results go to benchmarks/results/colab.json.

* --source: `wheel` or `address`; both
* --folder: where the environment is made, or lies since the last rehearsal; a temporary folder.
  It takes 6 GB
* --full: the notebooks with their full settings
* --python: an interpreter of Python 3.12
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from notebooks import ROOT, environment, inject_small, read, run_cells, scripts
from record import merge, origin, versions

OUT = ROOT / "benchmarks" / "results" / "colab.json"
LIST = ROOT / "benchmarks" / "colab" / "requirements.txt"
LIMIT = 900  # seconds that a cell or a notebook may take


def main() -> None:
    """Rehearse, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="numbers or names of notebooks; all of them")
    parser.add_argument("--source", choices=["wheel", "address"], action="append")
    parser.add_argument("--folder", type=Path, help="the environment; a temporary folder")
    parser.add_argument("--full", action="store_true", help="full settings")
    parser.add_argument("--python", default="python3.12", help="an interpreter of Python 3.12")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="colab-") as top:
        folder = asked.folder or Path(top) / "environment"
        python, seconds = colab(folder.resolve(), asked.python)
        print(f"Colab's packages: {seconds:.0f} s", flush=True)
        for source in asked.source or ["wheel", "address"]:
            start = time.perf_counter()
            work = Path(top) / source
            work.mkdir()
            found = rehearsed(python, work, source, scripts(asked.names), full=asked.full)
            found["settings"] = "full" if asked.full else "small"
            chosen = " ".join([*asked.names, "--source", source, *["--full"] * asked.full])
            packages = versions(["torch", "transformers", "trl", "ipykernel", "ipython"], python)
            command = f"python benchmarks/colab_rehearsal.py {chosen}"
            merge(OUT, source, found, origin(command, time.perf_counter() - start, packages))
            print(source, json.dumps(found, indent=1), flush=True)
            if found["replaced"]:
                sys.exit("colab_rehearsal: the first cell replaced packages of Colab")


def colab(folder: Path, python: str) -> tuple[str, float]:
    """The interpreter of an environment with Colab's packages and nothing else; seconds."""
    start = time.perf_counter()
    mark, made = folder / "made.json", str(folder / "bin" / "python")
    if mark.exists():
        later = sorted(set(listed(made)) - set(json.loads(mark.read_text())))
        if later:
            pip(made, "uninstall", "--yes", *later)
    else:
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        pip(made, "install", "--requirement", str(LIST))
        mark.write_text(json.dumps(listed(made)))
    if listed(made) != json.loads(mark.read_text()):
        sys.exit(f"colab_rehearsal: {folder} has not the packages it was made with; delete it")
    return made, time.perf_counter() - start


def rehearsed(
    python: str, work: Path, source: str, chosen: list[Path], *, full: bool
) -> dict[str, Any]:
    """The first cell and the notebooks in kernels of `python`; the first notebook installs."""
    where = {"wheel": wheel, "address": address}[source](work)
    before = listed(python)
    found: dict[str, Any] = {"notebooks": {}}
    for script in chosen:
        notebook = read(script) if full else inject_small(read(script))
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert 'SOURCE = ""' in first.source
        first.source = first.source.replace('SOURCE = ""', f"SOURCE = {where!r}")
        cell_seconds, said, seconds = played(python, work, notebook, first)
        if "first_cell" not in found:
            after = listed(python)
            found["first_cell"] = {"seconds": cell_seconds, "said": said}
            found["added"] = {name: after[name] for name in sorted(set(after) - set(before))}
            found["replaced"] = {
                name: [version, after.get(name, "")]
                for name, version in before.items()
                if after.get(name) != version
            }
        found["notebooks"][script.stem] = seconds
        print(f"{script.stem}: {seconds:.1f} s", flush=True)
    undo = [name for name in listed(python) if name not in before]
    pip(python, "uninstall", "--yes", *undo)
    return found


def played(
    python: str, work: Path, notebook: nbformat.NotebookNode, first: nbformat.NotebookNode
) -> tuple[float, list[str], float]:
    """Run the first cell, then all: seconds of the cell, its lines, seconds of all cells.

    The kernel is that of `python`, in an empty folder, and sees no tree of the toolkit.
    """
    manager = AsyncKernelManager(kernel_name="python3")
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    inside = {k: v for k, v in environment(work).items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    inside["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the kernel warns about its own debugger
    inside["PATH"] = f"{Path(python).parent}{os.pathsep}{inside['PATH']}"
    with tempfile.TemporaryDirectory(dir=work) as empty:
        client = NotebookClient(notebook, km=manager, timeout=LIMIT, coalesce_streams=True)
        client.owns_km = True  # so that it ends the kernel too
        with client.setup_kernel(env=inside, cwd=empty):
            start = time.perf_counter()
            client.execute_cell(first, notebook.cells.index(first))
            seconds = round(time.perf_counter() - start, 1)
            lines = [
                line
                for output in first.outputs
                if output.output_type == "stream"
                for line in output.text.splitlines()
            ]
            return seconds, lines, round(run_cells(client, notebook, LIMIT), 1)


def wheel(work: Path) -> str:
    """A wheel of the commit that is checked out."""
    archive = work / "source.tar.gz"
    subprocess.run(["git", "-C", ROOT, "archive", "-o", archive, "HEAD"], check=True)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(work), str(archive))
    return str(next(work.glob("*.whl")))


def address(work: Path) -> str:
    """An address of a repository, as pip reads it; on this machine instead of a server."""
    subprocess.run(["git", "clone", "--quiet", "--bare", ROOT, work / "repository.git"], check=True)
    return f"git+file://{work / 'repository.git'}"


def listed(python: str) -> dict[str, str]:
    """Name -> version of the packages of an interpreter, pip among them."""
    command = [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {package["name"]: package["version"] for package in json.loads(done.stdout)}


def pip(python: str, *arguments: str) -> None:
    """Run pip."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
