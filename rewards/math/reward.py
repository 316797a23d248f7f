r"""Math: is the final answer mathematically the gold one?

Text first, algebra last: extraction (as in `accuracy`), limits, then `latex.compare` without any
parser, and only for what is still open math-verify, in a confined worker that can be killed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Literal

from grpo.errors import PluginError, unknown_name
from grpo.rewards.extract import boxes, last_answer_block, last_number, split_thought
from grpo.rewards.math import hedges
from grpo.rewards.math.clauses import tokens, words_of
from grpo.rewards.math.exact import number
from grpo.rewards.math.latex import compare
from grpo.rewards.math.ruling import rule
from grpo.rewards.math.spelling import plain, respell, undress
from grpo.rewards.math.statement import conclusion, final_statement
from grpo.rewards.sandbox.sandbox import Limits
from grpo.rewards.sandbox.workers import Pool, WorkerDied, WorkerFault, WorkerTimeout
from grpo.rewards.verifier import VerifierReward
from grpo.types import Score, Task

MAX_LENGTH = 4096  # characters of an answer
MAX_NESTING = 64  # brackets
MAX_DIGITS = 2048  # of one number
MAX_BOXES = 32  # joined to one answer, the last ones
_INTEGER = re.compile(r"-?[0-9]{1,256}")
_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
# What may stand between boxes that are one answer: spacing and delimiters, commas, `and`, `or`, the
# name of the next value ("y =") and one word for what the last one counted ("\boxed{1} cats and").
_JOINER = re.compile(
    r"(?: ?[a-z]{3,12}(?= (?:and|or) ))?"
    r"(?:[\s$,;~}{&]|\\[,;:! ()\[\]]|\\q?quad(?![a-z])|\\(?:text|mathrm)\{|for part \([a-z]\)"
    r"|(?:and|or)(?![A-Za-z])|[A-Za-z](?:_\{?\w\}?)? ?=)*"
)
BOXES = ("join", "last", "zero")


def joined_boxes(
    text: str, policy: str, found: Sequence[tuple[int, int, str]] | None = None
) -> str | None:
    r"""The answer that the boxes of a text give, "" if it has none, None if the policy forbids.

    join: boxes of one sentence with nothing but commas, `and`, `or` or spacing between them are
    one answer (the same value twice counts once), else the last box counts. last: the last. zero:
    several different boxes are none. `found`: the text's boxes, where they are known already.
    """
    found = boxes(text) if found is None else found
    if not found:
        return ""
    contents = [content.strip() for _, _, content in found]
    if policy == "zero" and len(set(contents)) > 1:
        return None
    if len(contents) == 1:
        return contents[0]
    answer = [contents[-1]]
    if policy == "join":
        # no answer has more parts; a model that repeats itself writes a thousand boxes
        for index in range(len(found) - 1, max(0, len(found) - MAX_BOXES), -1):
            between = text[found[index - 1][1] : found[index][0]]
            if len(between) > 64 or not _JOINER.fullmatch(between):
                break
            answer.insert(0, contents[index - 1])
    distinct: list[str] = []
    for content in answer:
        if not any(compare(content, other) for other in distinct):
            distinct.append(content)
    return ", ".join(distinct)


def over_limit(text: str) -> str | None:
    """Why an answer is too large to be parsed, or None."""
    if len(text) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    depths = accumulate((char in "([{") - (char in ")]}") for char in text)
    if max(depths, default=0) > MAX_NESTING:
        return f"nested deeper than {MAX_NESTING}"
    return f"a number of more than {MAX_DIGITS} digits" if _LONG_NUMBER.search(text) else None


class _Failed(Exception):
    """The grader failed, whatever the answer was."""


@dataclass(eq=False)
class Math(VerifierReward):
    r"""1 if the final answer equals `answer`, else 0.

    extraction: "strict", or "lenient" to accept what the text calls its final answer, or its last
    number. boxes: what several boxes mean (see `joined_boxes`). tolerance: relative, and
    only where the gold is a decimal. timeout: seconds for one comparison. workers: processes (0:
    one a core). sandbox: as in `code`.
    """

    name = "math"

    extraction: Literal["strict", "lenient"] = "strict"
    boxes: Literal["join", "last", "zero"] = "join"
    tolerance: float = 1e-6
    timeout: float = 5.0
    memory_mb: int = 1024
    workers: int = 0
    sandbox: str = "auto"

    def __post_init__(self) -> None:
        if self.extraction not in ("strict", "lenient"):
            raise PluginError(f"math: extraction {self.extraction!r} is not strict or lenient")
        if self.boxes not in BOXES:
            raise PluginError(f"math: {unknown_name('boxes policy', self.boxes, BOXES)}")
        self.lenient = self.extraction == "lenient"
        self.pool = Pool(
            "math",
            ("numpy", "grpo.rewards.math.guest"),
            tier=self.sandbox,
            limits=Limits(cpu=3600, memory=self.memory_mb << 20),
            workers=self.workers,
        )
        self._algebra = lru_cache(maxsize=1 << 16)(self._ask)

    def answer_of(self, completion: str) -> str | None:
        """The final answer by the extraction and box policies, None if there is none."""
        _, text = split_thought(completion)
        if text is None:
            return last_number(completion) if self.lenient else None
        held = boxes(text)
        boxed = joined_boxes(text, self.boxes, held)
        if boxed is None or (boxed and _taken_back(text, *held[-1][:2])):
            return None
        found = boxed or conclusion(last_answer_block(text) or "")
        if not found and self.lenient:
            found = final_statement(text) or last_number(text) or ""
        return found or None

    def verify_all(self, completions: Sequence[str], tasks: Sequence[Task]) -> list[Score]:
        """Outcomes in order: what text decides at once, the rest `workers` at a time."""
        scores = [self._by_text(c, t) for c, t in zip(completions, tasks, strict=True)]
        pairs = [score for score in scores if not isinstance(score, Score)]
        found = iter(self.pool.map(self._by_algebra, pairs) if pairs else ())
        return [score if isinstance(score, Score) else next(found) for score in scores]

    def verify(self, completion: str, task: Task) -> Score:
        """correct, wrong, unparseable_answer, timeout, limit: a number; unparseable_gold,
        grader_error: None.
        """
        found = self._by_text(completion, task)
        return found if isinstance(found, Score) else self._by_algebra(found)

    def _by_text(self, completion: str, task: Task) -> Score | tuple[str, str]:
        gold = gold_of(task.answer)
        if not gold:
            return Score(value=None, status="unparseable_gold", detail="the gold answer is empty")
        answer = self.answer_of(completion)
        if answer is None:
            return Score(value=0.0, status="unparseable_answer", detail="no box or answer block")
        whole = _INTEGER.fullmatch(gold) is not None
        if not whole and number(gold) is None and (fault := over_limit(gold)):
            return Score(value=None, status="unparseable_gold", detail=f"gold: {fault}")
        if answer == gold:
            return _verdict(True, answer, gold)
        if whole and _INTEGER.fullmatch(answer):
            return _verdict(int(answer) == int(gold), answer, gold)
        if fault := over_limit(answer):
            return Score(value=0.0, status="limit", detail=f"answer: {fault}")
        answer, gold = respell(undress(answer)), respell(undress(gold))
        if fault := over_limit(answer):  # a sign's name is longer than the sign
            return Score(value=0.0, status="limit", detail=f"answer: {fault}")
        ruling = rule(answer, gold, lambda a, b: compare(a, b, self.tolerance))
        if ruling.why:
            detail = f"answer {answer[:80]!r}: {ruling.why}"
            return Score(value=0.0, status="unparseable_answer", detail=detail)
        return ruling.pair or _verdict(ruling.same, answer, gold)

    def _by_algebra(self, pair: tuple[str, str]) -> Score:
        try:
            return self._algebra(*pair)
        except _Failed as error:
            return Score(value=None, status="grader_error", detail=str(error)[:200])

    def _ask(self, answer: str, gold: str) -> Score:
        """The algebra's verdict. Raises _Failed without one: a failure is not remembered."""
        try:
            found = self.pool.call({"gold": gold, "answer": answer}, self.timeout)
        except WorkerTimeout as error:
            if not error.stage:
                return Score(value=None, status="unparseable_gold", detail="the gold took too long")
            detail = f"no verdict within {self.timeout} s"
            return Score(value=0.0, status="timeout", detail=detail)
        except WorkerFault as error:
            raise _Failed(f"worker: {error}") from error
        except WorkerDied as error:
            if not error.stage:
                raise _Failed(f"worker: {error}") from error
            return Score(value=0.0, status="limit", detail="out of memory or crashed the parser")
        if not found["gold"]:
            return Score(value=None, status="unparseable_gold", detail=f"gold {gold[:80]!r}")
        if not found["answer"]:
            return Score(value=0.0, status="unparseable_answer", detail=f"answer {answer[:80]!r}")
        return _verdict(found["same"], answer, gold)


def _taken_back(text: str, start: int, end: int) -> bool:
    r"""Whether the words around a box deny it: "it is not \boxed{5}", "\boxed{5}?"."""
    before = text[max(0, start - 80) : start].rstrip(" $({[\\:")
    if before.endswith(("\\neq", "\\ne", "\u2260")):
        return True
    said = [token for token in tokens(plain(before)) if token.kind != "comma"]
    words = words_of(said[-2:])
    if said and said[-1].kind == "word" and hedges.disowned(words):
        return True
    return text[end : end + 8].lstrip(" $})\\*").startswith(("?", "\uff1f"))


def gold_of(answer: str | None) -> str:
    r"""The gold answer in a data set's field: after GSM8K's ####, else the last box, else
    the sentence that states it, else all.
    """
    if not answer:
        return ""
    if "####" in answer:
        return answer.rpartition("####")[2].strip()
    everything = boxes(answer) if "\\boxed" in answer else []
    if found := joined_boxes(answer, "join", everything):
        outside = [answer[a[1] : b[0]] for a, b in pairwise(everything)]
        if not any(c.isalnum() for text in outside for c in text):  # nothing but boxes: all of them
            return ", ".join(content.strip() for _, _, content in everything)
        return found
    return conclusion(answer) if "inal answer" in answer else answer.strip()


def _verdict(same: bool, answer: str, gold: str) -> Score:
    detail = f"{answer[:80]!r} {'==' if same else '!='} {gold[:80]!r}"
    return Score(value=float(same), status="correct" if same else "wrong", detail=detail)
