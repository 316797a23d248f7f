"""Code: run a completion's program against tests, where neither can touch the host or the other.

The row's `tests` column is one of
    {"asserts": ["assert f(1) == 2", …], "setup": "…"}                          MBPP
    {"check": "def check(candidate): …", "entry_point": "f", "setup": "…"}      HumanEval
    {"functional": "def check(candidate): …\\n\\ncheck(Solution().method)"}       LeetCode
    {"stdio": [{"input": "…", "output": "…"}, …]}                               Codeforces
as an object or as its JSON text. `setup` comes from the row and never from the candidate. What does
come from the candidate is said by `entry_point`, by `defines` (what the reference solution
defines: ["f", "class Node"]), by the column with that solution, or by the tests (`names`).
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from grpo.rewards.code import readings
from grpo.rewards.code.fences import asked_names, program_of
from grpo.rewards.code.stdio import START, ProgramRun, run_program, same_output
from grpo.rewards.sandbox import wire
from grpo.rewards.sandbox.sandbox import LOST, PRELOAD, Guest, Limits, Sandbox
from grpo.rewards.sandbox.workers import Pool
from grpo.rewards.verifier import VerifierReward
from grpo.types import Score, Status, Task

# Columns that may hold a right program; the first that does tells what the tests mean by its names.
REFERENCES = ("canonical_solution", "solution", "code")


class BadTests(Exception):
    """A `tests` column that cannot be run."""


def read_tests(raw: Any) -> dict[str, Any]:
    """A `tests` column as {"stdio": …} or {"setup", "parts", "entry"}. Raises BadTests."""
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadTests(f"tests is not JSON ({error})") from error
    if not isinstance(raw, Mapping):
        raise BadTests("tests must be an object")
    # A data set's columnar storage fills keys that a row lacks with None.
    tests = {k: v for k, v in cast("Mapping[str, Any]", raw).items() if v is not None}
    entry = tests.get("entry_point")
    defines: Any = tests.get("defines")
    if defines is not None and not (
        isinstance(defines, list) and all(isinstance(n, str) for n in cast("list[Any]", defines))
    ):
        raise BadTests("defines must be a list of names")
    setup = str(tests.get("setup", ""))
    common: dict[str, Any] = {"setup": setup, "entry": entry, "defines": defines}
    match tests:
        case {"stdio": [_, *_] as cases}:
            for case in cast("list[Any]", cases):
                pair = cast("dict[str, Any]", case) if isinstance(case, dict) else {}
                ends = (pair.get("input"), pair.get("output"))
                if not all(isinstance(end, str | int | float) for end in ends):
                    raise BadTests("each stdio test needs input and output, both text")
                if any("\ud800" <= letter <= "\udfff" for end in ends for letter in str(end)):
                    raise BadTests("a stdio test holds half a character, which cannot be written")
            return {"stdio": cases}
        case {"asserts": [_, *_] as asserts}:
            return common | {"parts": [str(line) for line in cast("list[Any]", asserts)]}
        case {"check": str(check)} if isinstance(entry, str):
            return common | {"parts": [f"{check}\ncheck({entry})"]}
        case {"functional": str(functional)} if functional.strip():
            return common | {"entry": None, "parts": [functional]}
        case _:
            raise BadTests(
                "tests must hold stdio, asserts, check with entry_point, or functional; it holds "
                + (", ".join(sorted(map(str, tests))) or "nothing")
            )


class _SandboxLost(Exception):
    """The sandbox ended while it ran a program. `score` is what that would mean."""

    def __init__(self, score: Score) -> None:
        super().__init__(score.detail)
        self.score = score


@dataclass(eq=False)
class Code(VerifierReward):
    """1 if the program passes the row's `tests`, else 0; the passed share if `partial`.

    timeout: seconds of wall time for one program (each stdio test has its own). memory_mb: of
    address space. tolerance: of numbers in stdio output. workers: programs run at once (0: one a
    core). sandbox: "auto", a tier of `grpo doctor`, or "unsafe".
    """

    name = "code"
    needs = ("tests",)

    partial: bool = False
    timeout: float = 10.0
    memory_mb: int = 1024
    tolerance: float | None = None
    workers: int = 0
    sandbox: str = "auto"

    def __post_init__(self) -> None:
        self.judges = not self.partial  # part of the tests is neither right nor wrong
        self.limits = Limits(cpu=max(1, int(self.timeout) + 1), memory=self.memory_mb << 20)
        self.pool = Pool(
            "code",
            (*PRELOAD, "grpo.rewards.code.guest"),
            tier=self.sandbox,
            limits=self.limits,
            workers=self.workers,
        )

    def verify_all(self, completions: Sequence[str], tasks: Sequence[Task]) -> list[Score]:
        """Outcomes in order, `workers` programs at a time."""
        self.pool.sandbox()  # where none holds, it is looked for once and not for every program
        return super().verify_all(completions, tasks)

    def close(self) -> None:
        """End the sandbox with the programs that run in it; a later call starts another."""
        self.pool.close(at_once=True)

    def verify(self, completion: str, task: Task) -> Score:
        """A number when the program was judged, None for bad tests or a failing grader.

        Whatever fails once the program has been started counts as the program's doing: it is
        wrong and never unscored. Raises RewardError where no sandbox holds.
        """
        try:
            tests = read_tests(task.columns.get("tests"))
        except BadTests as error:
            return Score(value=None, status="unparseable_gold", detail=str(error))
        code = program_of(
            completion, lambda: asked_names(tests.get("entry"), tests.get("parts", ()))
        )
        if code is None:
            return Score(value=0.0, status="unparseable_answer", detail="no code block")
        sandbox = self.pool.sandbox()
        tests["reference"] = _reference(task.columns)
        try:
            return self._judge(sandbox, code, tests)
        except _SandboxLost:
            # With it went the programs that ran beside the one that may have ended it. Alone to
            # blame is a program that loses it again.
            try:
                return self._judge(sandbox, code, tests)
            except _SandboxLost as lost:
                return lost.score

    def _judge(self, sandbox: Sandbox, code: str, tests: dict[str, Any]) -> Score:
        if "stdio" not in tests:
            return self._judge_functions(sandbox, code, tests)
        cases: Sequence[Any] = tests["stdio"]
        best, first = self._judge_stdio(sandbox, code, cases)
        if best.value == 1.0 or best.value is None or first is None:
            return best
        others: list[Score] = []
        if lines := readings.as_lines(cases):
            others.append(self._judge_stdio(sandbox, code, lines)[0])
        elif not first.fault and not first.output.strip():  # it only defines something
            for calls in readings.as_calls(cases):
                others.append(self._judge_calls(sandbox, code, calls | {"reference": None}))
                if others[-1].value == 1.0:
                    break
        return max([best, *others], key=lambda score: score.value or 0.0)

    def _judge_functions(self, sandbox: Sandbox, code: str, tests: dict[str, Any]) -> Score:
        """The outcome: without a value only where the row's own solution, if any, has none."""
        score = self._judge_calls(sandbox, code, tests)
        reference: str | None = tests["reference"]
        if score.status != "unparseable_gold" or reference is None:
            return score
        if self._judge_calls(sandbox, reference, tests).value == 1.0:
            return Score(value=0.0, status="wrong", detail=score.detail)
        return score

    def _judge_calls(self, sandbox: Sandbox, code: str, tests: dict[str, Any]) -> Score:
        verdict, verdict_end = socket.socketpair()
        to_candidate, to_tests = socket.socketpair()  # joins the two guests
        guests: list[Guest] = []
        heard: dict[str, Any] = {}  # what the tests said on their way to a verdict
        try:
            guests.append(sandbox.fork("candidate", self.limits, [to_candidate]))
            to_tests.settimeout(START)
            given = {"code": code, "setup": tests["setup"], "entry": tests["entry"]}
            try:
                wire.send(to_tests, given)
            except wire.WireError as error:
                return Score(value=0.0, status="limit", detail=f"the program: {error}")
            to_tests.setblocking(True)
            guests.append(sandbox.fork("tests", self.limits, [verdict_end, to_tests], verdict))
            wire.send(verdict, tests | {"partial": self.partial})
            deadline = time.monotonic() + START
            while True:
                found = wire.receive(verdict, deadline)
                if "started" in found:  # the program's time begins
                    deadline = time.monotonic() + self.timeout
                elif "so_far" not in found:
                    return self._score(found, guests[0])
                heard |= found
        except (EOFError, OSError, wire.WireError) as error:
            score = self._without_verdict(error, heard, guests)
            if any(guest.end() == LOST for guest in guests):
                raise _SandboxLost(score) from error
            return score
        finally:
            for guest in guests:
                guest.end()
            for channel in (verdict, verdict_end, to_candidate, to_tests):
                channel.close()

    def _without_verdict(
        self, error: Exception, heard: dict[str, Any], guests: Sequence[Guest]
    ) -> Score:
        """The outcome when the tests' process gave none in time, or none at all."""
        late = isinstance(error, TimeoutError)
        if "started" not in heard:
            detail = f"the sandbox ended before the program was started ({type(error).__name__})"
            detail = f"no program was started within {START} s" if late else detail
            return Score(value=None, status="grader_error", detail=detail)
        if not late and any(_out_of_time(guest.end()) for guest in guests):
            late, detail = True, "out of processor time"
        elif late:
            detail = f"no verdict within {self.timeout} s"
        else:
            detail = "the tests' process ended, or was ended, without a verdict"
        if self.partial and heard.get("passed"):
            share = heard["passed"] / heard["total"]
            counts = f"{heard['passed']}/{heard['total']}"
            return Score(value=share, status="scored", detail=f"{counts} {detail}")
        return Score(value=0.0, status="timeout" if late else "wrong", detail=detail)

    def _score(self, found: Any, candidate: Guest) -> Score:
        if "unconfined" in found:
            return Score(value=None, status="grader_error", detail=str(found["unconfined"]))
        if "broken" in found:
            return Score(value=None, status="unparseable_gold", detail=str(found["broken"])[:200])
        passed, total = int(found["passed"]), int(found["total"])
        detail = f"{passed}/{total} {found['detail']}"[:200].strip()
        if passed == total:
            return Score(value=1.0, status="correct", detail=detail)
        if self.partial and passed:
            return Score(value=passed / total, status="scored", detail=detail)
        if str(found["detail"]).startswith("MemoryError"):
            return Score(value=0.0, status="limit", detail=detail)
        late = _out_of_time(candidate.poll() or 0)
        status: Status = "timeout" if late else "wrong"
        return Score(value=0.0, status=status, detail=detail)

    def _judge_stdio(
        self, sandbox: Sandbox, code: str, cases: Sequence[Any]
    ) -> tuple[Score, ProgramRun | None]:
        """The outcome, and the first run that was not right."""
        passed = 0
        first: ProgramRun | None = None
        for case in cases:
            expected = str(case["output"])
            most = max(1 << 16, 4 * len(expected))
            run = run_program(sandbox, self.limits, code, str(case["input"]), self.timeout, most)
            if run.status == "grader_error" or run.lost:
                value = None if run.status == "grader_error" else 0.0
                score = Score(value=value, status=run.status, detail=run.fault)
                if run.lost:
                    raise _SandboxLost(score)
                return score, run
            if not run.fault and same_output(run.output, expected, self.tolerance):
                passed += 1
                continue
            first = first or run
            if not self.partial:
                break
        detail = f"{passed}/{len(cases)}"
        if first is None:
            return Score(value=1.0, status="correct", detail=detail), None
        detail += f" {first.fault or 'wrong output ' + repr(first.output[:80])}"
        if self.partial and passed:
            return Score(value=passed / len(cases), status="scored", detail=detail), first
        return Score(value=0.0, status=first.status, detail=detail), first


def _reference(columns: Mapping[str, Any]) -> str | None:
    """The row's own solution, None if it has none."""
    texts = (columns.get(name) for name in REFERENCES)
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


def _out_of_time(status: int) -> bool:
    return status & 0x7F == signal.SIGXCPU
