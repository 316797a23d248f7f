"""What every engine has to do, as tests that any engine can be put through.

    class TestMine(EngineContract):
        @pytest.fixture
        def engine(self):
            mine = MyEngine(self.model(), Letters(), version=V0)
            yield mine
            mine.close()

The engine samples from `model(0)`, with the version V0. What it does not promise is set to False.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from grpo.errors import EngineError, WeightsError
from grpo.model.canary import canary_logprob
from grpo.model.content_hash import content_hash
from grpo.rollout.answers import check_answer
from grpo.types import Engine, Request, Version

from .tiny_models import V0, VOCAB, drain, full_logprobs, ragged, run, tiny

LATE, SOON = -1.0, 60.0  # deadlines, in seconds from now


class EngineContract:
    """Tests of an engine; see the module."""

    models = True  # log-probs are those of a model, which `load_weights` replaces
    keyed = True  # a sample depends on its noise key and the weights, not on what else is sampled
    stops = True  # stop strings are looked for
    knows_limits = True  # refuses at once what does not fit its vocabulary and its positions
    stepwise = True  # a step is less than a completion, and `poll` may end after any
    prompt_deadlines = True  # what is late before it begins is aborted without a token
    compares_hashes = False  # refuses weights itself that are not those announced
    closes = True  # the engine is of one test alone
    vocab_size: ClassVar[int] = VOCAB
    positions: ClassVar[int] = 128
    tolerance: ClassVar[float] = 1e-4  # of a log-prob, in nats

    def model(self, seed: int = 0) -> Any:
        """The model the engine starts with (seed 0), and others of its shape."""
        return tiny("llama", seed)

    @pytest.fixture
    def engine(self) -> Any:
        """The engine, with nothing under way; closed afterwards."""
        raise NotImplementedError

    # What is asked, and how the answers are compared

    def asked(self, count: int = 5, n: int = 3, **sampling: Any) -> list[Request]:
        return ragged(count, n, **sampling)

    def answered(self, engine: Engine, requests: list[Request]) -> dict[tuple[str, int], Any]:
        """All completions, which are checked as in training."""
        done = run(engine, requests)
        wanted = {r.uid: r for r in requests}
        assert sorted(done) == sorted((r.uid, i) for r in requests for i in range(r.n))
        for (uid, _), completion in done.items():
            check_answer(wanted[uid], completion, vocab_size=self.vocab_size)
        return done

    def check_logprobs(self, model: Any, requests: list[Request], done: Any) -> None:
        """The first segment of each completion has the log-probs that `model` gives its tokens."""
        wanted = {r.uid: r for r in requests}
        for (uid, _), completion in done.items():
            first, asked = completion.segments[0], wanted[uid]
            if len(first.ids):
                own = full_logprobs(model, asked.ids, first.ids, asked.sampling.temperature)
                np.testing.assert_allclose(first.logprobs, own, atol=self.tolerance)

    @staticmethod
    def version(model: Any, step: int = 1) -> Version:
        return Version(step=step, hash=content_hash(model.named_parameters()))

    # Requests and completions

    def test_each_request_is_answered_once_a_sample(self, engine: Any) -> None:
        assert isinstance(engine, Engine)
        for _ in range(2):  # the names are free again
            done = self.answered(engine, self.asked())
            assert {s.version for c in done.values() for s in c.segments} == {V0}
            assert engine.poll() == []

    def test_logprobs_are_those_of_the_model(self, engine: Any) -> None:
        if not self.models:
            pytest.skip("it has no model")
        requests = self.asked(temperature=0.8)
        done = self.answered(engine, requests)
        self.check_logprobs(self.model(), requests, done)
        assert len({tuple(c.ids.tolist()) for c in done.values()}) > len(done) // 2

    def test_a_sample_depends_on_its_key_and_not_on_the_batch(self, engine: Any) -> None:
        if not self.keyed:
            pytest.skip("it does not promise this")
        requests = self.asked()
        crowd = self.answered(engine, requests)
        for each in requests:
            for key, completion in self.answered(engine, [each]).items():
                assert completion.ids.tolist() == crowd[key].ids.tolist()
        if self.models:
            others = [replace(r, key=(*r.key[:-1], 99 + r.key[-1])) for r in requests]
            assert any(
                completion.ids.tolist() != crowd[key].ids.tolist()
                for key, completion in self.answered(engine, others).items()
            )

    def test_any_eos_ends_a_completion_and_is_part_of_it(self, engine: Any) -> None:
        free = self.answered(engine, self.asked(max_tokens=30))
        ends = {int(completion.ids[2]) for completion in list(free.values())[:2]}
        done = self.answered(engine, self.asked(max_tokens=30, eos_ids=tuple(ends)))
        for completion in done.values():
            ids = completion.ids.tolist()
            assert not ends & set(ids[:-1])
            assert completion.finish == ("stop" if ids[-1] in ends else "length")
        assert any(completion.finish == "stop" for completion in done.values())

    def test_each_request_has_its_own_limit(self, engine: Any) -> None:
        limits = [1, 2, 5, 20]
        requests = [
            replace(r, sampling=replace(r.sampling, max_tokens=limit))
            for r, limit in zip(self.asked(4), limits, strict=True)
        ]
        done = self.answered(engine, requests)
        for each, limit in zip(requests, limits, strict=True):
            for index in range(each.n):
                completion = done[each.uid, index]
                assert len(completion) <= limit
                assert (completion.finish == "length") == (len(completion) == limit)

    def test_nothing_follows_a_stop_string(self, engine: Any) -> None:
        if not self.stops:
            pytest.skip("it does not look for them")
        free = self.answered(engine, self.asked(max_tokens=24))
        words = [c.text[3:5] for c in free.values() if len(c.text) > 4][:2]
        done = self.answered(engine, self.asked(max_tokens=24, stop=tuple(words)))
        for key, completion in done.items():
            ends = [completion.text.find(w) + len(w) for w in words if w in completion.text]
            assert completion.finish == ("stop" if ends else "length")
            assert not ends or len(completion.text) == min(ends)
            if self.keyed:
                assert completion.ids.tolist() == free[key].ids.tolist()[: len(completion)]
                assert free[key].text.startswith(completion.text)
        assert any(completion.finish == "stop" for completion in done.values())

    # Requests that are not answered

    def test_what_is_late_is_aborted_and_the_rest_is_not(self, engine: Any) -> None:
        late, soon = (
            replace(r, deadline=time.monotonic() + seconds)
            for r, seconds in zip(self.asked(2), (LATE, SOON), strict=True)
        )
        done = self.answered(engine, [late, soon])
        for (uid, _), completion in done.items():
            if uid == soon.uid:
                assert completion.finish != "abort"
            elif self.prompt_deadlines:
                assert (completion.finish, completion.text, len(completion)) == ("abort", "", 0)
                assert [s.version for s in completion.segments] == [V0]

    def test_a_deadline_ends_what_is_under_way(self, engine: Any) -> None:
        (each,) = self.asked(1, max_tokens=self.positions // 2)
        engine.submit([replace(each, deadline=time.monotonic() + 0.01)])
        found = engine.poll(timeout=0)
        time.sleep(0.02)
        done = [*found, *drain(engine).values()]
        assert sorted(c.index for c in done) == list(range(each.n))
        for completion in done:
            check_answer(each, completion, vocab_size=self.vocab_size)
            # No engine takes so many steps by then.
            assert completion.finish == "abort" or not self.stepwise

    def test_canceled_requests_do_not_come_back(self, engine: Any) -> None:
        requests = self.asked(max_tokens=20)
        want = self.answered(engine, requests) if self.keyed else {}
        gone = {"r1", "r4"}
        engine.submit(requests)
        begun = {(c.request, c.index): c for c in engine.poll(timeout=0)}
        engine.cancel([*gone, "nobody"])
        done = {**begun, **drain(engine)}
        left = {key: c for key, c in done.items() if key[0] not in gone}
        assert sorted(left) == sorted((r.uid, i) for r in requests for i in range(r.n)
                                      if r.uid not in gone)  # fmt: skip
        assert not {key for key in done if key[0] in gone} - set(begun)
        for key, completion in left.items():
            assert not want or completion.ids.tolist() == want[key].ids.tolist()
        self.answered(engine, [r for r in requests if r.uid in gone])  # their names are free

    def test_a_name_that_is_queued_is_refused_with_its_whole_batch(self, engine: Any) -> None:
        first, second = self.asked(2)
        engine.submit([first])
        for batch in ([second, first], [second, second]):
            with pytest.raises(EngineError, match=r"request 'r[01]' is queued already"):
                engine.submit(batch)
        assert {uid for uid, _ in drain(engine)} == {first.uid}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"n": 0}, "asks for n=0"),
            ({"max_tokens": 0}, "max_tokens=0"),
            ({"ids": ()}, "has no prompt tokens"),
        ],
    )
    def test_what_nobody_can_sample_is_refused_with_its_whole_batch(
        self, engine: Any, change: dict[str, Any], message: str
    ) -> None:
        good, bad = self.asked(2)
        if "max_tokens" in change:
            bad = replace(bad, sampling=replace(bad.sampling, **change))
        else:
            bad = replace(bad, **change)
        with pytest.raises(EngineError, match=f"request 'r1' .*{message}"):
            engine.submit([good, bad])
        assert engine.poll() == []

    def test_what_does_not_fit_the_model_is_refused_with_its_whole_batch(self, engine: Any) -> None:
        if not self.knows_limits:
            pytest.skip("it does not know them")
        good, bad = self.asked(2)
        most = self.positions - len(bad.ids)
        foreign = replace(bad, ids=(*bad.ids, self.vocab_size))
        long = replace(bad, sampling=replace(bad.sampling, max_tokens=most + 1))
        last = self.vocab_size - 1
        for wrong, message in (
            (foreign, f"token ids outside 0..{last}"),
            (long, f"needs {self.positions + 1} positions"),
        ):
            with pytest.raises(EngineError, match=f"request 'r1' .*{message}"):
                engine.submit([good, wrong])
        assert engine.poll() == []

    def test_poll_returns_in_time_and_loses_nothing(self, engine: Any) -> None:
        started = time.monotonic()
        assert engine.poll() == engine.poll(timeout=30) == []
        assert time.monotonic() - started < 1
        requests = self.asked()
        engine.submit(requests)
        found: list[Any] = engine.poll(timeout=0)
        assert not (self.stepwise and found)
        while len(found) < sum(r.n for r in requests):
            found += engine.poll(timeout=0)
            assert time.monotonic() - started < 60
        assert len({(c.request, c.index) for c in found}) == len(found)

    # Weights

    def test_new_weights_are_acknowledged_and_sampled_from(self, engine: Any) -> None:
        if not self.models:
            pytest.skip("it has no model")
        requests = self.asked()
        before = self.answered(engine, requests)
        new = self.model(1)
        version = self.version(new)
        ack = engine.load_weights(new.named_parameters(), version)
        assert (ack.version, ack.tensors) == (version, len(list(new.named_parameters())))
        assert ack.canary == pytest.approx(canary_logprob(new), abs=1e-3)
        done = self.answered(engine, requests)
        assert {s.version for c in done.values() for s in c.segments} == {version}
        self.check_logprobs(new, requests, done)
        assert any(c.ids.tolist() != before[key].ids.tolist() for key, c in done.items())

    def test_the_acknowledged_hash_is_of_what_came(self, engine: Any) -> None:
        if not self.models:
            pytest.skip("it has no model")
        new = self.model(1)
        claimed = Version(step=3, hash="not of these tensors")
        if self.compares_hashes:
            with pytest.raises(WeightsError, match=claimed.hash):
                engine.load_weights(new.named_parameters(), claimed)
        else:
            ack = engine.load_weights(new.named_parameters(), claimed)
            assert ack.version == self.version(new, 3)

    @pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
    def test_a_wrong_set_is_refused_and_nothing_is_sampled_from_it(
        self, engine: Any, fault: str
    ) -> None:
        if not self.models:
            pytest.skip("it has no model")
        new = self.model(1)
        good = dict(new.named_parameters())
        name = "model.norm.weight"
        bad = dict(good)
        if fault == "missing":
            del bad[name]
        elif fault == "unknown":
            bad[name + "s"] = bad[name]
        else:
            bad[name] = torch.nn.Parameter(torch.zeros(3))
        with pytest.raises(WeightsError):
            engine.load_weights(bad.items(), self.version(new))
        requests = self.asked(2)
        engine.submit(requests)
        with pytest.raises(WeightsError, match="load a full set first"):
            engine.poll()
        engine.load_weights(good.items(), self.version(new, 2))
        self.check_logprobs(new, requests, drain(engine))

    @pytest.mark.parametrize("in_flight", ["finish", "continue"])
    def test_what_is_under_way_is_finished_or_continued(self, engine: Any, in_flight: Any) -> None:
        if not self.models:
            pytest.skip("it has no model")
        old, new = self.model(), self.model(1)
        version = self.version(new)
        requests = self.asked(6, max_tokens=20)
        engine.submit(requests)
        done = {(c.request, c.index): c for _ in range(3) for c in engine.poll(timeout=0)}
        engine.load_weights(new.named_parameters(), version, in_flight)
        done |= drain(engine)
        assert len(done) == sum(r.n for r in requests)
        order = {V0: 0, version: 1}
        for completion in done.values():
            places = [order[segment.version] for segment in completion.segments]
            assert places == sorted(set(places))
            assert in_flight == "continue" or len(places) == 1
        for model, of in ((old, V0), (new, version)):
            begun = {key: c for key, c in done.items() if c.segments[0].version == of}
            self.check_logprobs(model, requests, begun)
        assert {
            s.version for c in self.answered(engine, requests).values() for s in c.segments
        } == {version}

    def test_there_is_no_third_way(self, engine: Any) -> None:
        with pytest.raises(EngineError, match=r"in_flight 'drop'\. Valid: continue, finish\."):
            engine.load_weights(self.model().named_parameters(), V0, "drop")
        self.answered(engine, self.asked(1))  # and nothing has happened

    # The rest

    def test_metrics_are_numbers_by_name(self, engine: Any) -> None:
        self.answered(engine, self.asked(2))
        for metrics in (engine.take_metrics(), engine.take_metrics()):
            assert all(math.isfinite(value) for value in metrics.values())
            assert all(isinstance(name, str) for name in metrics)

    def test_sleep_and_wake_change_nothing(self, engine: Any) -> None:
        want = self.answered(engine, self.asked())
        engine.sleep()
        engine.wake()
        for key, completion in self.answered(engine, self.asked()).items():
            assert not self.keyed or completion.ids.tolist() == want[key].ids.tolist()

    def test_it_closes_over_its_work_and_twice(self, engine: Any) -> None:
        if not self.closes:
            pytest.skip("the engine serves other tests as well")
        engine.submit(self.asked())
        engine.poll(timeout=0)
        engine.close()
        engine.close()
