"""Runs the corpus in a sandbox, as this user or as an ordinary one.

python -m tests.attacks.run TIER…     from the repository's root: {tier: {attack: [value, status]}}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from grpo.errors import RewardError
from grpo.rewards.code.reward import Code
from grpo.types import Task

from .attack import Attack
from .corpus import ACTIONS, HANGS, LEAKS, TRICKS

TIERS = ("landlock+namespaces", "namespaces", "bubblewrap", "landlock")
ROOT = Path(__file__).resolve().parents[2]
QUICK = [*TRICKS, *ACTIONS, *LEAKS]
HONEST = Attack(name="honest", kind="", code="def f(x): return x + 1")
USER = 12345  # nobody's
Outcome = tuple[float | None, str]


class Absent(Exception):
    """A tier that does not hold here, or a user that this process cannot become."""


def outcomes(tier: str) -> dict[str, Outcome]:
    """Each attack's value and status under a tier, with honest code among them. Raises Absent."""
    quick = _run(tier, [HONEST, *QUICK], timeout=10.0, workers=2)
    # All hang at once: each is given a second.
    return quick | _run(tier, HANGS, timeout=1.0, workers=len(HANGS), memory_mb=256)


def _run(
    tier: str, attacks: list[Attack], timeout: float, workers: int, memory_mb: int = 1024
) -> dict[str, Outcome]:
    reward = Code(sandbox=tier, timeout=timeout, workers=workers, memory_mb=memory_mb)
    columns = [{"tests": {"asserts": list(a.asserts), "setup": a.setup}} for a in attacks]
    tasks = [Task(uid="", prompt="", columns=each) for each in columns]
    try:
        found = reward.verify_all([f"```python\n{a.code}\n```" for a in attacks], tasks)
    except RewardError as error:
        raise Absent(str(error)) from error
    finally:
        reward.close()
    return {a.name: (s.value, s.status) for a, s in zip(attacks, found, strict=True)}


# A Python below /root is out of a user's reach: show it through a view of /root of our own.
_BECOME = f"""
mount -t tmpfs none /mnt || exit 99
case "$1" in /root/*)
    mkdir /mnt/prefix && mount --bind "$1" /mnt/prefix && mount -t tmpfs -o mode=755 none /root &&
    mkdir -p "$1" && mount --bind /mnt/prefix "$1" || exit 99
esac
shift
exec setpriv --reuid {USER} --regid {USER} --clear-groups "$@"
"""


def as_user(*tiers: str) -> dict[str, dict[str, Outcome]]:
    """`outcomes` of tiers (those that hold) for an ordinary user. Raises Absent; needs root."""
    if os.geteuid() != 0:
        raise Absent("only root can become another user; this one is an ordinary user already")
    command = [sys.executable, "-m", "tests.attacks.run", *tiers]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _BECOME, "sh", sys.base_prefix, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/"},
    )
    if done.returncode == 99 or "unshare failed" in done.stderr:
        raise Absent("a mount namespace cannot be made here")
    if "Permission denied" in done.stderr and not done.stdout:
        raise Absent("an ordinary user cannot read this checkout or this Python")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.pop("user") == USER
    return {
        tier: {name: (value, status) for name, (value, status) in each.items()}
        for tier, each in found.items()
    }


def main() -> None:
    """Print the outcomes of the tiers given, without those that do not hold."""
    found: dict[str, object] = {"user": os.geteuid()}
    for tier in sys.argv[1:]:
        try:
            found[tier] = outcomes(tier)
        except Absent:
            continue
    print(json.dumps(found))


if __name__ == "__main__":
    main()
