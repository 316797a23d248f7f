"""Every attack scores 0 under every tier that holds, leaves nothing behind, and works without."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from .attack import ASSERTS, Attack
from .corpus import ATTACKS, LEAKS
from .run import TIERS, Absent, Outcome, as_user, outcomes
from .table import END, KINDS, PAGE, START, cells, committed, rendered
from .unprotected import grade


def check(tier: str, user: str, found: dict[str, Outcome]) -> None:
    """Honest code passes, no attack does, and the page says what each kind comes to."""
    assert found["honest"] == (1.0, "correct")
    wrong = {
        a.name: found[a.name]
        for a in ATTACKS
        if found[a.name][0] != 0.0 or found[a.name][1] not in a.status
    }
    assert not wrong
    column = cells(tier, user, found)
    known = committed()
    assert {key: known.get(key) for key in column} == column


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tier", TIERS)
def test_every_attack_fails_and_honest_code_passes(tier):
    before = snapshot()
    try:
        found = outcomes(tier)
    except Absent as why:
        pytest.skip(str(why))
    check(tier, "root" if os.geteuid() == 0 else "user", found)
    assert snapshot() == before


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tiers", [TIERS[:2], TIERS[2:]], ids=["apart", "together"])
def test_every_attack_fails_as_an_ordinary_user(tiers):
    try:
        found = as_user(*tiers)
    except Absent as why:
        pytest.skip(str(why))
    if not found:
        pytest.skip("none of these tiers holds for an ordinary user here")
    for tier, each in found.items():
        check(tier, "user", each)


def test_the_page_holds_the_table_of_this_corpus():
    """Its rows, its numbers of attacks and its form; cells are compared where they are found."""
    known = committed()
    assert {kind for kind, _, _ in known} == set(KINDS)
    page = (PAGE.read_text(encoding="utf-8")).partition(START)[2].partition(END)[0]
    assert page.strip("\n") == rendered(known)
    # what is claimed: nothing of the first kinds goes through anywhere
    firm = {attack.kind for attack in ATTACKS}
    assert {cell for (kind, _, _), cell in known.items() if kind in firm} == {"yes"}


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
    shown = [a for a in [*ATTACKS, *LEAKS] if a.shows in ("pass", "hang")]

    def run(attack: Attack) -> str:
        timeout = 1.0 if attack.shows == "hang" else 20.0
        return grade(attack.code, attack.asserts, attack.setup, timeout)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, shown))
    assert grade("def f(x): return None", ASSERTS) == "fail"
    failed = {a.name: got for a, got in zip(shown, found, strict=True) if got != a.shows}
    assert not failed
    assert len(shown) >= 120
    assert len({a.name for a in [*ATTACKS, *LEAKS]}) == len([*ATTACKS, *LEAKS])
