"""Rejection sampling against planted completions: all bad ones go, every good one stays.

    python benchmarks/bench_reject.py            # writes benchmarks/results/reject.json

Each task gets 16 scripted completions: good ones of several kinds, some close to a limit, and one
or two of every kind that a filter is for. Planted prompts leak an evaluation set or repeat another
prompt. The stage runs from a recipe, as it would with a model; then it is killed with SIGKILL at
a shard's boundary, inside a shard and after the last one, resumed, and its bytes compared.

The module is also what the recipe's engine and reward are (`bench_reject.py:engine`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.outside.terminal.console import Console
from grpo.rewards.accuracy import Accuracy
from grpo.rollout.fake import FakeEngine
from grpo.rundir.provenance import content_hash
from grpo.stages.from_scratch import build_tokenizer, save_tokenizer
from grpo.types import Completion, EngineSpec, Request, Score, Task, Version

RESULT = Path(__file__).parent / "results" / "reject.json"
PER_TASK, PER_SHARD, MAX_TOKENS, MAX_PARAGRAPH = 16, 8, 1500, 400
PREFILL = "<think>\n"
FIRST = Version(step=0, hash="planted")
WORDING = "Read the following problem with care, think step by step, and then give one number: "
NAMES, THINGS, VERBS, RUSSIAN, FILLER = map(
    str.split,
    (
        "Anna Boris Clara David Elena Frank Greta Henry Irene Jonas Karla Louis",
        "apples books coins drums eggs forks grapes hats icons jars kites lamps",
        "buys finds sells wins loses keeps packs draws counts holds brings takes",
        "теперь складываем первое число второе проверяем ответ ещё раз",
        "first then next after before while since because perhaps clearly now again we you they "
        "write move carry split join compare total sum part whole side small large left right "
        "simple careful second third line step value number result idea plan way case point reason "
        "check equal",
    ),
)
KILLS = {
    "at a shard's boundary": "submit 2",
    "inside a shard": "poll 25",
    "after the last": "close 0",
}
QUIET = Console(quiet=True)
MARKS = r"$\alpha_1 + \beta = 7$ `x = y + 1` \(\frac{1}{2}\) https://example.org/x"
BROKEN = "the scale is broken"
CHINESE = "我们先把两个数字加起来然后再检查一次答案"


# What the recipe names


class PlantedEngine(FakeEngine):
    """Plays `script.json`; ends the process where the file `kill` in its folder says.

    "submit 2" is at the third shard's start, "poll 20" inside a shard, "close 0" after the last.
    """

    def __init__(self, folder: str, tokenizer: Any) -> None:
        script: dict[str, list[str]] = json.loads(Path(folder, "script.json").read_text())

        def play(request: Request, index: int) -> str:
            return script[tokenizer.decode(request.ids).removesuffix(PREFILL)][index]

        super().__init__(play, tokenizer, version=FIRST, batch=8)
        self.kill = Path(folder, "kill")
        self.calls: Counter[str] = Counter()

    def submit(self, requests: Sequence[Request]) -> None:
        """As FakeEngine, or the end."""
        self._called("submit")
        super().submit(requests)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """As FakeEngine, or the end."""
        self._called("poll")
        return super().poll(timeout)

    def close(self) -> None:
        """As FakeEngine, or the end."""
        self._called("close")
        super().close()

    def _called(self, name: str) -> None:
        if self.kill.is_file() and self.kill.read_text() == f"{name} {self.calls[name]}":
            self.kill.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls[name] += 1


def engine(*, spec: EngineSpec, folder: str) -> PlantedEngine:
    """The engine of the recipe."""
    return PlantedEngine(folder, AutoTokenizer.from_pretrained(spec.model))


class Grader(Accuracy):
    """Accuracy with a fault: it has no verdict on completions that mention a broken scale."""

    def verify(self, completion: str, task: Task) -> Score:
        """As Accuracy."""
        if BROKEN in completion:
            return Score(value=None, status="grader_error", detail="planted")
        return super().verify(completion, task)


# What is planted


class Writer:
    """Seeded text: problems and thoughts in which no run of words comes about twice by chance."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def problem(self) -> tuple[str, int]:
        """A prompt and its answer."""
        rng = self.rng
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        one, other, thing = rng.choice(NAMES), rng.choice(NAMES), rng.choice(THINGS)
        told = " ".join(rng.sample(FILLER, 8))
        text = f"{one} {rng.choice(VERBS)} {a} {thing} and {told}; {other} {rng.choice(VERBS)} {b}."
        return f"{WORDING}{text} How many {thing}?", a + b

    def words(self, count: int) -> list[str]:
        """Words of which no eight in a row come again."""
        return [self.rng.choice(FILLER) for _ in range(count)]

    def thought(self, count: int = 40) -> str:
        """English in paragraphs far below the limit."""
        words = self.words(count)
        return "\n\n".join(" ".join(words[i : i + 20]) + "." for i in range(0, count, 20))


def said(thought: str, answer: int) -> str:
    """A completion after the prefill."""
    return f"{thought}\n</think>\n<answer>{answer}</answer>"


def good_ones(w: Writer, prompt: str, leaks: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, thought) that have to be kept; most lie just inside a limit."""
    near = w.rng.choice(leaks).split()
    start = w.rng.randrange(len(near) - 9)
    nine = " ".join(near[start : start + 9])
    once = " ".join(w.words(12))
    edge = " ".join(w.words(120))[: MAX_PARAGRAPH - 1].strip() + "."
    return [
        ("plain", w.thought(80)),
        ("restates the prompt", f"{prompt}\n\n{w.thought(20)}"),
        ("formulas, inline code, address", f"{MARKS}\n\n{w.thought(20)}"),
        ("nine words of an evaluation task", f"{nine} zebra.\n\n{w.thought(20)}"),
        ("a phrase twice", f"{once}.\n\n{w.thought(60)}\n\n{once}."),
        ("paragraph at the limit", f"{edge}\n\n{w.thought(20)}"),
        ("one foreign word in 81", f"{RUSSIAN[0]} {w.thought(80)}"),
    ]


def bad_ones(w: Writer, answer: int, leaks: Sequence[str]) -> list[tuple[str, str]]:
    """(reason, completion) that have to go, each by that reason."""
    leak = w.rng.choice(leaks).split()
    start = w.rng.randrange(len(leak) - 10)
    stolen = " ".join(leak[start : start + 10]).upper().replace(" ", ", ")
    loop = " ".join(w.words(10)) + ". "
    mixed = [*w.words(30), *RUSSIAN[:6]]
    w.rng.shuffle(mixed)
    return [
        ("wrong", said(w.thought(), answer + w.rng.randint(1, 9))),
        ("truncated", said(w.thought(400), answer)),
        ("unscored", said(f"{BROKEN} {w.thought()}", answer)),
        ("language", said(" ".join(mixed), answer)),
        ("language", said(f"{w.thought(20)} {CHINESE}", answer)),
        ("repetition", said(f"{w.thought(20)}\n\n{loop * 6}", answer)),
        ("paragraph", said(" ".join(w.words(120)), answer)),
        ("code", said(f"{w.thought(20)}\n```python\nprint(7)\n```\n{w.thought(20)}", answer)),
        ("contaminated", said(f"{w.thought(20)} {stolen} {w.thought(20)}", answer)),
    ]


def texts_for(
    w: Writer, number: int, prompt: str, answer: int, leaks: Sequence[str]
) -> list[tuple[str, str]]:
    """(kind, completion) of all samples of a task; of ten tasks one is too easy, one too hard."""
    if number % 10 == 8:
        return [("pass_rate", said(w.thought(), answer)) for _ in range(PER_TASK)]
    if number % 10 == 9:
        wrong = [("wrong", said(w.thought(), answer + 1)) for _ in range(PER_TASK - 1)]
        return [*wrong, ("pass_rate", said(w.thought(), answer))]
    texts = bad_ones(w, answer, leaks)
    good = w.rng.sample(good_ones(w, prompt, leaks), PER_TASK - 2 - len(texts))
    thought = w.thought()
    texts += [("good: plain", said(thought, answer))]
    texts += [(f"good: {kind}", said(text, answer)) for kind, text in good]
    w.rng.shuffle(texts)
    # Last, as the first of two that are the same is kept.
    return [*texts, ("duplicate", said(thought.upper().replace(" ", "  "), answer))]


def plant(folder: Path, seed: int, num_tasks: int) -> dict[str, Any]:
    """Tasks, evaluation set, script and tokenizer in `folder`; what has to come of them.

    `good` maps (prompt in small letters, completion) to its kind, `planted` counts completions by
    kind or reason, `passed` tasks by the reason that nothing may be sampled for them.
    """
    w = Writer(seed)
    evaluation = [w.problem() for _ in range(25)]
    solutions = [" ".join(w.words(30)) for _ in evaluation]
    leaks = [prompt.removeprefix(WORDING) for prompt, _ in evaluation] + solutions
    tasks = [w.problem() for _ in range(num_tasks)]
    good: dict[tuple[str, str], str] = {}
    planted: Counter[str] = Counter()
    script: dict[str, list[str]] = {}
    for number, (prompt, answer) in enumerate(tasks):
        texts = texts_for(w, number, prompt, answer, leaks)
        script[prompt] = [text for _, text in texts]
        planted.update(kind for kind, _ in texts)
        good |= {(prompt.lower(), PREFILL + t): k for k, t in texts if k.startswith("good")}
    passed = Counter(contaminated=4, duplicate=3, overlong=2)
    extra = [(evaluation[0][0], evaluation[0][1]), (evaluation[1][0].upper() + "!", 1)]
    extra += [(f"{w.thought(20)} {leak}", 1) for leak in (leaks[2], leaks[-1])]
    extra += [(tasks[i][0].upper(), tasks[i][1]) for i in range(3)]
    extra += [(f"{w.thought(300)} How many?", 1) for _ in range(2)]
    rows = [{"prompt": prompt, "answer": str(answer)} for prompt, answer in tasks + extra]
    # A repeated prompt is passed over wherever the order has it, so both must play the same.
    script |= {prompt: script[tasks[i][0]] for i, (prompt, _) in enumerate(extra[4:7])}
    w.rng.shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    _lines(folder / "tasks.jsonl", rows)
    held = [
        {"question": prompt, "answer": str(answer), "solution": solution}
        for (prompt, answer), solution in zip(evaluation, solutions, strict=True)
    ]
    _lines(folder / "evaluation.jsonl", held)
    (folder / "script.json").write_text(json.dumps(script))
    texts = [PREFILL, *(row["prompt"] for row in rows), *chain.from_iterable(script.values())]
    tokenizer = build_tokenizer("".join(texts))
    save_tokenizer(tokenizer, str(folder / "model"))
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192).save_pretrained(
        folder / "model"
    )
    return {"good": good, "planted": planted, "passed": passed}


def recipe_for(folder: Path, seed: int) -> dict[str, Any]:
    """A recipe of one reject stage over what `plant` left in `folder`."""
    here = Path(__file__).resolve()
    return {
        "name": "planted",
        "run": {"seed": seed, "threads": 1, "dir": str(folder / "run")},
        "stages": [
            {
                "kind": "reject",
                "name": "reject",
                "model": {"path": str(folder / "model")},
                "data": {
                    "source": "file",
                    "args": {"path": str(folder / "tasks.jsonl"), "heldout_fraction": 0.0},
                    "template": "raw",
                    "template_args": {"prefill": PREFILL},
                    "max_prompt_length": 600,
                },
                "rollout": {
                    "engine": f"{here}:engine",
                    "engine_args": {"folder": str(folder)},
                    "prompts_per_step": PER_SHARD,
                    "num_generations": PER_TASK,
                    "max_completion_length": MAX_TOKENS,
                },
                "rewards": [{"name": f"{here}:Grader"}],
                "filter": {
                    "keep": PER_TASK,
                    "min_pass_rate": 0.1,
                    "max_pass_rate": 0.9,
                    "language": "en",
                    "max_repetition": 0.2,
                    "max_paragraph": MAX_PARAGRAPH,
                    "code_blocks": False,
                    "decontaminate": [str(folder / "evaluation.jsonl")],
                    "ngram": 10,
                },
            }
        ],
    }


def check(run: Path, planted: dict[str, Any]) -> dict[str, Any]:
    """What became of what was planted: per kind, how many were planted and how many did not go."""
    counts = json.loads((run / "data" / "counts.json").read_text())
    rows = [json.loads(line) for line in (run / "data" / "train.jsonl").read_text().splitlines()]
    kept = {(row["prompt"].lower(), row["completion"]) for row in rows}
    good, bad = planted["good"], planted["planted"]
    by_kind = Counter(good.values())
    lost = Counter(kind for key, kind in good.items() if key not in kept)
    reasons = [kind for kind in bad if not kind.startswith("good")]
    return {
        "completions": counts["completions"],
        "rows": len(rows),
        "good": {
            kind.removeprefix("good: "): {"planted": n, "dropped": lost[kind]}
            for kind, n in sorted(by_kind.items())
        },
        "bad": {
            reason: {"planted": bad[reason], "dropped for it": counts["dropped"].get(reason, 0)}
            for reason in sorted(reasons)
        },
        "bad kept": len(kept - set(good)),
        "good dropped": sum(lost.values()),
        "tasks passed over": {
            reason: {
                "planted": n,
                "passed over": counts["tasks"].get(f"passed over: {reason}", 0),
            }
            for reason, n in sorted(planted["passed"].items())
        },
        "evaluation set": next(iter(counts["evaluation_sets"].values())),
    }


def killed_and_resumed(folder: Path, recipe: dict[str, Any], kill: str, name: str) -> Path:
    """The run folder of a process that was killed where `kill` says, and then of its resume.

    The resume has to find the shards there were, and to sample none of them again.
    """
    run = folder / name
    recipe = {**recipe, "run": {**recipe["run"], "dir": str(run)}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "kill").write_text(kill)
    child = [sys.executable, __file__, "--child", str(folder / "recipe.json")]
    ended = subprocess.run(child, capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (run / "data").exists()
    before = {path: path.stat().st_mtime_ns for path in (run / "shards").glob("*.jsonl")}
    resume_run(run, QUIET)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    return run


def measure(folder: Path, seed: int, num_tasks: int) -> dict[str, Any]:
    """One seed: the stage as it is, and killed at three places."""
    planted = plant(folder, seed, num_tasks)
    recipe = recipe_for(folder, seed)
    summary = train_recipe(from_dict(recipe), QUIET)
    whole = content_hash(folder / "run" / "data")
    resumes = {
        place: content_hash(killed_and_resumed(folder, recipe, kill, place) / "data") == whole
        for place, kill in KILLS.items()
    }
    found = check(folder / "run", planted)
    return {**found, "seconds": summary["seconds"], "resumed byte-identical": resumes}


def main() -> None:
    """Measure three seeds and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--child", help="run the recipe in this file and nothing else")
    options = parser.parse_args()
    if options.child:
        train_recipe(from_dict(json.loads(Path(options.child).read_text())), QUIET)
        return
    from record import merge, origin, versions  # beside this file, which tests load from elsewhere

    for seed in options.seeds:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), seed, options.tasks)
        seconds = time.perf_counter() - began
        command = f"python benchmarks/bench_reject.py --tasks {options.tasks}"
        merge(RESULT, f"seed {seed}", found, origin(command, seconds, versions(["transformers"])))
        print(
            f"seed {seed}: {found['rows']} rows of {found['completions']} completions; "
            f"bad kept {found['bad kept']}, good dropped {found['good dropped']}, "
            f"resumed alike {found['resumed byte-identical']}, {seconds:.0f} s"
        )


def _lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
