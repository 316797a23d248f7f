"""Whoever calls wrongly is told so in one sentence with the line, and nothing is left of the call.

Every call is a script as a user would write it. What is odd but legal trains, to the same bits.
"""

from __future__ import annotations

import os
import re
import runpy
import traceback
import warnings
from pathlib import Path

import pytest

import grpo
from grpo.errors import GrpoError
from tests.grpo.commands.api.bad_calls import (
    ARGUMENTS,
    MODELS,
    PRELUDE,
    ROWS,
    SEVERAL,
    reward,
    train,
)
from tests.grpo.commands.api.bad_rewards import REWARDS, SETTINGS
from tests.grpo.commands.api.left import alone, changed, state, weights

TABLES = {
    "arguments": ARGUMENTS,
    "model": MODELS,
    "rows": ROWS,
    "rewards": REWARDS,
    "settings": SETTINGS,
}
BAD = [
    pytest.param(script, told, id=f"{table}: {name}")
    for table, calls in TABLES.items()
    for name, (script, told) in calls.items()
]
# Odd things that a call or a reward may do: what is trained is not changed by them.
SHORT = "return short(completions)"
HARMLESS = {
    "a class that needs nothing": train(
        f"class Odd:\n    def __call__(self, completions, **_):\n        {SHORT}", rewards="[Odd]"
    ),
    "an iterator of rewards": train(rewards="iter([short])"),
    "an array": reward("import numpy\nreturn numpy.array(short(completions))"),
    "asynchronous": reward(f"await asyncio.sleep(0)\n{SHORT}", kind="async def"),
    "a loop of its own": reward(
        "async def one(): return short(completions)\nreturn asyncio.run(one())"
    ),
    "another dtype": reward(f"import torch\ntorch.set_default_dtype(torch.float64)\n{SHORT}"),
    "seeds": reward(f"import random, torch\ntorch.manual_seed(0); random.seed(0)\n{SHORT}"),
    "another folder": reward(f"os.chdir('/')\n{SHORT}"),
    "a handler": reward(f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{SHORT}"),
    "a child": reward(f"if os.fork() == 0: os._exit(0)\nos.wait()\n{SHORT}"),
    "a thread": reward(f"t = threading.Thread(target=int)\nt.start(); t.join()\n{SHORT}"),
    "megabytes": reward(f"print('x' * 3_000_000)\n{SHORT}"),
    "its arguments": reward("found = short(completions); completions.clear()\nreturn found"),
    "numbers of numpy": train(max_steps="__import__('numpy').int64(1)"),
    "a path with dots": train(dir="__import__('pathlib').Path('x/../here')"),
    "a model without gradients": train(model="loaded()[0].eval().requires_grad_(False)"),
    "a tokenizer for a folder": train(tokenizer="BASE"),
    "a tokenizer without padding": train(
        SEVERAL + "tokenizer.pad_token = None", model="model", tokenizer="tokenizer"
    ),
    "a thread of its own": (
        "t = threading.Thread(target=lambda: globals().update(run=grpo.train(**GOOD)))\n"
        "t.start(); t.join()"
    ),
    "inside a running loop": (
        "async def main(): return grpo.train(**GOOD)\nrun = asyncio.run(main())"
    ),
}


def run(script: str, folder: Path) -> dict[str, object]:
    """The names that a script leaves, run in `folder` with what every script starts with."""
    (folder / "script.py").write_text(PRELUDE + script + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and peft
        return runpy.run_path(str(folder / "script.py"))


def trained(script: str, folder: Path) -> str:
    """A hash of the weights that a script has trained."""
    return weights(run(script.replace("\ngrpo.train(", "\nrun = grpo.train("), folder)["run"])


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights after a call in which nothing is odd."""
    folder = tmp_path_factory.mktemp("usual")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return trained(train(), folder)


@pytest.mark.parametrize(("script", "told"), BAD)
def test_a_bad_call_says_one_sentence_and_leaves_nothing(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: str
) -> None:
    alone(tmp_path, monkeypatch)
    before = state()
    with pytest.raises(GrpoError) as caught:
        run(script, tmp_path)
    text = str(caught.value)
    assert re.search(told, text), text
    assert "\n" not in text
    assert re.search(rf" at {re.escape(str(tmp_path))}/script.py:\d+", text), text
    made = {"torch", "threads"} if "transformers" in script or "peft" in script else set[str]()
    assert changed(before, state()) <= made  # the script's own: a random model, a bar
    frames = traceback.extract_tb(caught.value.__traceback__)
    package = os.path.dirname(str(grpo.__file__))
    assert sum(frame.filename.startswith(package) for frame in frames) == 1
    assert caught.value.__suppress_context__
    assert not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize("script", HARMLESS.values(), ids=HARMLESS)
def test_what_is_odd_and_legal_trains_the_same_bits(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: str
) -> None:
    alone(tmp_path, monkeypatch)
    before = state()
    assert trained(script, tmp_path) == usual
    assert not changed(before, state())
