"""Verifier processes: the same scores as in this one, also when one is killed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo.config.schema import RewardSpec
from grpo.errors import RewardError
from grpo.stages.remote_rewards import RemoteRewards, reward_set
from grpo.types import Completion, Prompt, Segment, Task, TrainerState, Version

ray: Any = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

OWN = """
import os, signal

def where(*, completions, log_metric, **columns):
    log_metric("length", len(completions[0]))
    if "die" in completions[0] and not os.path.exists(columns["flag"][0]):
        open(columns["flag"][0], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if "always" in completions[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.alarm(0)  # raises anywhere but on a main thread
    return [float(os.getpid())] * len(completions)
"""


@pytest.fixture(scope="module")
def local():
    quiet = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init(address="local", num_cpus=2, **quiet)
    yield
    ray.shutdown()


def asked(text: str, **columns: Any) -> tuple[Prompt, list[Completion]]:
    task = Task(uid="t", prompt="2 + 2?", answer="4", columns=columns)
    nothing = np.zeros(1, dtype=np.float32)
    segment = Segment(
        ids=np.ones(1, dtype=np.int64), version=Version(step=0, hash="h"), logprobs=nothing
    )
    completions = [
        Completion(request="t", index=i, segments=(segment,), text=t, finish="stop")
        for i, t in enumerate([text, "<answer>5</answer>"])
    ]
    return Prompt(task=task, text="2 + 2?", ids=(1,)), completions


def test_scores_are_those_of_this_process(local: None) -> None:
    specs = [RewardSpec(name="accuracy"), RewardSpec(name="format", weight=0.5)]
    far, near = RemoteRewards(specs, 2), reward_set(specs)
    prompt, completions = asked("<think>x</think><answer>4</answer>")
    state = TrainerState(global_step=1)
    with ThreadPoolExecutor(far.parallel) as pool:
        found = list(pool.map(lambda _: far.score(prompt, completions, state), range(6)))
    expected = near.score(prompt, completions, state)
    assert [s.value for s in expected] == [1.5, 0.0]
    assert found == [expected] * 6
    far.close()


def test_a_verifier_that_dies_is_replaced_and_its_group_scored_again(
    local: None, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    far = RemoteRewards([RewardSpec(name=f"{tmp_path / 'own.py'}:where")], 1)
    flag = str(tmp_path / "died")
    first = far.score(*asked("ok", flag=flag))[0].value
    after = far.score(*asked("die", flag=flag))[0].value
    assert first != after
    assert os.getpid() not in (first, after)
    metrics = far.take_metrics()
    assert metrics == {"length": 3.0, "verifiers/replaced": 1.0}
    with pytest.raises(RewardError, match=r"3 verifier processes died .* 't'"):
        far.score(*asked("always", flag=flag))
    far.close()


def test_what_a_reward_raises_comes_back_named(local: None, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def bad(**_):\n    raise KeyError('gold')\n")
    far = RemoteRewards([RewardSpec(name=f"{tmp_path / 'bad.py'}:bad")], 1)
    with pytest.raises(RewardError, match="bad"):
        far.score(*asked("x"))
    far.close()


def test_a_reward_that_hangs_there_is_named_in_time(local: None, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef slow(**_):\n    time.sleep(600)\n")
    far = RemoteRewards([RewardSpec(name=f"{tmp_path / 'slow.py'}:slow", timeout=0.5)], 1)
    with pytest.raises(RewardError, match=r"'slow' did not return within 0.5 s.*slow.py:3"):
        far.score(*asked("x"))
    far.close()
