"""reasoning-gym's tasks, scored safely.

Nine of its scorers execute the answer they are given; those are written anew here. The others run
as they are, in the sandbox, one process an answer. Rows come from the source `reasoning_gym`, or
from anywhere with the columns `answer` and `metadata` (an object or its JSON text).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from grpo.rewards.extract import last_answer_block, last_box, split_thought
from grpo.rewards.math.exact import evaluate
from grpo.rewards.sandbox.sandbox import Limits
from grpo.rewards.sandbox.workers import Pool, WorkerDied, WorkerFault, WorkerTimeout
from grpo.rewards.symbolic import UnusableGold, is_antiderivative, same_formula
from grpo.rewards.verifier import VerifierReward
from grpo.types import Score, Task

Meta = Mapping[str, Any]


def _reaches(answer: str, numbers: Sequence[int], target: Any) -> bool:
    wanted = _of_row(lambda: Fraction(str(target)))
    found, used = evaluate(answer)
    return found == wanted and sorted(used) == sorted(numbers)


def _of_row(read: Callable[[], Any]) -> Any:
    """A value read from the row. Raises UnusableGold if that fails: no answer could be right."""
    try:
        return read()
    except (ValueError, ArithmeticError) as error:
        raise UnusableGold(str(error)) from error


def _grid(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines() if line.strip()]


def _integers(grid: Sequence[Sequence[Any]]) -> list[list[int]]:
    return [[int(str(cell).strip("[],")) for cell in row] for row in grid]


def _same_grid(answer: str, wanted: Sequence[Sequence[Any]]) -> bool:
    return _of_row(lambda: _integers(wanted)) == _integers(_grid(answer))


def _queens(answer: str, meta: Meta) -> bool:
    board, given = _grid(answer), meta["puzzle"]
    size = len(given)
    if [len(row) for row in board] != [size] * size:
        return False
    queens = [(i, j) for i in range(size) for j in range(size) if board[i][j] == "Q"]
    kept = all(
        board[i][j] in ("Q", "_") and (given[i][j] != "Q" or board[i][j] == "Q")
        for i in range(size)
        for j in range(size)
    )
    lines = [{i for i, _ in queens}, {j for _, j in queens}]
    lines += [{i - j for i, j in queens}, {i + j for i, j in queens}]
    return kept and all(len(line) == len(queens) == size for line in lines)


# data set -> whether an answer is right; ValueError: it is not even of the right kind
SCORERS: dict[str, Callable[[str, Meta], bool]] = {
    "countdown": lambda a, m: _reaches(a, m["numbers"], m["target"]),
    "puzzle24": lambda a, m: _reaches(a, m["numbers"], 24),
    "n_queens": _queens,
    "spiral_matrix": lambda a, m: _same_grid(a, [m["solution"]]),
    "binary_matrix": lambda a, m: _same_grid(a, m["solution"]),
    "string_insertion": lambda a, m: a.strip().strip("'\"") == m["solution"],
    "polynomial_multiplication": lambda a, m: same_formula(
        a, m["polynomial_expr"], list(m["variables"])
    ),
    "simple_integration": lambda a, m: is_antiderivative(a, m["integrand"], m["variable"]),
    "intermediate_integration": lambda a, m: is_antiderivative(a, m["integrand"], m["variable"]),
}


class ReasoningGym(VerifierReward):
    """reasoning-gym's score of the answer, in [0, 1]; `strict` pays only full marks.

    timeout: seconds for one answer. workers and sandbox: as in `code`. Scores below full marks are
    what reasoning-gym gives for a partly right or even an empty answer.
    """

    name = "reasoning_gym"
    needs = ("metadata",)

    def __init__(
        self, strict: bool = True, timeout: float = 10.0, workers: int = 0, sandbox: str = "auto"
    ) -> None:
        self.strict = strict
        self.judges = strict  # part of the marks is neither right nor wrong
        self.timeout = timeout
        self.pool = Pool(
            "gym",
            ("grpo.rewards.gym_guest",),
            tier=sandbox,
            limits=Limits(cpu=int(timeout) + 1),
            workers=workers,
            recycle=1,  # an answer may have been executed: what it left must not meet the next
        )

    def verify(self, completion: str, task: Task) -> Score:
        """A number when the answer was judged; None for metadata that cannot be used."""
        try:
            meta = _metadata(task.columns["metadata"])
            name = str(meta["source_dataset"])
        except (ValueError, KeyError, TypeError) as error:
            return Score(value=None, status="unparseable_gold", detail=f"metadata: {error}")
        _, text = split_thought(completion)
        answer = None if text is None else last_answer_block(text) or last_box(text)
        if answer is None or not answer.strip():
            return Score(value=0.0, status="unparseable_answer", detail="no answer block")
        if len(answer) > 1 << 16:
            return Score(value=0.0, status="limit", detail="the answer is too long")
        if name in SCORERS:
            return _judge(SCORERS[name], answer.strip(), meta)
        return self._theirs(name, answer.strip(), {"answer": task.answer, "metadata": dict(meta)})

    def _theirs(self, name: str, answer: str, entry: dict[str, Any]) -> Score:
        request = {"dataset": name, "answer": answer, "entry": entry}
        try:
            found = self.pool.call(request, self.timeout)
        except WorkerTimeout as error:
            detail = f"no score within {self.timeout} s"
            if not error.stage:
                return Score(value=None, status="grader_error", detail=f"worker: {detail}")
            return Score(value=0.0, status="timeout", detail=detail)
        except WorkerFault as error:
            return Score(value=None, status="grader_error", detail=str(error)[:200])
        except WorkerDied as error:
            if not error.stage:
                return Score(value=None, status="grader_error", detail=f"worker: {error}")
            return Score(value=0.0, status="limit", detail="out of memory or crashed the scorer")
        if "unreadable" in found:
            detail = str(found["unreadable"])[:200]
            return Score(value=0.0, status="unparseable_answer", detail=detail)
        marks = float(found["score"])
        if marks >= 1.0:
            return Score(value=1.0, status="correct", detail=name)
        if self.strict or marks <= 0.0:
            return Score(value=0.0, status="wrong", detail=f"{name}: {marks:.3g}")
        return Score(value=marks, status="scored", detail=name)


def _metadata(raw: Any) -> Meta:
    found = json.loads(raw) if isinstance(raw, str) else raw
    if not isinstance(found, Mapping):
        raise TypeError("not an object")
    return found  # pyright: ignore[reportUnknownVariableType]


def _judge(scorer: Callable[[str, Meta], bool], answer: str, meta: Meta) -> Score:
    try:
        right = scorer(answer, meta)
    except (UnusableGold, KeyError, TypeError, IndexError) as error:
        return Score(value=None, status="unparseable_gold", detail=f"metadata: {error!r}"[:200])
    except ValueError as error:
        return Score(value=0.0, status="unparseable_answer", detail=str(error)[:200])
    status = "correct" if right else "wrong"
    return Score(value=float(right), status=status, detail=repr(answer[:80]))
