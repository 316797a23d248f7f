"""Contenders in turns: a process each, all prepared, never two at work.

An idle worker waits for a line on a pipe. OpenMP's threads stop spinning a few milliseconds after
a parallel region unless OMP_WAIT_POLICY=active is set, which is why it is left unset.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perf.worker import COUNT

FOLDER = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How everything is measured.

    quick: tiny model, small shapes, one repetition; shows that the scripts run, nothing else.
    device: where everyone computes, "cpu" or "cuda".
    """

    repeats: int = 5
    threads: int = 2
    quick: bool = False
    model: str = ""
    vllm_python: str = ""
    device: str = "cpu"
    save: Callable[[dict[str, Any]], None] = lambda _part: None  # what a section has so far

    @property
    def dtype(self) -> str:
        """What everyone computes in."""
        return "float32" if self.quick else "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A script of perf/, its settings, and the interpreter it runs under.

    `repeats`: fewer than the others, for figures that are for orientation only.
    `folder`: where perf/ lies; another checkout's, for its own scripts.
    """

    name: str
    script: str
    settings: Mapping[str, Any]
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    repeats: int | None = None
    folder: Path = FOLDER


class Worker:
    """A contender's process; `ready` waits until it can be asked for repetitions.

    Whatever ends it is a RuntimeError, with the worker's own words where it had any.
    """

    def __init__(self, contender: Contender, plan: Plan) -> None:
        self.contender = contender
        settings = {
            "threads": plan.threads,
            "quick": plan.quick,
            "device": plan.device,
            **contender.settings,
        }
        self.process = subprocess.Popen(
            [contender.python, "-m", f"perf.{contender.script}", json.dumps(settings)],
            cwd=contender.folder,
            env=environment(plan) | dict(contender.env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ready(self) -> dict[str, Any]:
        """Everything is loaded and made."""
        return self._answer()

    def repeat(self) -> dict[str, Any]:
        """One repetition."""
        return self._ask("")

    def count(self) -> dict[str, Any] | None:
        """Synchronizations and copies of one more repetition; None on a CPU."""
        return self._ask(COUNT)["counts"]

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RuntimeError(f"{self.contender.name} ({self.contender.script}) ended with {code}")
        answer = json.loads(line)
        if "failed" in answer:
            raise RuntimeError(
                f"{self.contender.name} ({self.contender.script}): {answer['failed']}"
            )
        return answer

    def close(self) -> None:
        """End the process and its descendants."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


def environment(plan: Plan) -> dict[str, str]:
    """The same environment for everyone."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "LD_PRELOAD")}
    if plan.device == "cpu":
        kept["CUDA_VISIBLE_DEVICES"] = ""  # libraries would take a card they see
    return kept | {
        "OMP_NUM_THREADS": str(plan.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }


def contest(contenders: Sequence[Contender], plan: Plan) -> dict[str, dict[str, Any]]:
    """{name: what was measured} after one warm-up each and `plan.repeats` rounds.

    Who is measured once, and takes long, is not warmed up.
    Of every contender: `seconds` of each repetition, their `median`, the last repetition's other
    figures, and `peak_rss_gib` of the whole process, warm-up included.
    """
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        found: dict[str, list[dict[str, Any]]] = {}
        for contender in contenders:
            began = time.perf_counter()
            worker = Worker(contender, plan)
            stack.callback(worker.close)
            worker.ready()
            answer = worker.repeat()
            workers[contender.name] = worker
            if plan.repeats == 1 and not plan.quick and answer["seconds"] > LONG:
                found[contender.name] = [answer]
            print(
                f"   {contender.name}: warm after {time.perf_counter() - began:.0f} s", flush=True
            )
        for turn in range(plan.repeats):
            for name, worker in workers.items():
                limit = worker.contender.repeats or plan.repeats
                answers = found.setdefault(name, [])
                if len(answers) < limit:
                    answers.append(worker.repeat())
            times = ", ".join(f"{n} {r[-1]['seconds']:.2f} s" for n, r in found.items())
            print(f"   round {turn + 1} of {plan.repeats}: {times}", flush=True)
    return {name: summary(answers) for name, answers in found.items()}


def alone(contender: Contender, plan: Plan) -> dict[str, Any]:
    """One contender by itself, as in `contest`."""
    return contest([contender], plan)[contender.name]


LONG = 20.0  # seconds of a repetition beside which a warm-up is small


def trial(contender: Contender, plan: Plan) -> float | None:
    """Seconds of one repetition, warm unless it is a long one; None where it cannot run."""
    worker = Worker(contender, plan)
    try:
        worker.ready()
        seconds = float(worker.repeat()["seconds"])
        if seconds < LONG:
            seconds = float(worker.repeat()["seconds"])
    except RuntimeError as error:
        print(f"   {error}", flush=True)
        return None
    finally:
        worker.close()
    print(f"   trial {contender.name}: {seconds:.2f} s", flush=True)
    return seconds


def summary(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Repetitions as one record."""
    seconds = [float(answer["seconds"]) for answer in answers]
    return {
        **answers[-1],
        "seconds": [round(s, 4) for s in seconds],
        "median": round(statistics.median(seconds), 4),
    }
