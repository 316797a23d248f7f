"""Workers that die or hang, a node that leaves, a server that is restarted: whole training runs.

Each run is `grpo train recipes/parity-r1-zero.yaml` in a process of its own; the fault is planted
from outside once ten steps are done, a moment into the eleventh. Afterwards the ledger must hold
every group of every step exactly once, and the held-out figures must be as good as ever. Sampling
noise is keyed by task and sample, so with the embedded engine the disturbed run must even equal the
undisturbed one, token for token.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from grpo.rundir import ledger

ROOT = Path(__file__).resolve().parent.parent
STEPS, AT = 40, 10
RAY = ["rollout.backend=ray", "rollout.workers=2", "run.threads=2"]
EVENTS = ("workers_replaced", "groups_reissued", "server_restarts", "requests_retried")


def measure() -> dict[str, Any]:
    """What each disturbed run came to, beside the undisturbed one. Finished runs are read."""
    quiet = run("undisturbed", RAY)
    expected = quiet["digest"]
    found = {
        "2 Ray workers, undisturbed": quiet,
        "worker killed (SIGKILL)": run("killed", RAY, lambda p: signal_worker(p, signal.SIGKILL)),
        "worker hung (SIGSTOP)": run(
            "hung", [*RAY, "ray.timeout=20"], lambda p: signal_worker(p, signal.SIGSTOP)
        ),
        "1 of 2 nodes removed": node_removed(),
        "server killed and restarted": server_restarted(),
    }
    for name, figures in found.items():
        if "server" not in name:
            figures["same tokens as undisturbed"] = figures["digest"] == expected
        del figures["digest"]
    return {"recipe": f"parity-r1-zero, {STEPS} steps, fault in step {AT + 1}", "runs": found}


def run(
    name: str,
    overrides: list[str],
    fault: Callable[[psutil.Process], None] | None = None,
) -> dict[str, Any]:
    """Train with `fault` planted in step AT + 1; what the run left behind."""
    folder = where(name)
    if (folder / "summary.json").exists():
        return figures(folder)
    command = [sys.executable, "-m", "grpo.cli", "train", "recipes/parity-r1-zero.yaml"]
    command += [f"run.dir={folder}", f"learner.max_steps={STEPS}", *overrides]
    process = psutil.Popen(command, cwd=ROOT)
    if fault is not None:
        planter = threading.Thread(target=plant, args=(folder, process, fault), daemon=True)
        planter.start()
    if process.wait():
        raise RuntimeError(f"{name}: the run ended with code {process.returncode}")
    return figures(folder)


def where(name: str) -> Path:
    """The folder of a run."""
    return Path(os.environ["GRPO_BENCH_RUNS"]) / f"failures-{name}"


def plant(folder: Path, process: psutil.Process, fault: Callable[[psutil.Process], None]) -> None:
    """Wait for AT steps, then a moment more, then do it."""
    log = folder / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < AT:
        time.sleep(0.02)
    time.sleep(0.15)
    fault(process)


def figures(folder: Path) -> dict[str, Any]:
    """Held-out figures, what happened, and whether every group was trained exactly once."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    once = True
    digest: list[Any] = []
    for step in range(1, STEPS + 1):
        rows = list(ledger.read(folder / "ledger", step))
        samples = Counter((r["task"], r["visit"], r["sample"]) for r in rows)
        once &= len(rows) == 256 and set(samples.values()) == {1}
        digest.append([(r["task"], r["sample"], r["segments"][0]["ids"]) for r in rows])
    events = {
        name: sum(value for line in lines for key, value in line.items() if key.endswith(name))
        for name in EVENTS
    }
    return {
        "greedy accuracy": [summary["before"]["greedy"], summary["after"]["greedy"]],
        "pass@1": [summary["before"]["pass1"], summary["after"]["pass1"]],
        "every group trained exactly once": once,
        "RL seconds": summary["seconds"],
        "events": {name: value for name, value in events.items() if value},
        "longest step (s)": round(max(line["step_time"] for line in lines), 1),
        "median step (s)": round(sorted(x["step_time"] for x in lines)[len(lines) // 2], 2),
        "digest": digest,
    }


def signal_worker(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to one of the run's Ray workers."""
    session = [p for p in process.children(recursive=True) if "ray::EngineHost" in _title(p)]
    # Ray's workers are children of the raylet, which may have left the process tree.
    workers = session or [p for p in psutil.process_iter() if "ray::EngineHost" in _title(p)]
    min(workers, key=lambda p: p.pid).send_signal(number)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def node_removed() -> dict[str, Any]:
    """Two nodes of a cluster on this machine with a worker each; one leaves."""
    if (where("node") / "summary.json").exists():
        return figures(where("node"))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    try:
        overrides = [*RAY, f"ray.address={cluster.address}", "ray.timeout=60"]
        return run("node", overrides, lambda _: cluster.remove_node(second, allow_graceful=False))
    finally:
        cluster.shutdown()


def server_restarted() -> dict[str, Any]:
    """`grpo serve` killed with its children, and started again on the same port."""
    if (where("server") / "summary.json").exists():
        return figures(where("server"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    servers = [serve(port)]
    try:

        def restart(_: psutil.Process) -> None:
            kill(servers[-1])
            servers.append(serve(port, wait=False))

        url = f"rollout.engine_args.url=http://127.0.0.1:{port}"
        return run("server", ["rollout.engine=server", url, "run.threads=1"], restart)
    finally:
        for server in servers:
            kill(server)


def serve(port: int, wait: bool = True) -> psutil.Process:
    """A vLLM server of the recipe's base model."""
    command = [sys.executable, "-m", "grpo.cli", "serve", "recipes/assets/parity-base"]
    command += ["--port", str(port), "--max-model-len", "64"]
    process = psutil.Popen(command, cwd=ROOT)
    while wait:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                break
        except OSError:
            if process.poll() is not None:
                raise RuntimeError("the server did not start") from None
            time.sleep(0.5)
    return process


def kill(process: psutil.Process) -> None:
    """SIGKILL for a process and all its descendants."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=20)
