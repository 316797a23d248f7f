"""math: what text decides, what algebra decides, and that nothing hangs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.rewards.math.latex import compare
from grpo.rewards.math.reward import Math, joined_boxes
from grpo.rewards.sandbox.workers import WorkerDied, WorkerFault
from grpo.types import Task


@pytest.fixture(scope="module")
def math():
    reward = Math(workers=1, timeout=1.0)
    yield reward
    reward.close()


def task(gold):
    return Task(uid="t", prompt="q", answer=gold)


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("5 km", "5 m", False),
        ("5 km", "5", True),
        (r"5\text{ cm}", "5 centimeters", True),
        ("101_2", "101", False),
        ("101_2", "101_{2}", True),
        ("101_2", "101_3", False),
        (r"\{1,1,2\}", r"\{1,2\}", False),
        (r"\{2,1\}", r"\{1, 2\}", True),
        ("(2,1)", "(1,2)", False),
        ("1,1,2", "1,2", False),
        ("1,2", "2,1", True),
        ("1,22", "1.22", None),  # a decimal comma, or not: algebra's business
        (r"\left(1, 2\right)", "(1,2)", True),
        ("(1,2]", "[1,2)", False),
        ("0.0000004", "0.0000001", False),
        ("1728", "1331 and 1728", False),
        ("1728 and 1331", r"1331\text{ and }1728", True),
        (r"\int_0^5 1dx", "5", False),
        (r"1\frac{1}{2}", "1.5", True),
        ("-1 1/2", r"-\frac32", True),
        ("28", r"28\%", True),
        ("0.28", r"28\%", True),
        ("28", "0.28", False),
        (r"90^\circ", "90", True),
        (r"\$1,000", "1000", True),
        ("x = 5", "5", True),
        ("x = 5", "x=6", False),
        ("1/3", "0.333333", True),  # the gold is a decimal
        ("0.333333", "1/3", False),
        (r"\text{Evelyn}", "Evelyn", True),
        ("1e-3", "0.001", True),
        (r"6.02\times 10^{23}", "6.02e23", True),
        (r"0.\overline{3}", r"\frac13", True),
        (r"-0.1\overline{6}", r"-\frac16", True),
        ("true", "True", True),
        ("2.4 million", "2,400,000", True),
        ("10th", "10", True),
        (r"5 \text{ cm}^2", "5 square centimeters", True),
        (r"5 \text{ cm}^2", "5 cm^3", False),
        ("5 m/s", "5 km/h", False),
        # a product of variables is no number with a unit
        ("3", "3i", None),
        ("2x", "2y", None),
        ("2x", "2", None),
        ("2xy", "2xz", None),
        ("3x^2", "3x^3", None),
        (r"\frac{1}{2}x", r"\frac{1}{2}y", None),
        (r"3:30\text{ p.m.}", "3:30 PM", True),
        (r"3:30 \text{ pm}", r"3:30 \text{ am}", False),
        (r"\textbf{(A) } 12", r"\text{(A)}", True),
        ("B. 12 cm", "(B)", True),
        ("Option B", "B", True),
        ("(A) or (B)", "(A)", None),
        ("C", "(B)", False),
        (r"5 \pmod{7}", "5", True),
        ("3 to 4", "3:4", True),
        ("an ellipse", r"\text{ellipse}", True),
        ("a", "A", None),
        ("2x", "x+x", None),
        (r"\sqrt{2}", r"\sqrt 2", None),
    ],
)
def test_text_decides_or_says_that_it_cannot(answer, gold, same):
    assert compare(answer, gold, tolerance=1e-5) is same


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        ("2x", "x+x", 1.0),
        (r"2+\sqrt{3}", r"\sqrt 3+2", 1.0),
        ("8n^2+4n+1", "1", 0.0),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", 1.0),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", 0.0),
        (r"(-\infty, 3) \cup (5, \infty)", r"(-\infty,3)\cup(5,\infty)", 1.0),
        ("x^2 + y^2 = 1", "y^2+x^2=1", 1.0),
        ("The answer is $5$.", "5", 1.0),
        ("2\u221a3", r"2\sqrt{3}", 1.0),
        ("2*pi", r"2\pi", 1.0),
        ("(-\u221e, 3) \u222a (5, \u221e)", r"(-\infty,3)\cup(5,\infty)", 1.0),
        ("x**2", "x^{2}", 1.0),
        ("1,22", "1.22", 1.0),
        ("12:00", "1:00", 0.0),
        ("18:00", "18", 0.0),
        ("5!", "5", 0.0),
        (r"x \geq 5", "5", 0.0),
        ("3i", "3", 0.0),
        ("2y", "2x", 0.0),
        ("2", "2x", 0.0),
        (r"\langle 1,2,4 \rangle", r"\langle 1,2,3 \rangle", 0.0),
        (r"\langle 3,2,1 \rangle", r"\langle 1,2,3 \rangle", 0.0),
        ("**5**", "5", 1.0),
        ("(3*sqrt(3))/4", r"\frac{3\sqrt3}{4}", 1.0),
        ("ln(x)", r"\ln x", 1.0),
        ("x\u00b2", "x^2", 1.0),
        ("\u20134", "-4", 1.0),
        ("all real numbers", r"(-\infty,\infty)", 1.0),
        (r"\lbrace 2, 1 \rbrace", r"\{1,2\}", 1.0),
        (r"x=\frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}", r"x=\frac{-1\pm\sqrt5}{2}", 1.0),
        (r"\frac{1\pm\sqrt5}{2}", r"\frac{-1\pm\sqrt5}{2}", 0.0),
    ],
)
def test_algebra_decides_the_rest(math, answer, gold, value):
    assert math.verify(f"<think>t</think><answer>{answer}</answer>", task(gold)).value == value


@pytest.mark.parametrize(
    ("text", "policy", "answer"),
    [
        (r"\boxed{1} and \boxed{2}", "join", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$, or $\boxed{3}$", "join", "1, 2, 3"),
        (r"First \boxed{1}. Then \boxed{2}", "join", "2"),
        (r"\boxed{1}. \boxed{2}", "join", "2"),
        (r"\boxed{0.5} or \boxed{\frac12}", "join", "0.5"),
        (r"\boxed{1} and \boxed{2}", "last", "2"),
        (r"\boxed{1} and \boxed{2}", "zero", None),
        (r"\boxed{2} so \boxed{2}", "zero", "2"),
        ("none", "join", ""),
    ],
)
def test_several_boxes_follow_the_policy(text, policy, answer):
    assert joined_boxes(text, policy) == answer


def test_a_model_that_repeats_its_box_is_no_hang():
    start = time.monotonic()
    text = " and ".join(rf"\boxed{{{i}}}" for i in range(20_000))
    assert joined_boxes(text, "join").count(",") == 31
    assert joined_boxes(r"\boxed{1}, " * 20_000, "join") == "1"
    assert time.monotonic() - start < 3


def test_statuses(math):
    def status(completion, gold):
        score = math.verify(completion, task(gold))
        return score.value, score.status

    assert status(r"\boxed{x}", "") == (None, "unparseable_gold")
    assert status("x", "y+1") == (0.0, "unparseable_answer")
    assert status(r"<think>\boxed{4}", "4") == (0.0, "unparseable_answer")
    assert status(r"\boxed{" + "(" * 99 + ")" * 99 + "}", "x+1") == (0.0, "limit")
    assert status(r"\boxed{" + "9" * 3000 + "}", "x+1") == (0.0, "limit")
    assert status(r"\boxed{" + "\u00bd" * 4000 + "}", "x+1") == (0.0, "limit")  # 12 signs each
    assert status(r"\boxed{" + "\uff15" * 4000 + "}", "x+1") == (0.0, "limit")
    assert status(r"\boxed{4}", "so 2+2 = 4\n#### 4") == (1.0, "correct")
    assert status(r"\boxed{4}", r"we get $\boxed{4}$.") == (1.0, "correct")


HANGS = ["10^{10^{10}}", "99999999!", "77777777! + x", "9^{9^{9^9}}"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("where", ["main", "thread", "asyncio"])
def test_hangs_end_at_the_deadline_and_block_nothing(math, where):
    math.verify(r"\boxed{2x}", task("x+x"))  # the worker is up
    ticks = []

    def run(answer):
        math._algebra.cache_clear()
        start = time.monotonic()
        score = math.verify(rf"\boxed{{{answer}}}", task("x+1"))
        return score, time.monotonic() - start

    async def beside():
        found = asyncio.ensure_future(asyncio.to_thread(run, HANGS[0]))
        while not found.done():
            ticks.append(time.monotonic())
            await asyncio.sleep(0.02)
        return await found

    results = []
    if where == "main":
        results = [run(answer) for answer in HANGS[:2]]
    elif where == "thread":
        thread = threading.Thread(target=lambda: results.append(run(HANGS[2])))
        thread.start()
        thread.join()
    else:
        results.append(asyncio.run(beside()))
        gaps = [b - a for a, b in itertools.pairwise(ticks)]
        assert max(gaps) < 0.5
    for score, seconds in results:
        assert (score.value, score.status) in [(0.0, "timeout"), (0.0, "limit")]
        assert seconds <= 1.5
    assert math.verify(r"\boxed{2y}", task("y+y")).value == 1.0  # a new worker serves


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_no_text_makes_it_raise(math, text):
    for completion in (text, rf"\boxed{{{text}}}", f"<answer>{text}</answer>"):
        assert math.verify(completion, task("2")).value in (0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 99))
def test_spelling_never_changes_a_verdict(top, bottom):
    fraction = rf"\frac{{{top}}}{{{bottom}}}"
    for spelled in (
        rf"\dfrac{{{top}}}{{{bottom}}}",
        rf"\left( {fraction} \right)",
        f"$ {fraction} $",
        f"{top}/{bottom}",
        f"{fraction}.",
    ):
        verdict = compare(spelled, fraction)
        assert verdict or (verdict is None and "left" in spelled)
        assert compare(spelled, rf"\frac{{{top + 1}}}{{{bottom}}}") in (False, None)
    assert compare(fraction, fraction) is True


def test_a_forked_child_gets_a_worker_of_its_own(math):
    assert math.verify(r"\boxed{2x}", task("x+x")).value == 1.0
    slot = math.pool._all[0]
    theirs = slot.guest.pid
    child = os.fork()
    if child == 0:
        right = math.verify(r"\boxed{3x}", task("x+x+x")).value == 1.0
        os._exit(0 if right and slot.guest.owner == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert math.verify(r"\boxed{4x}", task("2x+2x")).value == 1.0
    assert slot.guest.pid == theirs


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_never_raise(math, seed):
    noise = random.Random(seed).randbytes(2000).decode("latin-1")
    for completion in (noise, rf"\boxed{{{noise}}}", f"<answer>{noise}</answer>"):
        assert math.verify(completion, task("x+1")).value in (0.0, 1.0)
    assert math.verify(r"\boxed{x}", task(noise)).value in (None, 0.0)


@pytest.mark.parametrize(
    ("block", "gold", "value"),
    [
        (
            "255}$ So it is $10,455$. Final Answer: The final answer is $10455$. Done.",
            "10455",
            1.0,
        ),
        ("It is 3 at first. The final answer is 4.", "4", 1.0),
        ("It is 4 at first. The final answer is 3.", "4", 0.0),
        ("The final answer is $5$, no, the final answer is $6$", "5", 0.0),
    ],
)
def test_an_answer_block_that_talks_is_read_where_it_says_so(math, block, gold, value):
    assert math.verify(f"<think>t</think><answer>{block}</answer>", task(gold)).value == value


def test_a_gold_of_nothing_but_boxes_is_all_of_them(math):
    gold = r"\boxed{35} ++ \boxed{4}"
    assert math.verify(r"<answer>\{35,4\}</answer>", task(gold)).value == 1.0
    assert math.verify("<answer>4</answer>", task(gold)).value == 0.0
    # words between them: a derivation, whose last box is the answer
    assert math.verify("<answer>4</answer>", task(r"\boxed{35} is not it but \boxed{4}")).value == 1


class Broken:
    """A pool whose workers fail `times` times, then answer that the pair is the same."""

    def __init__(self, failure, times):
        self.failure, self.times, self.asked = failure, times, 0

    def call(self, request, timeout):
        self.asked += 1
        if self.asked <= self.times:
            raise self.failure
        return {"gold": True, "answer": True, "same": True}

    def close(self):
        pass


@pytest.mark.parametrize(
    "failure", [WorkerFault("ImportError: gone"), WorkerDied("", "ImportError: gone")]
)
def test_a_failing_worker_is_no_verdict_and_is_not_remembered(failure):
    reward = Math()
    reward.pool = Broken(failure, times=2)
    found = [reward.verify(r"\boxed{(x+1)^2}", task("x^2+2x+1")) for _ in range(4)]
    assert [score.value for score in found] == [None, None, 1.0, 1.0]
    assert [score.status for score in found[:2]] == ["grader_error"] * 2
    assert found[0].detail == "worker: ImportError: gone"
    assert reward.pool.asked == 3  # the verdict is remembered


def test_both_readings_of_a_sign_are_asked_for_once():
    reward = Math()
    reward.pool = Broken(WorkerFault("OSError: gone"), 1)
    score = reward.verify(r"\boxed{1 \pm \sqrt{x+y}}", task(r"\{1+\sqrt{y+x},1-\sqrt{x+y}\}"))
    assert reward.pool.asked == 1
    assert (score.value, score.status) == (None, "grader_error")


def test_a_worker_that_dies_of_what_came_before_is_replaced_and_asked_again(math):
    assert math.verify(r"\boxed{2x}", task("x+x")).value == 1.0
    guest = math.pool._all[0].guest
    guest.sandbox.end(guest.pid, kill=True)  # as if its memory had run full
    score = math.verify(r"\boxed{5x+y}", task("x+4x+y"))
    assert (score.value, score.status) == (1.0, "correct")


@pytest.fixture
def guest():
    from grpo.rewards.math import guest

    logging.disable(logging.NOTSET)  # a guest has nobody to log to; this process has
    return guest


@pytest.mark.parametrize("error", [ImportError("gone"), OSError("gone"), MemoryError()])
def test_what_no_answer_can_cause_is_not_held_against_it(monkeypatch, guest, error):
    def failing(gold, answer):
        raise error

    monkeypatch.setattr(guest, "_same", failing)
    with pytest.raises(type(error)):
        guest.judge("x+1", "1+x")
    monkeypatch.setattr(guest, "_gold", lambda text: failing(text, text))
    with pytest.raises(type(error)):
        guest.judge("x+1", "1+x")


@pytest.mark.parametrize("error", [ValueError(), TypeError(), RecursionError(), AttributeError()])
def test_what_an_answer_can_cause_is_wrong_and_a_gold_that_does_is_unusable(
    monkeypatch, guest, error
):
    def failing(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(guest, "_same", failing)
        found = guest.judge("x+1", "1+x")
        assert found == {"gold": True, "answer": False, "same": False}
    monkeypatch.setattr(guest, "_gold", failing)
    assert guest.judge("x+1", "1+x")["gold"] is False
