"""Memory of all guests together: what is reserved, who waits, and who is ended first."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grpo.errors import RewardError
from grpo.rewards.code.reward import Code
from grpo.rewards.math.reward import Math
from grpo.rewards.sandbox import guest_memory
from grpo.rewards.sandbox.guest_memory import ROOM, Lender, Room
from grpo.rewards.sandbox.probe import probe
from grpo.rewards.sandbox.sandbox import Limits, Sandbox
from grpo.types import Task

TIERS = ("landlock+namespaces", "namespaces", "bubblewrap", "landlock")
ADD = Task(uid="", prompt="", columns={"tests": {"asserts": ["assert f(1) == 2"]}})
RIGHT = "```python\ndef f(x):\n    return x + 1\n```"


@pytest.fixture
def small(monkeypatch):
    """Room for one gibibyte, whatever this machine has."""
    monkeypatch.setattr(ROOM, "_most", 1 << 30)
    assert ROOM.taken == 0
    yield
    assert ROOM.taken == 0


def test_those_who_find_no_room_wait_and_come_in_their_order():
    place = Room(lambda: 10)
    place.take(6)
    came: list[int] = []

    def enter(amount: int) -> None:
        place.take(amount)
        came.append(amount)

    threads = [threading.Thread(target=enter, args=(amount,)) for amount in (8, 3, 1)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    assert came == []  # 3 and 1 would fit, but 8 was there first and would wait for ever
    place.give(6)
    for thread in threads[:1]:
        thread.join(5)
    time.sleep(0.1)
    assert came == [8]
    place.give(8)
    for thread in threads:
        thread.join(5)
    assert came == [8, 3, 1]
    assert place.taken == 4


def test_one_alone_gets_in_however_much_it_asks_for():
    place = Room(lambda: 10)
    place.take(11)
    place.give(11)
    assert place.taken == 0


def test_idle_guests_are_ended_for_those_who_wait():
    place = Room(lambda: 10)

    class Idle(Lender):
        left = 3

        def shed(self) -> bool:
            if not self.left:
                return False
            self.left -= 1
            place.give(3)
            return True

    lender = Idle()
    place.know(lender)
    place.take(9)
    place.take(6)  # two of the three are enough
    assert (lender.left, place.taken) == (1, 9)


def test_a_wait_that_is_interrupted_leaves_the_queue(monkeypatch):
    place = Room(lambda: 10)
    place.take(10)

    class Impatient(Lender):
        def shed(self) -> bool:
            raise KeyboardInterrupt

    lender = Impatient()
    place.know(lender)
    with pytest.raises(KeyboardInterrupt):
        place.take(5)
    del lender
    place.give(10)
    place.take(10)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "5000\n"}, 5000),
        # a group above allows less, and that counts
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "3000\n",
                "sys/fs/cgroup/a/b/memory.max": "5000\n",
            },
            3000,
        ),
        # a container's own group is its root
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "7000\n"}, 7000),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/\n",
                "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "9000\n",
            },
            9000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            None,
        ),
    ],
)
def test_the_memory_there_is(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert guest_memory.memory(Path(tmp_path)) == (expected or machine)


def test_programs_that_do_not_fit_wait_and_are_right(small):
    """Each takes 1 GiB for itself and its tests, eight at once: one after the other."""
    reward = Code(workers=8, memory_mb=512)
    most: list[int] = []
    stop = threading.Event()
    watch = threading.Thread(
        target=lambda: [most.append(ROOM.taken) or time.sleep(0.001) for _ in iter(stop.is_set, 1)]
    )
    try:
        reward.verify(RIGHT, ADD)
        watch.start()
        found = reward.verify_all([RIGHT] * 16, [ADD] * 16)
    except RewardError as error:
        pytest.skip(str(error))
    finally:
        stop.set()
        reward.close()
    watch.join()
    assert [score.value for score in found] == [1.0] * 16
    assert max(most) == 1 << 30


def test_idle_workers_of_math_make_room_for_programs(small):
    math, code = Math(workers=2, memory_mb=512), Code(workers=2)
    task = Task(uid="", prompt="", answer="x^2+1")
    texts = ["\\boxed{(x+1)^2-2x}", "\\boxed{(x-1)^2+2x}"]

    def both() -> list[float | None]:
        with ThreadPoolExecutor(2) as threads:
            return [score.value for score in threads.map(lambda t: math.verify(t, task), texts)]

    try:
        assert both() == [1.0, 1.0]
        assert ROOM.taken > 0  # a worker waits for more
        # a program asks for all the room there is and more: it has to be alone
        assert code.verify_all([RIGHT] * 4, [ADD] * 4)[0].value == 1.0
        assert both() == [1.0, 1.0]
    except RewardError as error:
        pytest.skip(str(error))
    finally:
        math.close()
        code.close()


def test_a_guest_of_a_sandbox_that_is_gone_does_not_end_one_of_the_next():
    """Both zygotes count their guests from the same number."""
    if not probe("namespaces").holds:
        pytest.skip("namespaces does not hold on this machine")
    guests = Sandbox("namespaces", trial=False)
    before = guests.guest("probe", Limits())
    process = guests._process
    assert process is not None
    process.kill()
    process.wait()
    after = guests.guest("probe", Limits())
    assert before.pid % (1 << 32) == after.pid % (1 << 32)
    assert before.end() == -1
    time.sleep(0.1)
    assert after.poll() is None
    after.end()
    guests.close()
    assert ROOM.taken == 0


def scores_of(session: int) -> set[str]:
    """oom_score_adj of every process of a session and of what descends from it."""
    found: dict[int, tuple[int, str]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2]
            score = Path(f"/proc/{entry}/oom_score_adj").read_text().strip()
        except OSError:
            continue
        found[int(entry)] = (int(stat.split()[1]), score)
    below = {session}
    for _ in range(8):
        below |= {pid for pid, (parent, _) in found.items() if parent in below}
    return {found[pid][1] for pid in below if pid in found}


@pytest.mark.skipif(sys.platform != "linux", reason="the score is Linux's")
@pytest.mark.parametrize("tier", TIERS)
def test_the_kernel_ends_guests_before_their_host(tier):
    own = Path("/proc/self/oom_score_adj").read_text()
    guests = Sandbox(tier, trial=False)
    try:
        guest = guests.guest("probe", Limits())
    except RewardError as error:
        pytest.skip(str(error))
    process = guests._process
    assert process is not None
    found = scores_of(process.pid)
    guest.end()
    guests.close()
    assert found == {"1000"}
    assert Path("/proc/self/oom_score_adj").read_text() == own


FORKED = """
import os, sys
from grpo.rewards.sandbox.guest_memory import ROOM
ROOM.take(5)
pid = os.fork()
if pid == 0:
    os._exit(ROOM.taken)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), ROOM.taken)
"""


def test_a_forked_process_has_room_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert done.stdout == "0 5\n", done.stderr
