"""AIME, AMC, HumanEval and MBPP rows as published: questions, golds, tests, splits."""

from __future__ import annotations

import json
import sys
import types

import pytest

from grpo.data.published import aime, amc, humaneval, mbpp
from grpo.errors import DataError
from grpo.model.hub import Repo
from grpo.rewards.code.reward import Code

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def total(xs):\n    """Sum."""\n',
    "entry_point": "total",
    "canonical_solution": "    return sum(xs)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to square.",
    "code": "def square(x):\n  return x * x",
    "test_list": ["assert square(3) == 9", "assert math.isclose(square(2), 4)"],
    "test_setup_code": "import math",
}
SANITIZED = {
    "prompt": "Square it.",
    "code": "def square(x):\n  return x ** 2",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(square(2), 4)"],
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_contest_rows_of_every_spelling_are_held_out(tmp_path):
    source = amc(
        path=write(
            tmp_path / "amc.jsonl",
            {"question": "q1", "answer": 27.0, "id": 0},
            {"problem": "q2", "answer": "142"},
            {"problem": "q3", "answer": 0.5},
        )
    )
    assert (source.size("train"), source.size("heldout")) == (0, 3)
    tasks = [source.task("heldout", i) for i in range(3)]
    assert [(t.prompt, t.answer) for t in tasks] == [("q1", "27"), ("q2", "142"), ("q3", "0.5")]
    assert tasks[0].columns == {"id": 0}
    with pytest.raises(DataError, match="no column 'question'"):
        aime(path=write(tmp_path / "bad.jsonl", {"text": "q", "answer": 1}))


def test_the_year_chooses_the_data_set(monkeypatch):
    asked = []

    def load_dataset(path, name, *, split, revision):
        asked.append((path, split))
        return [{"problem": "p", "answer": "204", "solution": "s"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(
        sys.modules["grpo.data.published"], "find_repo", lambda path, *_: Repo(path=path)
    )
    assert aime().task("heldout", 0).answer == "204"
    aime(year=2025)
    amc()
    with pytest.raises(DataError, match="no column 'prompt'"):
        humaneval()
    assert asked == [
        ("HuggingFaceH4/aime_2024", "train"),
        ("math-ai/aime25", "test"),
        ("math-ai/amc23", "test"),
        ("openai/openai_humaneval", "test"),
    ]
    with pytest.raises(DataError, match="2024 or 2025, not 1983"):
        aime(year=1983)


def test_programs_accept_their_solutions_and_nothing_else(tmp_path):
    sources = [
        humaneval(path=write(tmp_path / "h.jsonl", HUMANEVAL)),
        mbpp(path=write(tmp_path / "m.jsonl", MBPP), heldout_fraction=1.0),
        mbpp(path=write(tmp_path / "s.jsonl", SANITIZED), heldout_fraction=1.0),
    ]
    wrong = ["def total(xs): return 4", "def square(x): return x", "def square(x): return 1"]
    reward = Code(workers=1)
    try:
        for source, bad in zip(sources, wrong, strict=True):
            task = source.task("heldout", 0)
            assert task.answer is None
            gold = task.columns["canonical_solution"]
            verdicts = [
                reward.verify(f"```python\n{code}\n```", task).status for code in (gold, bad)
            ]
            assert verdicts == ["correct", "wrong"]
    finally:
        reward.close()
    assert "assert square(3) == 9" in sources[1].task("heldout", 0).prompt


def test_mbpp_keeps_its_test_split_apart(tmp_path):
    train, test = (write(tmp_path / f"{n}.jsonl", {**MBPP, "text": n}) for n in ("train", "test"))
    source = mbpp(path=train, heldout_path=test)
    assert source.task("train", 0).prompt.startswith("train\n")
    assert source.task("heldout", 0).prompt.startswith("test\n")
    with pytest.raises(DataError, match="heldout_path needs path"):
        mbpp(heldout_path=test)
    with pytest.raises(DataError, match="no column 'test_list'"):
        mbpp(path=write(tmp_path / "x.jsonl", {"text": "t", "code": "c"}))
