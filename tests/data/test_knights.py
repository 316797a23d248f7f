"""Knights and knaves: one solution each, told in words that say what is meant; LeetCode rows."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest

from grpo.commands.shrink import fixture
from grpo.data.knights import Knights, holds, solve, spoken
from grpo.data.published import leetcode
from grpo.errors import DataError
from grpo.rewards.code.reward import Code


def test_a_puzzle_worked_out_by_hand() -> None:
    # Ada: Bruno is a knave. Bruno: we are both knights. If Ada lied, Bruno would be a knight and
    # Ada one too; so Ada is a knight and Bruno a knave.
    said = (("is", 1, False), ("and", ("is", 0, True), ("is", 1, True)))
    assert solve(said) == (True, False)
    # "I am a knight" and "she is a knight": two solutions, all knights or all knaves.
    assert solve((("is", 0, True), ("is", 0, True))) is None
    # "I am a knave": none.
    assert solve((("is", 0, False), ("is", 1, True))) is None


@pytest.mark.parametrize(
    ("kind", "truth"),
    [("and", "0001"), ("or", "0111"), ("if", "1101"), ("iff", "1001")],
)
def test_connectives(kind: str, truth: str) -> None:
    statement = (kind, ("is", 0, True), ("is", 1, True))
    found = [holds(statement, roles) for roles in product((False, True), repeat=2)]
    assert found == [bit == "1" for bit in truth]
    assert holds(("not", statement), (True, True)) != holds(statement, (True, True))


def test_words_keep_the_structure() -> None:
    inner = ("or", ("is", 0, True), ("is", 1, False))
    assert spoken(("if", inner, ("is", 1, True)), ["Ada", "Bo"]) == (
        "if (Ada is a knight or Bo is a knave) then Bo is a knight"
    )
    assert spoken(("not", inner), ["Ada", "Bo"]) == (
        "it is not true that (Ada is a knight or Bo is a knave)"
    )


def test_tasks_are_consistent_and_asked_in_full() -> None:
    source = Knights(min_people=2, max_people=5)
    seen: set[int] = set()
    for index in range(60):
        task = source.task("train", index)
        assert task == source.task("train", index)
        roles = json.loads(task.columns["roles"])
        seen.add(len(roles))
        assert task.answer == ", ".join(f"{name} is a {role}" for name, role in roles.items())
        told = re.findall(r"(\w+) says: ", str(task.prompt))
        assert told == list(roles)
    assert seen == {2, 3, 4, 5}


def test_no_puzzle_is_on_both_sides_whatever_the_names() -> None:
    source = Knights(min_people=2, max_people=2, max_depth=1, heldout_fraction=0.3)
    train = {source.task("train", i).cluster for i in range(400)}
    heldout = {source.task("heldout", i).cluster for i in range(200)}
    assert len(train) > 20
    assert len(heldout) > 5
    assert not train & heldout
    repeated = [source.task("train", i) for i in range(400)]
    names = {t.uid for t in repeated if t.cluster == repeated[0].cluster}
    assert len(names) > 1


@pytest.mark.parametrize(
    "args",
    [{"max_people": 11}, {"min_people": 1}, {"min_people": 4, "max_people": 3}, {"prompt": "?"}],
)
def test_settings_that_cannot_be(args: dict[str, object]) -> None:
    with pytest.raises(DataError, match="knights: "):
        Knights(**args)  # pyright: ignore[reportArgumentType]


def test_leetcode_rows_pass_their_own_solutions(tmp_path: Path) -> None:
    rows = leetcode(path=fixture("leetcode"), heldout_fraction=0.0)
    tasks = [rows.task("train", index) for index in range(3)]
    assert "class Solution:" in str(tasks[0].prompt)
    reward = Code()
    try:
        for task in tasks:
            right = f"```python\n{task.columns['canonical_solution']}```"
            assert reward.verify(right, task).value == 1.0
            assert reward.verify(right.replace("return", "return None #"), task).value == 0.0
    finally:
        reward.close()
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"problem_description": "x", "test": "y"}) + "\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:1 has no column 'entry_point'"):
        leetcode(path=str(bad))
