"""Every attack scores 0 under every tier that holds, leaves nothing behind, and works without."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from corpus import ACTIONS, ATTACKS, HANGS, TRICKS, Attack
from unprotected import grade

from grpo.errors import RewardError
from grpo.rewards.code import Code
from grpo.types import Score, Task

HONEST = Attack(name="honest", code="def f(x): return x + 1")
QUICK = [*TRICKS, *ACTIONS]


def scores_under(
    tier: str, attacks: list[Attack], timeout: float, workers: int = 2
) -> dict[str, Score]:
    """Each attack's verdict under a tier, with honest code among them."""
    reward = Code(sandbox=tier, timeout=timeout, workers=workers)
    attacks = [HONEST, *attacks]
    tasks = [
        Task(uid="", prompt="", columns={"tests": {"asserts": list(a.asserts), "setup": a.setup}})
        for a in attacks
    ]
    try:
        found = reward.verify_all([f"```python\n{a.code}\n```" for a in attacks], tasks)
    except RewardError as error:
        pytest.skip(str(error))
    finally:
        reward.close()
    return {a.name: s for a, s in zip(attacks, found, strict=True)}


def unexpected(attacks: list[Attack], scores: dict[str, Score]) -> dict[str, Score]:
    """The attacks that were paid, or ended otherwise than they should."""
    return {
        a.name: scores[a.name]
        for a in attacks
        if scores[a.name].value != 0.0 or scores[a.name].status not in a.status
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tier", ["landlock+namespaces", "namespaces", "bubblewrap", "landlock"])
def test_every_attack_fails_and_honest_code_passes(tier):
    before = snapshot()
    scores = scores_under(tier, QUICK, timeout=10)
    assert scores["honest"] == Score(value=1.0, status="correct", detail="2/2")
    assert not unexpected(QUICK, scores)
    assert snapshot() == before


@pytest.mark.timeout(60)
def test_every_hang_ends_at_its_deadline():
    scores = scores_under("auto", HANGS, timeout=1.0, workers=6)
    assert not unexpected(HANGS, scores)


AS_USER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import test_attacks
assert os.geteuid() == 12345
for tier in ("auto", "landlock"):
    scores = test_attacks.scores_under(tier, test_attacks.QUICK, timeout=10)
    assert scores["honest"].value == 1.0, scores["honest"]
    wrong = test_attacks.unexpected(test_attacks.QUICK, scores)
    assert not wrong, wrong
print("held")
"""


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
def test_every_attack_fails_as_an_ordinary_user():
    # A Python below /root is out of a user's reach: show it through a view of /root of our own.
    prefix = sys.base_prefix
    reach = "true"
    if prefix.startswith("/root/"):
        reach = (
            f"mkdir /mnt/prefix && mount --bind {prefix} /mnt/prefix && "
            "mount -t tmpfs -o mode=755 none /root && "
            f"mkdir -p {prefix} && mount --bind /mnt/prefix {prefix}"
        )
    script = (
        f"mount -t tmpfs none /mnt && {reach} && cd / && exec setpriv --reuid 12345 --regid 12345 "
        '--clear-groups "$@"'
    )
    command = [sys.executable, "-c", AS_USER, os.path.dirname(__file__)]
    # stderr stays apart: a library may warn about a home folder that it cannot write
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if "unshare failed" in result.stderr or "mount:" in result.stderr:
        pytest.skip("cannot make a mount namespace here")
    assert result.stdout == "held\n", result.stderr[-2000:]


def descendants(root: int) -> set[int]:
    """Every living process below `root`; other test workers have zygotes of their own."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(entry)] = int(fields[1])
        except (OSError, ValueError):
            continue
    found: set[int] = set()
    waiting = [root]
    while waiting:
        parent = waiting.pop()
        below = {pid for pid, above in parents.items() if above == parent} - found
        found |= below
        waiting += below
    return found


def snapshot() -> dict[str, object]:
    """What an attack could have changed: files where it may try, processes of ours, the clock."""
    folders = ("/", "/tmp", "/dev/shm", os.path.dirname(os.__file__), os.getcwd())
    return {
        "files": {
            f: sorted(n for n in os.listdir(f) if "attack" in n or n in ("big", "conftest.py"))
            for f in folders
            if os.path.isdir(f)
        },
        "processes": descendants(os.getpid()),
        "host": os.uname().nodename,
    }


@pytest.mark.timeout(180)
def test_every_attack_works_without_the_protection():
    shown = [a for a in ATTACKS if a.shows in ("pass", "hang")]

    def run(attack: Attack) -> str:
        timeout = 1.0 if attack.shows == "hang" else 20.0
        return grade(attack.code, attack.asserts, attack.setup, timeout)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, shown))
    assert grade("def f(x): return None", HONEST.asserts) == "fail"
    failed = {a.name: got for a, got in zip(shown, found, strict=True) if got != a.shows}
    assert not failed
    assert len(shown) >= 60
    assert len({a.name for a in ATTACKS}) == len(ATTACKS)
