"""The verifiers against their bars: accuracy on real data, attacks, hangs, throughput.

    python benchmarks/bench_rewards.py [--data FOLDER] [--out FILE.json]

FOLDER holds gsm8k/test.jsonl, math500/test.jsonl and humaneval/HumanEval.jsonl as published (MIT);
what is missing is left out and said so. Writes benchmarks/results/rewards.json and exits 1 if a bar
is missed. Two workers, cold caches, distinct pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from grpo.rewards.code.reward import Code
from grpo.rewards.math.reward import Math, gold_of
from grpo.rewards.sandbox.probe import reports
from grpo.types import Task

WORKERS = 2
HANGS = ["10^{10^{10}}", "99999999!", "(a+b+c+d+e)^{200}", "9^{9^{9^9}}", "(" * 500 + ")" * 500,
         r"\[" * 3000]  # fmt: skip
EQUAL = (
    "class Equal:\n"
    "    __eq__ = __le__ = __ge__ = __lt__ = __gt__ = lambda a, b: True\n"
    "    __ne__ = lambda a, b: False\n"
    "    __hash__ = lambda a: 1\n"
    "    __len__ = lambda a: 1\n"
    "    __abs__ = __round__ = lambda a, *b: a\n"
    "    __sub__ = __rsub__ = __add__ = lambda a, b: a\n"
    "def {}(*args, **kwargs): return Equal()\n"
)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, [] if it is not there."""
    if not path.is_file():
        print(f"left out: there is no {path}", file=sys.stderr)
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def wrapped(answer: str) -> str:
    return f"<think>t</think><answer>{answer}</answer>"


def tasks_of(golds: list[str]) -> list[Task]:
    return [Task(uid=str(i), prompt="", answer=gold) for i, gold in enumerate(golds)]


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def bench_math(folder: Path) -> dict[str, Any]:
    """Gold against itself, MATH-500 right and shuffled beside math-verify, integers per second."""
    found: dict[str, Any] = {}
    reward = Math(workers=WORKERS)
    try:
        if gsm := [row["answer"] for row in rows_of(folder / "gsm8k/test.jsonl")]:
            scores = reward.verify_all([wrapped(gold_of(gold)) for gold in gsm], tasks_of(gsm))
            found["gsm8k_gold"] = {"right": sum(s.value == 1.0 for s in scores), "of": len(gsm)}
        if rows := rows_of(folder / "math500/test.jsonl"):
            found |= bench_math500(reward, rows)
        count = 60_000
        golds = [str(17 * i + 5) for i in range(count)]
        said = [wrapped(str(17 * i + 5 + i % 2)) for i in range(count)]
        scores, seconds = timed(lambda: reward.verify_all(said, tasks_of(golds)))
        assert sum(s.value == 1.0 for s in scores) == count // 2
        found["integers_per_second"] = round(count / seconds)
    finally:
        reward.close()
    return found


def bench_math500(reward: Math, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Right: the solution's text. Shuffled: the next row's answer, boxed."""
    from math_verify import parse, verify

    golds = [row["answer"] for row in rows]
    shuffled = [rf"\boxed{{{golds[(i + 1) % len(golds)]}}}" for i in range(len(golds))]
    solutions = [row["solution"] for row in rows]
    reward.verify(r"\boxed{2x}", Task(uid="", prompt="", answer="x+x"))  # the workers are up
    scores, ours = timed(lambda: reward.verify_all(solutions + shuffled, tasks_of(golds + golds)))

    def theirs() -> list[bool]:
        return [
            verify(parse(f"${gold}$"), parse(text))
            for gold, text in zip(golds + golds, solutions + shuffled, strict=True)
        ]

    verdicts, seconds = timed(theirs)
    half = len(golds)
    return {
        "math500_solutions": {"right": sum(s.value == 1.0 for s in scores[:half]), "of": half},
        "math500_shuffled_accepted": sum(s.value == 1.0 for s in scores[half:]),
        "math500_pairs_per_second": round(2 * half / ours, 1),
        "math_verify": {
            "solutions": sum(verdicts[:half]),
            "shuffled_accepted": sum(verdicts[half:]),
            "pairs_per_second": round(2 * half / seconds, 1),
        },
    }


def bench_hangs(deadline: float = 1.0) -> dict[str, Any]:
    """The slowest answer to a hang from the main thread, a thread and asyncio."""
    reward = Math(workers=WORKERS, timeout=deadline)
    reward.verify(r"\boxed{2x}", Task(uid="", prompt="", answer="x+x"))
    slowest: dict[str, float] = {}
    values: Counter[str] = Counter()
    stalls: list[float] = []

    def one(place: str, index: int) -> None:
        # a different gold each time: nothing comes from the cache
        gold = Task(uid="", prompt="", answer=f"x+{index}{len(values)}{place}")
        score, seconds = timed(lambda: reward.verify(wrapped(HANGS[index]), gold))
        values[score.status] += 1
        slowest[place] = max(slowest.get(place, 0.0), seconds)

    def in_thread() -> None:
        for index in range(len(HANGS)):
            one("thread", index)

    async def in_loop() -> None:
        for index in range(len(HANGS)):
            work = asyncio.ensure_future(asyncio.to_thread(one, "asyncio", index))
            last = time.perf_counter()
            while not work.done():
                await asyncio.sleep(0.01)
                now = time.perf_counter()
                stalls.append(now - last)
                last = now
            await work

    try:
        for index in range(len(HANGS)):
            one("main", index)
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        asyncio.run(in_loop())
        after = reward.verify(wrapped("3x"), Task(uid="", prompt="", answer="x+x+x")).value
    finally:
        reward.close()
    return {
        "deadline": deadline,
        "slowest": {place: round(seconds, 3) for place, seconds in slowest.items()},
        "longest_loop_stall": round(max(stalls), 3),
        "statuses": dict(values),
        "still_right": after == 1.0,
        "gmpy2": _has("gmpy2"),
    }


def _has(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


def bench_code(folder: Path) -> dict[str, Any]:
    """HumanEval: canonical, always-equal, the neighbor's solution under this name, None."""
    rows = rows_of(folder / "humaneval/HumanEval.jsonl")
    if not rows:
        return {}
    tasks = [
        Task(
            uid=row["task_id"],
            prompt=row["prompt"],
            columns={
                "tests": {
                    "setup": row["prompt"],
                    "check": row["test"],
                    "entry_point": row["entry_point"],
                }
            },
        )
        for row in rows
    ]
    names = [row["entry_point"] for row in rows]
    whole = [row["prompt"] + row["canonical_solution"] for row in rows]
    programs = {
        "canonical": whole,
        "always_equal": [EQUAL.format(name) for name in names],
        "neighbor": [f"{whole[i - 1]}\n{name} = {names[i - 1]}\n" for i, name in enumerate(names)],
        "none": [f"def {name}(*args, **kwargs): return None" for name in names],
    }
    found: dict[str, Any] = {"of": len(rows)}
    reward = Code(workers=WORKERS)
    try:
        for kind, texts in programs.items():
            fenced = [f"```python\n{text}\n```" for text in texts]
            scores, seconds = timed(lambda fenced=fenced: reward.verify_all(fenced, tasks))
            found[kind] = sum(s.value == 1.0 for s in scores)
            found[f"{kind}_unscored"] = sum(s.value is None for s in scores)
            if kind == "canonical":
                found["problems_per_second"] = round(len(rows) / seconds, 1)
    finally:
        reward.close()
    return found


def bars(math: dict[str, Any], code: dict[str, Any], hangs: dict[str, Any]) -> dict[str, bool]:
    """Each bar that could be measured, and whether it was reached."""
    reached: dict[str, bool] = {
        "integers >= 20,000/s": math["integers_per_second"] >= 20_000,
        "hangs answered by deadline + 0.5 s": max(hangs["slowest"].values())
        <= hangs["deadline"] + 0.5,
        "event loop never stalls 0.5 s": hangs["longest_loop_stall"] < 0.5,
        "verifier works after hangs": hangs["still_right"],
    }
    if "gsm8k_gold" in math:
        reached["GSM8K gold accepts itself"] = math["gsm8k_gold"]["right"] == 1319
    if "math500_solutions" in math:
        reached["MATH-500 solutions >= 498"] = math["math500_solutions"]["right"] >= 498
        reached["faster than math-verify"] = (
            math["math500_pairs_per_second"] > math["math_verify"]["pairs_per_second"]
        )
    if code:
        reached |= {
            "HumanEval canonical 164": code["canonical"] == 164,
            "HumanEval always-equal 0": code["always_equal"] == 0,
            "HumanEval neighbor <= 2": code["neighbor"] <= 2,
            "HumanEval None 0": code["none"] == 0,
            "code >= 25 problems/s": code["problems_per_second"] >= 25,
        }
    return reached


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, default=Path(os.environ.get("GRPO_DATA", "data")))
    arguments.add_argument("--out", type=Path, default=Path("benchmarks/results/rewards.json"))
    given = arguments.parse_args()
    math, hangs, code = bench_math(given.data), bench_hangs(), bench_code(given.data)
    reached = bars(math, code, hangs)
    result = {
        "machine": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("math-verify", "sympy")},
        "workers": WORKERS,
        "sandbox": {report.tier: report.holds for report in reports()},
        "math": math,
        "hangs": hangs,
        "code": code,
        "bars": reached,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
