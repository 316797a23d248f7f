"""A call leaves nothing in its process: twice, after it has failed, and after Ctrl-C.

`benchmarks/ten_calls.py` measures the same over ten calls, memory included.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import grpo
from grpo.errors import RewardError
from tests.grpo.commands.api.bad_calls import FOLDER, PRELUDE
from tests.grpo.commands.api.left import alone, changed, state, weights

ROWS = [{"prompt": f"{n * 2654435761 % 65536:016b}=", "answer": str(n % 2)} for n in range(24)]
SHORT: dict[str, Any] = {
    "dataset": ROWS,
    "max_steps": 1,
    "num_generations": 2,
    "prompts_per_step": 2,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "threads": 1,
    "eval": {"num_tasks": 1, "num_samples": 1},
}
# A script that waits in its second step for a signal, and then trains as if it had not.
INTERRUPTED = f"""
import sys
sys.path[:0] = {sys.path!r}
{PRELUDE}
from tests.grpo.commands.api.left import changed, state, weights

def waits(completions, trainer_state, **_):
    if trainer_state and trainer_state.global_step == 1 and not os.path.exists("over"):
        print("ready", flush=True)
        time.sleep(5)
    return short(completions)

LONG = GOOD | dict(rewards=[waits], max_steps=3, save_steps=1)
grpo.train(**GOOD)
before = state()
try:
    grpo.train(**LONG, name="stopped")
except KeyboardInterrupt:
    print("left", *changed(before, state()))
open("over", "w").close()
run = grpo.load_run("runs/stopped-1")
run.resume(rewards=[waits], dataset=ROWS)
print("same", weights(run) == weights(grpo.train(**LONG, name="whole")))
print("left", *changed(before, state()))
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(tmp_path, monkeypatch)


def count(completions: list[str], **_: Any) -> list[float]:
    """The ones of each completion."""
    return [text.count("1") / 10 for text in completions]


async def later(completions: list[str], **_: Any) -> list[float]:
    """The same, asynchronously."""
    return count(completions)


class Stateful:
    """A reward that remembers how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.calls += 1
        return [self.calls / 100] * len(completions)


def test_a_second_call_trains_the_same_bits_and_leaves_nothing() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER)

    def go() -> str:
        run = grpo.train(model=model, rewards=[count, later, "math", Stateful()], **SHORT)
        return weights(run)

    first = go()
    before = state()
    assert go() == first
    now = state()
    assert not {name: (before[name], now[name]) for name in changed(before, now)}


def test_a_call_that_fails_leaves_nothing() -> None:
    async def fails(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        if trainer_state and trainer_state.global_step == 1:
            raise KeyError("gold")
        return count(completions)

    go: dict[str, Any] = {**SHORT, "model": FOLDER, "max_steps": 3}
    good = weights(grpo.train(**go, rewards=[count]))
    before = state()
    with pytest.raises(RewardError, match=r"raised KeyError: 'gold' at .*test_nothing_left\.py"):
        grpo.train(**go, rewards=[fails, "math"])
    now = state()
    assert not {name: (before[name], now[name]) for name in changed(before, now)}
    assert weights(grpo.train(**go, rewards=[count])) == good


def test_a_cell_that_is_run_again_has_its_new_function() -> None:
    def cell(value: float) -> Any:
        def reward(completions: list[str], **_: Any) -> list[float]:
            return [value] * len(completions)

        return reward

    first = grpo.train(model=FOLDER, rewards=[cell(1.0)], **SHORT)
    second = grpo.train(model=FOLDER, rewards=[cell(2.0)], **SHORT)
    assert (first.completions(1)["reward"] == 1).all()
    assert (second.completions(1)["reward"] == 2).all()


def test_a_run_that_was_to_be_replaced_is_kept_where_the_new_one_cannot_begin() -> None:
    older = weights(grpo.train(model=FOLDER, rewards=[count], dir="out", **SHORT))
    for wrong in ({"beta": "large"}, {"rewards": [lambda completions, **_: [1.0] * 99]}):
        call: dict[str, Any] = {"rewards": [count], **wrong}
        with pytest.raises(grpo.GrpoError):
            grpo.train(model=FOLDER, dir="out", overwrite=True, **call, **SHORT)
        assert weights(grpo.load_run("out")) == older
    assert [place.name for place in Path().iterdir()] == ["out"]


def test_an_interrupted_call_can_go_on_and_leaves_nothing() -> None:
    Path("script.py").write_text(INTERRUPTED)
    with subprocess.Popen(
        [sys.executable, "script.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "ready\n"
        script.send_signal(2)
        told, errors = script.communicate(timeout=120)
    said = [line for line in told.splitlines() if line != "ready"]  # of the other prompts' groups
    assert said == ["left", "same True", "left"], errors


def test_importing_imports_nothing_heavy() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import sys, grpo; dir(grpo); print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"torch", "transformers", "datasets", "pandas", "matplotlib", "pydantic", "sympy"}
    assert "grpo" in told
    assert not heavy & set(told)
