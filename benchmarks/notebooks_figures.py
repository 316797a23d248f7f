"""How long a person with a notebook waits, and what a deleted run leaves in memory.

    python benchmarks/notebooks_figures.py [passes sign memory fresh sizes]

Every section is measured in real kernels and written to benchmarks/results/notebooks.json.

* passes: seconds of each notebook from top to bottom, and of the same again without a restart
* sign: seconds from the request to run a cell that imports grpo and trains to the first thing that
  the cell shows, each in a new kernel
* memory: resident memory after a run was trained, shown and deleted, beside that after the run
  before it; the first run only loads the libraries
* fresh: a new environment that has nothing but JupyterLab installs a wheel of the commit in a cell,
  trains, and draws a curve; JupyterLab's own installation is not counted. torch is the version of
  constraints.txt from where pip finds it; `torch` says which build that was
* sizes: kB of each committed notebook
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from notebooks import ROOT, environment, make, scripts
from record import merge, origin, versions

OUT = ROOT / "benchmarks" / "results" / "notebooks.json"
TRAIN = """\
import grpo
run = grpo.train(
    model="assets/parity-base",
    dataset=[{"prompt": f"{number:016b}=", "answer": "0"} for number in range(64)],
    rewards="accuracy", max_steps=5, num_generations=8, prompts_per_step=8,
    max_completion_length=32, dir="runs/figures", overwrite=True,
    eval={"num_tasks": 2, "num_samples": 2},
)
"""
RESIDENT = f"""\
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from ten_calls import resident
print("resident", resident())
"""
DELETED = "import matplotlib.pyplot\nmatplotlib.pyplot.close('all')\ndel run\n"


@contextmanager
def kernel(python: str, env: dict[str, str], work: Path) -> Iterator[BlockingKernelClient]:
    """A kernel of that interpreter in that folder."""
    manager = KernelManager(kernel_name="python3")
    spec = manager.kernel_spec
    assert spec is not None
    spec.argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel(env=env, cwd=str(work), stderr=subprocess.DEVNULL)
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@contextmanager
def here() -> Iterator[BlockingKernelClient]:
    """A kernel of this interpreter in a folder of its own."""
    with (
        tempfile.TemporaryDirectory() as top,
        kernel(sys.executable, environment(Path(top)), Path(top)) as client,
    ):
        yield client


def run(client: BlockingKernelClient, code: str) -> tuple[list[float], str, bool]:
    """Run a cell: seconds until each output, the printed text, and whether it drew a picture."""
    start = time.perf_counter()
    seen: list[tuple[float, dict[str, Any]]] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            seen.append((time.perf_counter() - start, message["content"]))

    reply = client.execute_interactive(code, output_hook=hook, timeout=900)
    if reply["content"]["status"] != "ok":
        raise SystemExit(f"a cell failed: {reply['content'].get('evalue')}\n{code}")
    text = "".join(content.get("text", "") for _, content in seen)
    drawn = any("image/png" in content.get("data", {}) for _, content in seen)
    return [seconds for seconds, _ in seen], text, drawn


def passes() -> dict[str, Any]:
    """Seconds of each notebook's first and second pass."""
    rows = {}
    for script in scripts([]):
        first, second = make(script, passes=2).seconds
        rows[script.stem] = {"first_pass": round(first, 1), "second_pass": round(second, 1)}
        print(script.stem, rows[script.stem], flush=True)
    return {"notebooks": rows}


def sign(times: int = 5) -> dict[str, Any]:
    """Seconds until a training cell shows something."""
    found = []
    for _ in range(times):
        with here() as client:
            found.append(round(run(client, TRAIN)[0][0], 3))
    return {"seconds": found, "median_seconds": statistics.median(found)}


def memory(times: int = 3) -> dict[str, Any]:
    """Resident MB after each of `times` runs was trained, shown and deleted."""
    found = []
    with here() as client:
        for _ in range(times):
            run(client, TRAIN + "run")
            run(client, "run.plot('reward')")
            run(client, DELETED)
            found.append(round(float(run(client, RESIDENT)[1].split("resident")[1]), 1))
    return {"resident_mb": found, "last_by_first": round(found[-1] / found[0], 4)}


def fresh() -> dict[str, Any]:
    """Seconds to the first curve where only JupyterLab is installed."""
    with tempfile.TemporaryDirectory(prefix="fresh-") as folder:
        top = Path(folder)
        pip = ["-m", "pip", "--disable-pip-version-check"]
        source = top / "source.tar.gz"
        subprocess.run(["git", "-C", ROOT, "archive", "-o", source, "HEAD"], check=True)
        wheel = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(top), str(source)]
        subprocess.run([sys.executable, *wheel], check=True)
        subprocess.run([sys.executable, "-m", "venv", str(top / "venv")], check=True)
        python = str(top / "venv" / "bin" / "python")
        subprocess.run([python, *pip, "install", "--quiet", "jupyterlab"], check=True)
        env = {**environment(top), "PYTHONPATH": ""}
        limits = f"-c {ROOT / 'grpo' / 'constraints.txt'}"
        start = time.perf_counter()
        with kernel(python, env, top) as client:
            run(client, f"%pip install --quiet {limits} {next(top.glob('*.whl'))}")
            installed = time.perf_counter() - start
            run(client, TRAIN)
            drawn = run(client, "run.plot('reward')")[2]
            seconds = time.perf_counter() - start
        assert drawn
        packages = top / "venv" / "lib"
        size = sum(file.stat().st_size for file in packages.rglob("*") if file.is_file())
        return {
            "seconds_to_install": round(installed, 1),
            "seconds_to_first_curve": round(seconds, 1),
            "packages_gb": round(size / 1e9, 2),
            "torch": versions(["torch"], python)["torch"],
        }


def sizes() -> dict[str, Any]:
    """kB of each committed notebook."""
    files = [script.with_suffix(".ipynb") for script in scripts([])]
    return {"kb": {file.stem: round(file.stat().st_size / 1000) for file in files}}


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "sizes": sizes,
    "sign": sign,
    "memory": memory,
    "fresh": fresh,
    "passes": passes,
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all of them")
    asked = parser.parse_args()
    packages = versions(["torch", "transformers", "ipykernel", "jupyterlab"])
    for name in asked.sections or SECTIONS:
        start = time.perf_counter()
        found = SECTIONS[name]()
        command = f"python benchmarks/notebooks_figures.py {name}"
        merge(OUT, name, found, origin(command, time.perf_counter() - start, packages))
        print(name, found, flush=True)


if __name__ == "__main__":
    main()
