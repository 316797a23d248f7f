"""The judge against a local endpoint; the sentinel against planted hacks."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from grpo.rewards import RewardSet
from grpo.rewards.accuracy import Accuracy
from grpo.rewards.judge import Judge
from grpo.rewards.sentinel import entropy, sentinel, warnings
from grpo.types import Completion, Group, Prompt, Rollout, Segment, Task, Version


def make_prompt(uid="t", answer="4"):
    return Prompt(task=Task(uid=uid, prompt="2 + 2?", answer=answer), text="", ids=(1,))


def make_completion(text):
    segment = Segment(
        ids=np.array([1]), version=Version(step=0, hash=""), logprobs=np.zeros(1, np.float32)
    )
    return Completion(request="r", index=0, segments=(segment,), text=text, finish="stop")


@pytest.fixture
def endpoint():
    """A server that grades by the text it is sent, fails first, and counts."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = body["messages"][0]["content"]
            seen.append((content, self.headers.get("Authorization")))
            if len(seen) == 1:
                self.send_error(503)
                return
            grade = "GRADE: 8" if "good" in content else "I like it. GRADE: 9 or so"
            usage = {"prompt_tokens": 1000, "completion_tokens": 10}
            reply = {"choices": [{"message": {"content": grade}}], "usage": usage}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_judge_grades_caches_counts_and_stops(endpoint, tmp_path, monkeypatch):
    url, seen = endpoint
    monkeypatch.setenv("JUDGE_KEY", "k")
    judge = Judge(
        url,
        "m",
        api_key_env="JUDGE_KEY",
        requests_per_minute=60_000,
        cache=str(tmp_path),
        price_in=1000.0,
        budget=1.5,
    )
    rewards = RewardSet([("judge", judge, 1.0)])
    completions = [make_completion("good")]
    (first,) = rewards.score(make_prompt(), completions)
    assert (first.value, first.status) == (0.8, "scored")
    assert len(seen) == 2  # one refusal, one retry
    assert seen[1][1] == "Bearer k"
    assert "Reference answer:\n4" in seen[1][0]
    assert judge.cost == pytest.approx(1.0)
    assert rewards.take_metrics()["judge/cost"] == pytest.approx(1.0)
    rewards.score(make_prompt(), completions)
    assert (len(seen), judge.cached) == (2, 1)
    (unclear,) = rewards.score(make_prompt(), [make_completion("odd")])
    assert (unclear.value, unclear.status) == (None, "grader_error")
    (refused,) = rewards.score(make_prompt(), [make_completion("good again")])
    assert (refused.value, refused.detail) == (None, "judge: the budget is spent")
    assert len(seen) == 3
    # TRL awaits the reward itself and wants numbers
    assert asyncio.run(judge(prompts=["2 + 2?"], completions=["good"], answer=["4"])) == [0.8]
    rewards.close()


def make_group(uid, answer, *texts):
    prompt = make_prompt(uid, answer)
    verifier = Accuracy()
    return Group(
        prompt=prompt,
        visit=0,
        rollouts=tuple(
            Rollout(
                prompt=prompt,
                completion=make_completion(text),
                score=verifier.verify(text, prompt.task),
            )
            for text in texts
        ),
    )


def test_a_healthy_batch_raises_no_warning():
    groups = [
        make_group(
            str(i), str(i), f"<think>one and {i} is</think><answer>{i}</answer>", "<think>hm, no"
        )
        for i in range(4)
    ]
    metrics = sentinel(groups, Accuracy())
    assert metrics["sentinel/second_opinion"] == 1.0
    assert metrics["sentinel/format_minus_accuracy"] == pytest.approx(0.0)
    assert metrics["sentinel/answer_entropy"] == pytest.approx(0.5 + 4 * (1 / 8) * 3)
    assert warnings(metrics) == []
    assert sentinel([]) == {}
    assert entropy(["a"]) == 0.0


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("<think>x y</think><answer>7</answer>", "sentinel/identical_answers"),
        (r"\boxed{1} \boxed{2} \boxed{3} no idea", "sentinel/boxes"),
        ("<think>" + "so we go " * 50 + "</think><answer>1</answer>", "sentinel/repetition"),
        ("<think></think><answer>1</answer>", "sentinel/empty_thoughts"),
        ("<think>a</think><answer>1</answer><answer>2</answer>", "sentinel/tag_anomalies"),
        ("<think>a b c</think><answer>9</answer>", "sentinel/format_minus_accuracy"),
    ],
)
def test_each_planted_hack_trips_its_threshold(text, metric):
    groups = [make_group(str(i), str(i + 20), text, text) for i in range(4)]
    assert any(line.startswith(metric) for line in warnings(sentinel(groups)))


def test_a_verifier_that_pays_everything_is_noticed():
    class Generous(Accuracy):
        def verify(self, completion, task):
            return super().verify(completion, Task(uid="", prompt="", answer=completion))

    groups = [make_group(str(i), str(i), "<answer>wrong</answer>") for i in range(4)]
    assert sentinel(groups, Accuracy())["sentinel/second_opinion"] == 1.0
    paid = [make_group(str(i), "x", "<answer>x</answer>") for i in range(4)]

    class Strict(Accuracy):
        def verify(self, completion, task):
            return super().verify(completion, Task(uid="", prompt="", answer="never"))

    metrics = sentinel(paid, Strict())
    assert metrics["sentinel/second_opinion"] == 0.0
    assert any("second_opinion" in line for line in warnings(metrics))
