"""Makes the notebooks of recipes/notebooks/ from their scripts, in a real kernel.

    python benchmarks/notebooks.py [01 04-coming-from-trl] [--small] [--twice]

A notebook is kept as a script in jupytext's percent format. Each one is run from top to bottom in a
kernel of its own, in a new empty folder, without network, with this tree's `grpo`. What it shows is
written beside the script as `NN-name.ipynb`, without times, paths or names of this machine.

* --small: the settings that the script's header has under `grpo: {small: …}` come after the cell
  tagged `parameters`; nothing is written. Without any notebook the exit code is 1
* --text: takes over text that was changed, and keeps the outputs of cells of code that were not
* --twice: every cell runs once more in the same kernel, as when a reader starts over
* --repository: writes the address of each notebook in Colab into the badge of its script first
* --folder: where the scripts lie
* --limit: seconds that a notebook may take for each pass
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "recipes" / "notebooks"
COLAB = "https://colab.research.google.com"
ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WHERE = "import importlib.util as found; print(found.find_spec('grpo').origin); del found"


class NotebookError(Exception):
    """A notebook that did not run, in a few lines."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A notebook with the outputs of its first pass, and the seconds of each pass."""

    notebook: nbformat.NotebookNode
    seconds: list[float]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="numbers or names; all of them")
    parser.add_argument("--small", action="store_true", help="small settings, nothing written")
    parser.add_argument("--text", action="store_true", help="changed text alone, nothing runs")
    parser.add_argument("--twice", action="store_true", help="again in the same kernel")
    parser.add_argument("--repository", metavar="OWNER/NAME", help="where the badges lead")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the scripts lie")
    parser.add_argument("--limit", type=float, help="seconds for each pass (600; small: 120)")
    asked = parser.parse_args()
    limit = asked.limit or (120 if asked.small else 600)
    wrong: list[str] = []
    try:
        chosen = scripts(asked.names, asked.folder)
    except NotebookError as error:
        sys.exit(f"notebooks: {error}")
    for script in chosen:
        try:
            if asked.repository:
                point_badge(script, asked.repository)
            if asked.text:
                take_over_text(script)
                continue
            made = make(script, small=asked.small, passes=1 + asked.twice, limit=limit)
        except NotebookError as error:
            wrong.append(script.stem)
            print(f"{script.stem}: {error}", file=sys.stderr, flush=True)
            continue
        size = "" if asked.small else f", {write(made.notebook, script) / 1000:.0f} kB"
        passes = " and again ".join(f"{seconds:.1f} s" for seconds in made.seconds)
        print(f"{script.stem}: {passes}{size}", flush=True)
    if wrong:
        sys.exit(f"notebooks: {len(wrong)} of {len(chosen)} did not run: {', '.join(wrong)}")
    print(f"{len(chosen)} notebooks {'have their text' if asked.text else 'ran'}")


def scripts(names: list[str], folder: Path = FOLDER) -> list[Path]:
    """The scripts that begin with one of `names`, all without any, in order."""
    found = sorted(folder.glob("[0-9][0-9]-*.py"))
    for name in names:
        if not any(script.name.startswith(name) for script in found):
            known = ", ".join(script.stem for script in found) or "none"
            raise NotebookError(f"{name!r} is no notebook of {folder.name}; there are: {known}")
    chosen = [s for s in found if not names or s.name.startswith(tuple(names))]
    if not chosen:
        raise NotebookError(f"no notebook in {folder}")
    return chosen


def read(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs; the same script gives the same bytes."""
    notebook = jupytext.read(script, fmt="py:percent")
    extra = {"grpo": notebook.metadata["grpo"]} if "grpo" in notebook.metadata else {}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}, **extra}
    )
    for number, cell in enumerate(notebook.cells, 1):
        cell["id"] = f"cell-{number:02d}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def inject_small(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same with its small settings in a cell after the one tagged `parameters`."""
    small: dict[str, Any] = notebook.metadata.get("grpo", {}).get("small", {})
    tagged = [
        number
        for number, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    ]
    if not small or len(tagged) != 1:
        raise NotebookError(
            f"has {len(tagged)} cells tagged `parameters` and the small settings {small}; "
            "a notebook has one cell and at least one setting"
        )
    source = "\n".join(f"{name} = {value!r}" for name, value in small.items())
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    cell["id"] = "small-settings"
    changed = copy.deepcopy(notebook)
    changed.cells.insert(tagged[0] + 1, cell)
    return changed


def make(script: Path, *, small: bool = False, passes: int = 1, limit: float = 600) -> Made:
    """Run a script's notebook `passes` times in one kernel; each pass has `limit` seconds."""
    notebook = inject_small(read(script)) if small else read(script)
    with tempfile.TemporaryDirectory(prefix="notebook-") as top:
        work = Path(top).resolve() / "work"
        work.mkdir()
        if (ROOT / "models").is_dir():  # a checkpoint that was made before is not made again
            (work / "models").symlink_to(ROOT / "models")
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
            extra_arguments=["--HistoryManager.enabled=False", "--IPKernelApp.log_level=40"],
            resources={"metadata": {"path": str(work)}},
        )
        with client.setup_kernel(env=environment(Path(top)), cwd=str(work)):
            check_tree(client)
            seconds = [run_cells(client, notebook, limit)]
            shown = copy.deepcopy(notebook)
            seconds += [run_cells(client, notebook, limit) for _ in range(passes - 1)]
        return Made(notebook=normalized(shown, work), seconds=seconds)


def environment(top: Path) -> dict[str, str]:
    """Variables of a kernel: this tree's code, no network, none of the user's IPython settings."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(top / "ipython"),
        "NO_COLOR": "1",
    }


def check_tree(client: NotebookClient) -> None:
    """Refuse a kernel whose `grpo` is another tree's."""
    client.nb.cells.append(nbformat.v4.new_code_cell(WHERE))
    client.execute_cell(client.nb.cells[-1], len(client.nb.cells) - 1, store_history=False)
    found = Path(client.nb.cells.pop().outputs[0]["text"].strip()).resolve()
    if found != ROOT / "grpo" / "__init__.py":
        raise NotebookError(f"the kernel would import {found}, not the code of {ROOT}")


def run_cells(client: NotebookClient, notebook: nbformat.NotebookNode, limit: float) -> float:
    """Run every cell once; seconds. The execution counts of a pass begin with 1."""
    start = time.monotonic()
    number = 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        number += 1
        left = limit - (time.monotonic() - start)
        client.timeout = max(1, int(left))
        try:
            client.execute_cell(cell, index, store_history=True)
        except CellTimeoutError:
            raise NotebookError(failure(cell, number, f"not done after {limit:g} s")) from None
        except DeadKernelError:
            raise NotebookError(failure(cell, number, "the kernel died")) from None
        except CellExecutionError as error:
            said = f"{error.ename}: {ANSI.sub('', error.evalue)}"
            raise NotebookError(failure(cell, number, said)) from None
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    return time.monotonic() - start


def failure(cell: nbformat.NotebookNode, number: int, said: str) -> str:
    """Which code cell, how it begins, and what happened, with the last lines it showed."""
    first = cell.source.strip().splitlines()[0]
    shown = [output.text for output in cell.get("outputs", []) if output.output_type == "stream"]
    traces = [
        "\n".join(output.traceback)
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    lines = ANSI.sub("", "\n".join([*shown, *traces])).splitlines()[-25:]
    return "\n    ".join([f"code cell {number}, `{first}`: {said}", *lines])


def normalized(notebook: nbformat.NotebookNode, work: Path) -> nbformat.NotebookNode:
    """Outputs as another machine has them: no folder of this one, no colors of a terminal."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            for key in ("text", "data", "traceback", "evalue"):
                if key in output:
                    output[key] = plain(output[key], work)
            output.pop("transient", None)
    notebook.metadata.pop("widgets", None)
    nbformat.validate(notebook)
    return notebook


def plain(value: Any, work: Path) -> Any:
    """Texts of an output without the working folder and without terminal colors."""
    if isinstance(value, dict):
        return nbformat.from_dict(
            {
                key: item if key.startswith(("image/png", "image/jpeg")) else plain(item, work)
                for key, item in value.items()
            }
        )
    if isinstance(value, list):
        return [plain(item, work) for item in value]
    if not isinstance(value, str):
        return value
    return ANSI.sub("", value).replace(f"{work}/", "").replace(str(work), ".")


def take_over_text(script: Path) -> None:
    """Write the script's text beside the outputs that are there. Raises NotebookError."""
    made, kept = read(script), nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    ran, new = ([c for c in one.cells if c.cell_type == "code"] for one in (kept, made))
    if [(c.source, c.metadata) for c in ran] != [(c.source, c.metadata) for c in new]:
        raise NotebookError("code has changed, not only text; run it")
    for before, after in zip(ran, new, strict=True):
        after.outputs, after.execution_count = before.outputs, before.execution_count
    write(made, script)


def write(notebook: nbformat.NotebookNode, script: Path) -> int:
    """Write the notebook beside its script; bytes."""
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    target = script.with_suffix(".ipynb")
    target.write_text(text, encoding="utf-8")
    return len(text.encode())


def point_badge(script: Path, repository: str) -> None:
    """Let the badge of a script lead to its notebook in Colab."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise NotebookError(f"--repository is {repository!r}; it is written owner/name")
    address = f"{COLAB}/github/{repository}/blob/main/recipes/notebooks/{script.stem}.ipynb"
    text = script.read_text(encoding="utf-8")
    pattern = rf"\]\({re.escape(COLAB)}/(?!assets/)[^)]*\)"
    pointed, found = re.subn(pattern, f"]({address})", text, count=1)
    if not found:
        raise NotebookError(f"has no badge that leads to {COLAB}/")
    script.write_text(pointed, encoding="utf-8")


if __name__ == "__main__":
    main()
