"""A pool of scripted workers: who gets what, and what a lost worker changes. No Ray."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from grpo.errors import EngineError, WeightsError
from grpo.rollout.collect import collect
from grpo.rollout.fake import FakeEngine
from grpo.rollout.pool.engine_pool import PoolEngine
from grpo.types import EnginePool, Version
from tests.rollout.tiny_models import V0, Letters, request

V1, V2 = Version(step=1, hash="one"), Version(step=2, hash="two")


def script(req, index):
    """Letters that tell request and sample apart."""
    return "abcdefghij"[req.key[-1]] * (index + 1)


class Engine(FakeEngine):
    """Hands out one completion a poll, and waits a little where it has none."""

    def __init__(self, plan):
        super().__init__(script, Letters(), version=V0, canary=plan.canary)
        self.plan = plan
        self.polls = 0

    def poll(self, timeout=None):
        self.polls += 1
        return self.plan.poll(self, timeout) if self.plan.poll else super().poll(timeout)

    def load_weights(self, weights, version, in_flight="finish"):
        ack = super().load_weights(weights, version, in_flight)
        return self.plan.load(self, ack) if self.plan.load else ack

    def take_metrics(self):
        return {"drafts": self.plan.canary, "common": 1.0}


class Plan:
    """What one worker does, from its start to its end."""

    def __init__(self, poll=None, load=None, start=None, canary=0.0):
        self.poll, self.load, self.start, self.canary = poll, load, start, canary


class Worker:
    """A `Worker` in a thread. `release` lets a hanging call go on after the worker was killed."""

    def __init__(self, name: str, plan: Plan, log: list):
        self.name, self.plan, self.log = name, plan, log
        self.killed = threading.Event()
        self.engine: Engine | None = None
        self.thread = ThreadPoolExecutor(1)

    def call(self, method, *args) -> Future:
        self.log.append((self.name, method, args))
        if method == "start":
            return self.thread.submit(self._start)
        return self.thread.submit(lambda: getattr(self.engine, method)(*args))

    def _start(self):
        if self.plan.start:
            self.plan.start(self)
        self.engine = Engine(self.plan)
        self.engine.plan.worker = self

    def kill(self):
        self.killed.set()
        self.thread.shutdown(wait=False)


class Hall:
    """Makes workers: `plans` in the order they are asked for, then ordinary ones."""

    def __init__(self, *plans: Plan):
        self.plans, self.made, self.log = list(plans), [], []

    def __call__(self, index: int) -> Worker:
        plan = self.plans.pop(0) if self.plans else Plan()
        self.made.append(Worker(f"worker {index + 1}", plan, self.log))
        return self.made[-1]

    def calls(self, method: str) -> list:
        return [(name, args) for name, called, args in self.log if called == method]


@pytest.fixture
def pools():
    """Makes pools, and closes them whatever happens."""
    made: list[PoolEngine] = []

    def make(hall: Callable, workers: int = 2, timeout: float = 20, **options) -> PoolEngine:
        made.append(PoolEngine(hall, workers, timeout, version=V0, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def requests(count=6, n=3, **sampling):
    return [request(f"r{i}", [1, 2], n=n, key=i, eos_ids=(0,), **sampling) for i in range(count)]


def texts(engine, asked):
    return {uid: [c.text for c in cs] for uid, cs in collect(engine, asked)}


WANT = {f"r{i}": ["abcdefghij"[i] * n for n in (1, 2, 3)] for i in range(6)}


def test_groups_come_back_whole_from_two_workers(pools):
    pool = pools(Hall(Plan(canary=0.25), Plan(canary=0.75)))
    assert isinstance(pool, EnginePool)
    assert texts(pool, requests()) == WANT
    metrics = pool.take_metrics()
    assert metrics["rollout/worker_1_completions"] + metrics["rollout/worker_2_completions"] == 18
    assert metrics["rollout/worker_1_completions"] == 9  # equal work is shared out equally
    assert metrics["rollout/workers_replaced"] == metrics["rollout/groups_reissued"] == 0
    assert (metrics["drafts"], metrics["common"]) == (0.5, 1)  # the mean of both
    assert pool.take_metrics()["rollout/worker_1_completions"] == 0


def test_the_longest_go_first_and_the_rest_waits_for_whoever_is_done_early(pools):
    gate = threading.Event()

    def slow(engine, timeout):
        # as long as a worker decodes: one that comes back empty at once, often, is taken for lost
        return FakeEngine.poll(engine) if gate.wait(0.3) else []

    hall = Hall(Plan(poll=slow), Plan())
    pool = pools(hall, window=3)
    asked = [
        replace(r, sampling=replace(r.sampling, max_tokens=m))
        for r, m in zip(requests(), [10, 60, 20, 50, 30, 40], strict=True)
    ]
    found: dict[str, list[str]] = {}
    for uid, completions in collect(pool, asked):
        found[uid] = [c.text for c in completions]
        if len(found) == 5:  # worker 2 took all but the one request that worker 1 sits on
            gate.set()
    assert found == WANT
    given = [(name, [r.uid.split("~")[0] for r in args[0]]) for name, args in hall.calls("submit")]
    assert given == [
        ("worker 1", ["r1"]),
        ("worker 2", ["r3"]),
        ("worker 2", ["r5"]),
        ("worker 2", ["r4"]),
        ("worker 2", ["r2"]),
        ("worker 2", ["r0"]),
    ]


def test_what_a_prompt_took_the_last_time_decides_how_long_it_is(pools):
    hall = Hall()
    pool = pools(hall, workers=1, window=1)
    short = replace(requests(1, n=1, max_tokens=100)[0], key=(7, 0))
    long = replace(requests(2, n=1, max_tokens=20)[1], key=(8, 1))
    texts(pool, [short])  # two tokens
    texts(pool, [replace(short, uid="again", key=(7, 1)), long])
    order = [args[0][0].uid.split("~")[0] for _, args in hall.calls("submit")]
    assert order == ["r0", "r1", "again"]


def dies(after: int):
    def poll(engine, timeout):
        if engine.polls > after:
            raise OSError("the process is gone")
        return FakeEngine.poll(engine)

    return poll


def hangs(after: int):
    def poll(engine, timeout):
        if engine.polls > after:
            engine.plan.worker.killed.wait(30)
        return FakeEngine.poll(engine)  # after the kill: a late answer

    return poll


@pytest.mark.parametrize("fault", [dies, hangs])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_lost_worker_is_replaced_and_its_groups_come_once(pools, fault, after):
    hall = Hall(Plan(poll=fault(after)))
    pool = pools(hall, timeout=20 if fault is dies else 2)
    pool.load_weights([], V1)
    assert texts(pool, requests()) == WANT  # collect raises on what comes twice
    metrics = pool.take_metrics()
    assert metrics["rollout/workers_replaced"] == 1
    # worker 1 had three requests, and had finished the first one after its third answer
    assert metrics["rollout/groups_reissued"] == (2 if after == 4 else 3)
    assert len(hall.made) == 3
    assert hall.made[0].killed.is_set()
    assert not hall.made[1].killed.is_set()
    while hall.made[2].engine is None or len(hall.made[2].engine.versions) < 2:
        assert pool.poll(0.01) == []
    assert hall.made[2].engine.versions == [V0, V1]  # the weights published last
    assert texts(pool, requests()) == WANT


def test_late_answers_of_a_worker_given_up_are_nobodys(pools):
    late: list[Future] = []

    class Late(Worker):
        def call(self, method, *args):
            if method != "poll" or self is not first:
                return super().call(method, *args)
            late.append(Future())
            return late[-1]

    hall = Hall()
    hall_make = Hall.__call__
    first = None

    def start(index):
        nonlocal first
        worker = hall_make(hall, index)
        worker.__class__ = Late
        first = first or worker
        return worker

    pool = pools(start, workers=1, timeout=1)
    asked = requests(1)
    pool.submit(asked)
    got = pool.poll(10)
    wire = hall.calls("submit")[0][1][0][0].uid
    stale = [replace(c, request=wire, text="stale") for c in got]
    late[0].set_result(stale)
    while more := pool.poll():
        got += more
    assert sorted(c.text for c in got) == ["a", "aa", "aaa"]
    assert {c.request for c in got} == {"r0"}


def test_a_worker_that_keeps_failing_ends_the_run_and_is_named(pools):
    def broken(worker):
        raise OSError("no memory left")

    with pytest.raises(EngineError, match=r"worker 1 was lost 3 times .*OSError: no memory left"):
        pools(Hall(*(Plan(start=broken) for _ in range(3))), workers=1)
    ill = [Plan(poll=dies(0)) for _ in range(3)]
    with pytest.raises(EngineError, match=r"worker 1 was lost 3 times.*the process is gone"):
        texts(pools(Hall(*ill), workers=1), requests())


def test_an_engine_that_cannot_be_made_is_reported_at_once(pools):
    def refuse(worker):
        raise EngineError("max_rows must be at least 1, not 0")

    hall = Hall(Plan(), Plan(start=refuse))
    with pytest.raises(EngineError, match="worker 2: max_rows must be"):
        pools(hall)
    assert len(hall.made) == 2
    assert all(worker.killed.is_set() for worker in hall.made)


def test_a_request_that_ends_every_worker_ends_the_run(pools):
    def poison(engine, timeout):
        # each worker finishes one request of the others before it dies of this one
        if engine.polls > 3 and any(j.request.key[-1] == 5 for j in engine._queue):
            raise OSError("illegal instruction")
        return FakeEngine.poll(engine)

    pool = pools(Hall(*(Plan(poll=poison) for _ in range(9))), workers=1)
    found = []
    with pytest.raises(EngineError, match=r"'r5' was with 5 workers.*illegal instruction"):
        found.extend(uid for uid, _ in collect(pool, requests()))
    assert found == ["r0", "r1", "r2", "r3", "r4"]


def test_workers_may_be_lost_as_often_as_work_goes_on(pools):
    pool = pools(Hall(*(Plan(poll=dies(4)) for _ in range(3))), workers=1)
    assert texts(pool, requests(4)) == {uid: WANT[uid] for uid in ("r0", "r1", "r2", "r3")}
    assert pool.take_metrics()["rollout/workers_replaced"] == 3


def test_a_worker_that_forgets_its_requests_is_replaced(pools):
    def forget(engine, timeout):
        engine._queue.clear()
        return []

    pool = pools(Hall(Plan(poll=forget)))
    assert texts(pool, requests()) == WANT
    assert pool.take_metrics()["rollout/workers_replaced"] == 1


def test_a_refused_request_is_the_callers_error(pools):
    pool = pools(Hall())
    pool.submit(requests(1))
    with pytest.raises(EngineError, match="'r0' is queued already"):
        pool.submit(requests(1))
    with pytest.raises(EngineError, match="'twice' is queued already"):
        pool.submit([request("twice", [1]), request("twice", [1])])
    assert len(pool.poll()) + len(pool.poll()) + len(pool.poll()) == 3
    assert pool.poll() == []


def test_a_canceled_uid_may_be_used_again_while_its_old_answer_is_under_way(pools):
    gate = threading.Event()

    def slow(engine, timeout):
        gate.wait(10)
        return FakeEngine.poll(engine)

    hall = Hall(Plan(poll=slow))
    pool = pools(hall, workers=1)
    pool.submit(requests(1))
    pool.poll(0.05)
    pool.cancel(["r0", "unknown"])
    assert hall.calls("cancel") == [("worker 1", (["r0~1"],))]  # it need not sample them
    threading.Timer(0.2, gate.set).start()
    other = replace(request("r0", [1, 2], n=2, key=5, eos_ids=(0,)), uid="r0")
    assert texts(pool, [other]) == {"r0": ["f", "ff"]}
    assert pool.poll() == []


def test_members_serve_alone_and_by_name(pools):
    hall = Hall()
    pool = pools(hall, workers=3)
    assert [name for name, _ in pool.members] == ["worker 1", "worker 2", "worker 3"]
    for name, member in pool.members:
        before = len(hall.calls("submit"))
        assert texts(member, requests()) == WANT
        assert {given for given, _ in hall.calls("submit")[before:]} == {name}
    with pytest.raises(EngineError, match="into the pool, not into worker 2"):
        pool.members[1][1].load_weights([], V1)


def test_each_worker_acknowledges_and_is_named(pools):
    pool = pools(Hall(Plan(canary=-1.5), Plan(canary=-2.5)))
    weights = [("a", np.zeros(2)), ("b", np.ones(1))]
    ack = pool.load_weights(weights, V1)  # pyright: ignore[reportArgumentType]
    assert (ack.version, ack.tensors, ack.canary) == (V1, 2, -1.5)
    assert [(m.engine, m.canary, m.version) for m in ack.members] == [
        ("worker 1", -1.5, V1),
        ("worker 2", -2.5, V1),
    ]


def test_other_weights_than_were_sent_stop_the_run(pools):
    def corrupt(engine, ack):
        return replace(ack, version=replace(ack.version, hash="other"))

    pool = pools(Hall(Plan(), Plan(load=corrupt)))
    with pytest.raises(WeightsError, match=r"worker 2 acknowledged .*'other'.*'one'"):
        pool.load_weights([], V1)


def test_a_worker_that_cannot_load_is_replaced_once(pools):
    def fail(engine, ack):
        raise WeightsError("38 weights did not arrive")

    hall = Hall(Plan(), Plan(load=fail))
    pool = pools(hall)
    ack = pool.load_weights([], V1)
    assert [m.version for m in ack.members] == [V1, V1]
    assert pool.take_metrics()["rollout/workers_replaced"] == 1
    assert pool.load_weights([], V2).version == V2

    again = pools(Hall(Plan(), Plan(load=fail), Plan(load=fail)))
    with pytest.raises(WeightsError, match=r"worker 2 could not load .*38 weights did not arrive"):
        again.load_weights([], V1)


def test_an_old_set_that_fails_late_is_not_held_against_its_worker(pools):
    gate, failed = threading.Event(), []

    def lie_once(engine, ack):
        if ack.version == V1:
            return replace(ack, version=replace(V1, hash="other"))
        gate.set()
        return ack

    def fail_late(engine, ack):
        if ack.version == V1:
            gate.wait(10)
            failed.append(ack.version)
            raise WeightsError("38 weights did not arrive")
        return ack

    hall = Hall(Plan(load=lie_once), Plan(load=fail_late))
    pool = pools(hall)
    with pytest.raises(WeightsError, match="worker 1 acknowledged"):
        pool.load_weights([], V1)
    assert [m.version for m in pool.load_weights([], V2).members] == [V2, V2]
    assert failed == [V1]
    assert pool.take_metrics()["rollout/workers_replaced"] == 0


def test_weights_pass_through_publish_once_and_in_flight_is_handed_on(pools):
    hall, published = Hall(), []

    def publish(weights):
        published.append(list(weights))
        return published[-1]

    pool = pools(hall, publish=publish)
    pool.load_weights(iter([("a", np.zeros(1))]), V1, "continue")  # pyright: ignore[reportArgumentType]
    pool.load_weights([], V1)  # the version does not say what is in an engine: loaded again
    assert len(published) == 2
    assert all(worker.engine.versions == [V0, V1, V1] for worker in hall.made)
    assert len(hall.calls("load_weights")) == 4
    for _, (bundle, version, in_flight) in hall.calls("load_weights")[:2]:
        assert bundle is published[0]
        assert (version, in_flight) == (V1, "continue")


def test_the_idle_share_counts_workers_without_a_request(pools):
    def slow(engine, timeout):
        time.sleep(0.1)
        return FakeEngine.poll(engine)

    pool = pools(Hall(Plan(poll=slow), Plan(poll=slow)))
    assert texts(pool, requests(1)) == {"r0": WANT["r0"]}
    assert 0.4 < pool.take_metrics()["rollout/worker_idle"] <= 0.5
    texts(pool, requests(2))
    assert pool.take_metrics()["rollout/worker_idle"] < 0.2
    assert pool.take_metrics()["rollout/worker_idle"] == 0


def test_closing_ends_workers_and_what_they_run_on(pools):
    ended = []
    hall = Hall()
    pool = PoolEngine(hall, 2, 5, version=V0, release=lambda: ended.append(True))
    pool.close()
    assert ended == [True]
    assert all(worker.killed.is_set() for worker in hall.made)
    assert [name for name, _ in hall.calls("close")] == ["worker 1", "worker 2"]
