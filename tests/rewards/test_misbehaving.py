"""Rewards that reach beyond what they are asked: what others are paid, the process, the run."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo.errors import RewardError
from grpo.rewards import RewardSet, deadline, score_file
from grpo.types import Completion, Prompt, Score, Segment, Task, Version

HERE = r"test_misbehaving.py:\d+"


def asked(prompt: Any = "q", **columns: Any) -> Prompt:
    task = Task(uid="t", prompt=prompt, answer="4", columns=columns)
    return Prompt(task=task, text="q", ids=(1, 2))


def completions(*texts: str) -> list[Completion]:
    segment = Segment(
        ids=np.array([5, 6]), version=Version(step=0, hash=""), logprobs=np.zeros(2, np.float32)
    )
    return [
        Completion(request="r", index=i, segments=(segment,), text=text, finish="stop")
        for i, text in enumerate(texts)
    ]


def score(*rewards: Any, prompt: Prompt | None = None, **timeouts: float) -> list[Any]:
    """The values of two completions, "a" and "bb", under rewards of weight 1."""
    named = [(f"r{i}", reward, 1.0) for i, reward in enumerate(rewards)]
    made = RewardSet(named, timeouts)
    try:
        found = made.score(prompt or asked(), completions("a", "bb"))
    finally:
        made.close()
    return [one.value for one in found]


# What others are paid


def test_what_a_reward_does_to_its_arguments_stays_with_it() -> None:
    tests = {"cases": [1, 2]}
    prompt = asked([{"role": "user", "content": "q"}], tests=tests)

    def vandal(prompts, completions, completion_ids, tests, answer, **_):
        completions.reverse()
        completions[0][0]["content"] = "gone"
        prompts[0][0]["content"] = "gone"
        completion_ids[0].clear()
        answer.sort(key=id)
        tests[0]["cases"].append(3)
        return [0.0, 0.0]

    def honest(prompts, completions, completion_ids, tests, answer):
        assert prompts == [[{"role": "user", "content": "q"}]] * 2
        assert completion_ids == [[5, 6], [5, 6]]
        assert tests == [{"cases": [1, 2]}] * 2
        return [float(len(c[0]["content"])) for c in completions]

    assert score(vandal, honest, prompt=prompt) == [1.0, 2.0]
    assert tests == {"cases": [1, 2]}
    assert prompt.task.prompt == [{"role": "user", "content": "q"}]


def test_rows_do_not_share_what_a_reward_may_change() -> None:
    def counts(tests, **_):
        for each in tests:
            each["cases"].append(0)
        return [float(len(each["cases"])) for each in tests]

    assert score(counts, prompt=asked(tests={"cases": []})) == [1.0, 1.0]


def test_what_cannot_be_copied_is_passed_as_it_is() -> None:
    mine = threading.Lock()

    def same(lock, **_):
        return [float(one is mine) for one in lock]

    assert score(same, prompt=asked(lock=mine)) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ({1.0, 0.0}, r"set \(\{0.0, 1.0\}\), which has no order"),
        (frozenset({1.0, 0.0}), "frozenset"),
        ({"a": 1.0, "b": 0.0}, r"dict \(\{'a': 1.0, 'b': 0.0\}\)"),
        ({0: 1.0, 1: 0.0}.values(), "dict_values"),
        ((x for x in [1.0, 0.0]), "generator"),
        (iter([1.0, 0.0]), "list_iterator"),
        (map(float, [1, 0]), "map"),
        ("10", r"str \('10'\)"),
        (b"10", "bytes"),
        (np.zeros((2, 1)), "ndarray .* of 2 dimensions"),
        (np.float64(1.0), "float64"),
        (torch.zeros(2, 1), "Tensor .* of 2 dimensions"),
        (1.0, r"float \(1.0\)"),
        (None, "NoneType"),
    ],
)
def test_only_what_has_an_order_is_taken(output: Any, shown: str) -> None:
    with pytest.raises(RewardError, match=rf"reward 'r0' returned {shown}.*not a list"):
        score(lambda **_: output)


@pytest.mark.parametrize(
    "output",
    [
        [1, None],
        (1, None),
        deque([1, None]),
        np.array([1, None], dtype=object),
        np.ma.masked_array([1.0, 2.0], mask=[False, True]),
        [torch.tensor(1.0), None],
        [Score(value=np.float32(1.0), status="scored"), None],
    ],
)
def test_sequences_are_taken_in_their_order(output: Any) -> None:
    assert score(lambda **_: output) == [1.0, None]


def test_tensors_and_series_are_taken_by_position() -> None:
    leaf = torch.tensor([1.0, 0.5], dtype=torch.bfloat16, requires_grad=True)
    assert score(lambda **_: leaf) == [1.0, 0.5]
    pandas = pytest.importorskip("pandas")
    assert score(lambda **_: pandas.Series([1.0, 0.5])) == [1.0, 0.5]
    with pytest.raises(RewardError, match=r"whose index is not 0, 1, 2"):
        score(lambda **_: pandas.Series([1.0, 0.5]).sort_values())


# Numbers that are none


@pytest.mark.parametrize("value", [1e308, -1e308, 1e200, 2e18, pytest.param(10**400, id="whole")])
def test_values_whose_variance_is_no_number_are_refused(value: float) -> None:
    with pytest.raises(RewardError, match=r"reward 'r0' returned (-?\d(\.\d)?e\+\d+|inf) for"):
        score(lambda **_: [value, 0.0])
    with pytest.raises(RewardError, match=r"reward 'r0' returned"):
        score(lambda **_: [Score(value=value, status="scored"), None])


def test_weights_count_too() -> None:
    rewards = RewardSet([("big", lambda **_: [1e10], 1e300)])
    with pytest.raises(RewardError, match=r"reward 'big' gave 1e\+10, and its weight .* 1e\+300"):
        rewards.score(asked(), completions("a"))
    fine = RewardSet([("big", lambda **_: [1e9, -1e9], 1e9)])
    assert [s.value for s in fine.score(asked(), completions("a", "b"))] == [1e18, -1e18]


# The end of the run


def leaves(**_):
    sys.exit(0)


async def leaves_later(**_):
    await asyncio.sleep(0)
    sys.exit(0)


async def its_task_leaves(**_):
    await asyncio.create_task(leaves_later())


class Leaver:
    def verify(self, completion: str, task: Task) -> Score:
        sys.exit("enough")


def interrupts(**_):
    raise KeyboardInterrupt


async def interrupts_later(**_):
    raise KeyboardInterrupt


def closes(**_):
    raise GeneratorExit


async def cancels(**_):
    raise asyncio.CancelledError


def finds_nothing(**_):
    return [next(iter(()))]


def calls_on(**_):
    return int("x")


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (leaves, rf"called sys.exit\(0\) at .*{HERE}"),
        (leaves_later, rf"called sys.exit\(0\) at .*{HERE}"),
        (its_task_leaves, rf"called sys.exit\(0\) at .*{HERE}"),
        (Leaver(), rf"called sys.exit\('enough'\) at .*{HERE}"),
        (interrupts, rf"raised KeyboardInterrupt at .*{HERE}"),
        (interrupts_later, rf"raised KeyboardInterrupt at .*{HERE}"),
        (closes, rf"raised GeneratorExit at .*{HERE}"),
        (cancels, r"raised CancelledError"),
        (finds_nothing, rf"raised StopIteration at .*{HERE}"),
        (calls_on, rf"raised ValueError: invalid literal.* at .*{HERE}"),
    ],
)
def test_whatever_a_reward_raises_is_an_error_with_its_place(reward: Any, words: str) -> None:
    with pytest.raises(RewardError, match=rf"reward 'r0' {words}"):
        score(reward)
    raised: list[BaseException] = []

    def elsewhere() -> None:
        try:
            score(reward)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert isinstance(raised[0], RewardError)


def test_after_a_reward_that_leaves_the_others_still_answer() -> None:
    async def one(**_):
        return [1.0, 2.0]

    rewards = RewardSet([("leaves", leaves_later, 1.0), ("one", one, 1.0)])
    for _ in range(2):
        with pytest.raises(RewardError, match=r"'leaves' called sys\.exit"):
            rewards.score(asked(), completions("a", "b"))
    rewards.close()


def test_a_reward_that_was_not_asked_leaves_no_coroutine_behind() -> None:
    async def never(**_):
        return [1.0, 2.0]

    with pytest.raises(RewardError, match="'r1' called"):  # warnings are errors
        score(never, leaves)


def test_a_real_interrupt_is_one() -> None:
    def waits(**_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        score(waits)
    assert signal.getsignal(signal.SIGINT) is before


# The process


def test_what_a_reward_changes_for_the_process_is_put_back(tmp_path: Path, caplog: Any) -> None:
    before = (os.getcwd(), torch.get_num_threads(), np.geterr())
    ordered = torch.are_deterministic_algorithms_enabled()  # a run in this process asks for it
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def vandal(**_):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        torch.set_num_threads(3)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        np.seterr(all="raise")
        os.chdir(tmp_path)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return [1.0, 2.0]

    async def vandal_later(**_):
        torch.set_default_dtype(torch.float64)
        return [1.0, 2.0]

    assert score(vandal, vandal_later) == [2.0, 4.0]
    assert torch.ones(1).dtype is torch.float32
    assert torch.ones(1).device.type == "cpu"
    assert torch.is_grad_enabled()
    assert torch.are_deterministic_algorithms_enabled() == ordered
    assert torch.get_float32_matmul_precision() == "highest"
    assert (os.getcwd(), torch.get_num_threads(), np.geterr()) == before
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "reward 'r0' left torch's default dtype at torch.float64" in caplog.text


# A reward that does not return


def spins(**_):
    while True:
        pass


def sleeps(**_):
    time.sleep(60)


def swallows(**_):
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


async def blocks(**_):
    time.sleep(8)


async def waits(**_):
    await asyncio.sleep(60)


class Sleeper:
    def verify(self, completion: str, task: Task) -> Score:
        time.sleep(8)
        return Score(value=1.0, status="scored")


@pytest.mark.parametrize("reward", [spins, sleeps, swallows, waits, blocks, Sleeper()])
def test_a_reward_that_does_not_return_is_named(reward: Any) -> None:
    message = r"reward 'r0' did not return within 0.2 s.*raise its `timeout`"
    with pytest.raises(RewardError, match=message):
        score(reward, r0=0.2)


def test_where_a_reward_hangs_is_said() -> None:
    for reward in (sleeps, waits, blocks):
        with pytest.raises(RewardError, match=rf"when it was at .*{HERE}"):
            score(reward, r0=0.2)


def test_elsewhere_than_on_the_main_thread_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"completion": "a"}\n' * 3)

    def slow(completions, **_):
        time.sleep(8)

    with pytest.raises(RewardError, match=rf"'slow' did not return within 0.2 s, when .*{HERE}"):
        list(score_file(slow, path, 2, timeout=0.2))


def test_a_reward_in_time_is_not_disturbed_and_alarms_are_its_own() -> None:
    rung: list[int] = []

    def alarmed(completions, **_):
        before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(0.2)
        signal.signal(signal.SIGALRM, before)
        return [float(len(rung))] * 2

    def outer(**_):
        return [value * 2 for value in score(alarmed, r0=30.0)]

    assert score(outer, r0=30.0) == [2.0, 2.0]
    assert deadline.SECONDS == 600


HANGS = """
    import sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    from grpo.errors import RewardError
    sys.path.insert(0, {tests!r})
    from test_misbehaving import asked, completions
    from grpo.rewards import RewardSet
    from grpo.rewards import deadline
    deadline.GRACE, deadline._LEAVING = 2.0, 1.0
    {body}
    try:
        RewardSet([("hangs", reward, 1.0)], {{"hangs": 0.3}}).score(asked(), completions("a"))
    except RewardError as error:
        sys.exit(f"said: {{error}}")
"""


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        # its own threads are waited for by Python when the interpreter shuts down
        (
            """
    def reward(**_):
        pool = ThreadPoolExecutor(1)
        pool.submit(time.sleep, 600).result()
    """,
            2,
            "said: reward 'hangs' did not return",
        ),
        (
            """
    async def reward(**_):
        import asyncio
        await asyncio.to_thread(time.sleep, 600)
    """,
            2,
            "said: reward 'hangs' did not return",
        ),
        # a call into C that gives up Python's lock and does not come back for a signal
        (
            """
    def reward(**_):
        import ctypes, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) | {deadline._SIGNAL})
        ctypes.CDLL(None).usleep(50_000_000)
    """,
            2,
            "grpo: error: reward 'hangs' did not return",
        ),
    ],
)
def test_the_process_ends_although_something_hangs(body: str, code: int, said: str) -> None:
    script = textwrap.dedent(HANGS).format(
        tests=str(Path(__file__).parent), body=textwrap.dedent(body).strip()
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert said in ended.stderr
    assert ended.returncode == code
