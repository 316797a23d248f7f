"""The judge against endpoints that are slow, broken or not its own: unscored, never stuck."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import GrpoError
from grpo.rewards import RewardSet
from grpo.rewards.judge import Judge
from grpo.types import Score
from tests.grpo.outside.hostile import drips, hostile, says, whole


def reply(content: Any, **more: Any) -> bytes:
    return whole(json.dumps({"choices": [{"message": {"content": content}}], **more}).encode())


GOOD = reply("GRADE: 8", usage={"prompt_tokens": 10, "completion_tokens": 5})


def graded(judge: Judge, count: int = 1, **columns: Any) -> list[Score]:
    asked = [f"question {i}" for i in range(count)]
    answers = [f"answer {i}" for i in range(count)]
    return asyncio.run(judge.scores(prompts=asked, completions=answers, **columns))


def make(url: str, **settings: Any) -> Judge:
    return Judge(url, "m", **{"requests_per_minute": 6e6, "timeout": 5.0, "retries": 0, **settings})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "disconnected"),
        (b"nonsense\r\n\r\n", "ProtocolError"),
        (whole(b""), "without a str at choices.0.message.content"),
        (whole(b"null"), "without a str"),
        (whole(b"[]"), "without a str"),
        (whole(b"[" * 100_000), "not JSON"),
        (whole(b'"' + b"x" * (2 << 20) + b'"'), "more than 1048576 bytes"),
        (whole(b"\x1f\x8b", "Content-Encoding: gzip"), "encoding"),
        (whole(b'{"choices": {}}'), "without a str"),
        (whole(b'{"choices": [null]}'), "without a str"),
        (reply(None), "without a str"),
        (reply(["GRADE: 8"]), "without a str"),
        (reply("GRADE: 11"), "no grade in"),
        (reply("GRADE: " + "9" * 100_000), "no grade in"),
        (reply("GRADE: 8\nGRADE: 2"), "no grade in"),
        (whole(b"{}", status="404 Not Found"), "status 404"),
        (whole(b"", "Location: http://evil.example", status="302 Found"), "not followed"),
    ],
)
def test_what_is_no_grade_leaves_a_completion_unscored(answer: bytes, why: str) -> None:
    with hostile(says(answer)) as server:
        (score,) = graded(make(server.url))
    assert (score.value, score.status) == (None, "grader_error")
    assert why in score.detail


def test_the_key_stays_with_its_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with hostile(says(GOOD)) as thief:
        away = whole(b"", f"Location: {thief.url}/v1", status="307 Temporary Redirect")
        with hostile(says(away)) as server:
            (score,) = graded(make(server.url, api_key_env="JUDGE_KEY"))
        assert score.status == "grader_error"
        assert not thief.requests


def test_a_judge_that_sends_a_byte_now_and_then_ends_at_its_deadline() -> None:
    """The issue's 1,000 completions in small: benchmarks/slow_judge.py has them in full."""
    slow = drips(GOOD, 0.3)
    with hostile(slow) as server:
        judge = make(server.url, timeout=0.3, concurrency=8, deadline=60.0, retries=3)
        started = time.monotonic()
        scores = graded(judge, 40)
        took = time.monotonic() - started
    assert [score.status for score in scores] == ["grader_error"] * 40
    assert {score.detail for score in scores} == {"no whole answer came in time"}
    assert 40 / 8 * 0.3 <= took < 40 / 8 * 0.3 + 2.0  # a late call is not made again
    # All completions together have a deadline too, and what was graded before it stays.
    with hostile(lambda connection: (time.sleep(0.1), connection.sendall(GOOD))[0]) as server:
        judge = make(server.url, concurrency=2, deadline=0.5, requests_per_minute=6000.0)
        started = time.monotonic()
        scores = graded(judge, 100)
        assert time.monotonic() - started < 1.5
        good = [score for score in scores if score.status == "scored"]
        assert 2 <= len(good) <= 10
        assert "no time was left of the deadline of 0.5 s" in scores[-1].detail


def test_turns_that_nobody_took_are_not_waited_for() -> None:
    with hostile(says(GOOD), keeps=True) as server:
        judge = make(server.url, requests_per_minute=120.0, concurrency=8, deadline=0.3)
        scores = graded(judge, 100)
        assert [score.status for score in scores].count("scored") == 1
        judge.deadline = 60.0
        started = time.monotonic()
        assert graded(judge)[0].value == 0.8
        assert time.monotonic() - started < 1.5  # and not after the seven that gave up


def test_a_run_goes_on_beside_a_slow_judge() -> None:
    from tests.rewards.test_judge_and_sentinel import make_completion, make_prompt

    with hostile(drips(GOOD, 0.3)) as server:
        judge = make(server.url, timeout=0.3)
        rewards = RewardSet([("judge", judge, 1.0)])
        scores = rewards.score(make_prompt(), [make_completion(f"a{i}") for i in range(4)])
        rewards.close()
    assert [(score.value, score.status) for score in scores] == [(None, "grader_error")] * 4


def test_what_is_tried_again_and_what_is_not() -> None:
    for answer, calls in (
        (b"", 3),
        (whole(b"{}", status="503 Busy"), 3),
        (whole(b"{}", status="429 Slow"), 3),
        (whole(b"{}", status="401 No"), 1),
        (whole(b"[]"), 1),
    ):
        with hostile(says(answer)) as server:
            (score,) = graded(make(server.url, retries=2))
        assert score.status == "grader_error"
        assert len(server.requests) == calls


def test_the_rate_holds() -> None:
    with hostile(says(GOOD), keeps=True) as server:
        started = time.monotonic()
        scores = graded(make(server.url, requests_per_minute=1200.0), 11)
    assert [score.value for score in scores] == [0.8] * 11
    assert 0.5 <= time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        "many",
        {"prompt_tokens": None},
        {"prompt_tokens": "10"},
        {"prompt_tokens": 1e999},
    ],
)
def test_the_budget_holds_where_an_answer_does_not_say_what_it_cost(usage: Any) -> None:
    """Counted as the most that it can have cost; 1e999 is read as Infinity, which is no JSON."""
    with hostile(says(reply("GRADE: 8", usage=usage))) as server:
        judge = make(server.url, price_in=1e6, budget=100.0)
        first, second = graded(judge), graded(judge)
    prompt = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])["messages"][0]["content"]
    if usage == {"prompt_tokens": 1e999}:
        assert first[0].status == "grader_error"
        return
    assert first[0].value == 0.8
    assert judge.cost == len(prompt)
    assert second[0].detail == "the budget is spent"


def test_a_cost_below_nothing_does_not_pay_for_the_next() -> None:
    usage = {"prompt_tokens": -1e6, "completion_tokens": -5}
    with hostile(says(reply("GRADE: 8", usage=usage))) as server:
        judge = make(server.url, price_in=1.0, price_out=1.0)
        graded(judge)
    assert judge.cost == 0.0


def test_a_damaged_cache_is_asked_again(tmp_path: Path) -> None:
    with hostile(says(GOOD)) as server:
        judge = make(server.url, cache=str(tmp_path))
        graded(judge)
        (file,) = tmp_path.iterdir()
        whole_file = file.read_bytes()
        damages = [b"", whole_file[:9], b"\xff\xfe", b"[]", b"null", b"{}", b'{"reply": 3}']
        for asked, content in enumerate([*damages, b"[" * 100_000], start=1):
            file.write_bytes(content)
            assert graded(judge)[0].value == 0.8
            assert file.read_bytes() == whole_file
            assert (len(server.requests), judge.cached) == (asked + 1, 0)
        graded(judge)
        assert judge.cached == 1


def test_settings_that_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "")
    for settings, why in (
        ({"api_key_env": "JUDGE_KEY"}, "judge: api_key_env = 'JUDGE_KEY'.*empty or not set"),
        ({"timeout": 0}, "timeout and deadline are seconds"),
        ({"deadline": -1}, "timeout and deadline are seconds"),
        ({"concurrency": 0}, "must be positive"),
    ):
        with pytest.raises(GrpoError, match=why):
            make("http://127.0.0.1:9", **settings)
    for url in ("http://me:hunter2@host/v1", "host/v1", "file:///etc/passwd"):
        with pytest.raises(GrpoError, match="judge: url = ") as caught:
            make(url)
        assert "hunter2" not in str(caught.value)


def test_hostile_replies_are_read_in_linear_time() -> None:
    for text in ("\n" * 500_000, "GRADE:" + " " * 500_000, "GRADE: 1" * 60_000, " \n" * 250_000):
        with hostile(says(reply(text))) as server:
            started = time.monotonic()
            assert graded(make(server.url))[0].status == "grader_error"
            assert time.monotonic() - started < 2


def test_what_a_judge_says_can_be_written_down() -> None:
    with hostile(says(reply("\ud800 aye\nGRADE: 8"))) as server:
        (score,) = graded(make(server.url))
    assert score.value == 0.8
    score.detail.encode()
