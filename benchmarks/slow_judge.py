"""Does a run end beside a judge that answers a byte every 0.3 seconds?

    python benchmarks/slow_judge.py [--completions 1000] [--timeout 0.5] [--concurrency 8]

Two measurements against such a judge on this machine, both by the clock: all completions scored in
one call, and a whole `grpo train` of the parity model whose second reward is the judge, all in its
first step. Both have to end near completions / concurrency * timeout (the run with its own start on
top), with every completion counted as unscored; the run says so, as nothing can be learned from a
first step without scores. Written to benchmarks/results/slow_judge.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from record import merge, origin, versions

from grpo.rewards.judge import Judge

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "slow_judge.json"
RECIPE = ROOT / "recipes" / "parity-r1-zero.yaml"
BYTE_SECONDS = 0.3
GENERATIONS = 8
_REPLY = b'{"choices": [{"message": {"content": "GRADE: 8"}}]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_REPLY), _REPLY)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--completions", type=int, default=1000)
    parser.add_argument("--timeout", type=float, default=0.5)
    parser.add_argument("--concurrency", type=int, default=8)
    asked = parser.parse_args()
    started = time.monotonic()
    with dripping() as url:
        settings = {
            "url": url,
            "model": "slow",
            "timeout": asked.timeout,
            "concurrency": asked.concurrency,
            "requests_per_minute": 1e6,
        }
        found = {
            "settings": {**vars(asked), "seconds_per_byte": BYTE_SECONDS},
            "expected_seconds": asked.completions / asked.concurrency * asked.timeout,
            "one_call": one_call(settings, asked.completions),
            "run": run(settings, asked.completions),
        }
    print(json.dumps(found, indent=1))
    command = f"python benchmarks/slow_judge.py {' '.join(sys.argv[1:])}".strip()
    seconds = time.monotonic() - started
    merge(OUT, "slow_judge", found, origin(command, seconds, versions(["torch", "httpcore"])))
    return 0


def one_call(settings: dict[str, Any], count: int) -> dict[str, Any]:
    """Seconds and statuses of one call of the reward."""
    judge = Judge(**settings)
    answers = [f"answer {i}" for i in range(count)]
    started = time.monotonic()
    scores = asyncio.run(judge.scores(prompts=["question"] * count, completions=answers))
    return {
        "seconds": round(time.monotonic() - started, 1),
        "statuses": Counter(score.status for score in scores),
        "details": Counter(score.detail for score in scores),
    }


def run(settings: dict[str, Any], count: int) -> dict[str, Any]:
    """The same of a whole run, and what it ends with."""
    with tempfile.TemporaryDirectory() as folder:
        rewards = [{"name": "accuracy"}, {"name": "judge", "args": settings}]
        command = [sys.executable, "-m", "grpo.cli", "train", str(RECIPE)]
        command += [f"run.dir={folder}/run", "learner.max_steps=1", "eval.num_tasks=1"]
        command += [f"rollout.prompts_per_step={count // GENERATIONS}"]
        command += [f"rollout.num_generations={GENERATIONS}", f"rewards={json.dumps(rewards)}"]
        started = time.monotonic()
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
    return {
        "seconds": round(seconds, 1),
        "exit_code": ended.returncode,
        "last_words": ended.stderr.strip().splitlines()[-1:],
    }


@contextmanager
def dripping() -> Iterator[str]:
    """A judge that sends a byte of its answer every `BYTE_SECONDS`; its address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            for byte in ANSWER:
                connection.sendall(bytes([byte]))
                if ended.wait(BYTE_SECONDS):
                    return

    def accept() -> None:
        with suppress(OSError):
            while not ended.is_set():
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        ended.set()
        listener.close()


if __name__ == "__main__":
    sys.exit(main())
