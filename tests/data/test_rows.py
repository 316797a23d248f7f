"""JSONL, hub, GSM8K and MATH rows: columns, gold answers, splits, and errors that say where."""

from __future__ import annotations

import json
import math as math_
import re
import sys
import types
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from grpo.data.published import gold_answer, gsm8k, hub, last_boxed, math
from grpo.data.table import file
from grpo.errors import DataError
from grpo.model.hub import Repo
from grpo.outside.rows.columns import answer_text
from grpo.rewards.accuracy import Accuracy
from grpo.rewards.score_file import score_file
from grpo.rewards.verifier import make_task


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def everything(source):
    return {s: [source.task(s, i) for i in range(source.size(s))] for s in ("train", "heldout")}


@pytest.fixture
def hundred(tmp_path):
    rows = [{"prompt": f"What is {i}?", "answer": i, "level": i % 3} for i in range(100)]
    return write(tmp_path / "rows.jsonl", rows)


def test_rows_become_tasks_with_forwarded_columns(hundred):
    found = everything(file(path=hundred))
    assert len(found["train"]) + len(found["heldout"]) == 100
    assert 2 <= len(found["heldout"]) <= 25
    for task in found["train"] + found["heldout"]:
        number = re.search(r"\d+", task.prompt)[0]
        assert task.answer == number
        assert task.columns == {"level": int(number) % 3}
    assert len({t.uid for t in found["train"] + found["heldout"]}) == 100


def test_duplicate_prompts_never_straddle(tmp_path):
    rows = [{"prompt": f"q{i % 30}" + " " * (i % 2), "answer": "a"} for i in range(90)]
    found = everything(file(path=write(tmp_path / "d.jsonl", rows), heldout_fraction=0.5))
    train = {t.prompt.strip() for t in found["train"]}
    heldout = {t.prompt.strip() for t in found["heldout"]}
    assert train
    assert heldout
    assert train.isdisjoint(heldout)
    assert len({t.uid for t in found["train"] + found["heldout"]}) == 90
    assert len({t.cluster for t in found["train"] + found["heldout"]}) == 30


def test_split_does_not_depend_on_the_other_rows(hundred, tmp_path):
    fewer = [{"prompt": f"What is {i}?", "answer": i} for i in range(50)]
    small = everything(file(path=write(tmp_path / "s.jsonl", fewer)))
    large = everything(file(path=hundred))
    assert {t.prompt for t in small["heldout"]} <= {t.prompt for t in large["heldout"]}


def test_explicit_heldout_file_takes_its_prompts_out_of_train(hundred, tmp_path):
    held = write(tmp_path / "h.jsonl", [{"prompt": f"What is {i}?", "answer": i} for i in (3, 200)])
    source = file(path=hundred, heldout_path=held)
    assert (source.size("train"), source.size("heldout"), source.removed) == (99, 2, 1)


def test_message_prompts_and_named_columns(tmp_path):
    chat = [{"role": "user", "content": "Hi"}]
    path = write(tmp_path / "m.jsonl", [{"messages": chat, "gold": "yes"}])
    task = everything(file(path=path, prompt="messages", answer="gold", heldout_fraction=0))[
        "train"
    ][0]
    assert (task.prompt, task.answer, task.columns) == (chat, "yes", {"gold": "yes"})
    task = file(path=path, prompt="messages", answer=None, heldout_fraction=0).task("train", 0)
    assert (task.answer, task.columns) == (None, {"gold": "yes"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ('{"prompt": "a", "answer": "b"}\n\n{"prompt": \n', ":3 is not JSON"),
        ("[1]\n", ":1 must be a JSON object with columns, not a list"),
        (
            '{"promt": "a", "answer": "b"}',
            ":1 has no column 'prompt'. Did you mean 'promt'? Columns: answer, promt.",
        ),
        ('{"prompt": " ", "answer": "b"}', "column 'prompt' must be non-empty text"),
        ('{"prompt": [{"role": "user"}], "answer": "b"}', "list of messages"),
        ('{"prompt": "a", "answer": [1]}', "the answer must be text or a number, not [1]"),
        ('{"prompt": "a", "answer": null}', "the answer must be text or a number, not None"),
        (
            '{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": NaN}',
            "bad.jsonl:2: the answer must be text or a number, not nan, which is no number; give",
        ),
        (
            '{"prompt": "a", "answer": 1e400}',
            ":1: the answer must be text or a number, not inf, which is not finite",
        ),
        (
            '{"prompt": "a", "answer": " "}',
            ":1: the answer must be text or a number, not ' '; give the row an answer",
        ),
        (
            '{"prompt": "a", "answer": 1, "answer": 2}',
            "the key 'answer' stands there more than once, with 1 and 2",
        ),
        ('{"prompt": "a", "answer": true}', "not True; as text it would be 'True'"),
        ('{"prompt": "a", "answer": ' + "9" * 5000 + "}", ":1 is not JSON: Exceeds the limit"),
    ],
)
def test_bad_files_say_where_and_what(tmp_path, text, says):
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(says)):
        file(path=str(path))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-05, "0.00001"),
        (-2.5e-7, "-0.00000025"),
        (1e16, "10000000000000000"),
        (3.0, "3.0"),
        (3, "3"),
        (0.1, "0.1"),
        (np.float32(0.1), "0.1"),
        (np.int64(7), "7"),
        (Decimal("1E+5"), "100000"),
        (Fraction(1, 3), "1/3"),
        ("1e-05", "1e-05"),  # text stays as it is
    ],
)
def test_numbers_become_golds_that_the_verifier_reads(value, text):
    assert answer_text("f:1", value) == text
    task = make_task("q", {"answer": value})
    assert task.answer == text
    for spelled in (str(value), text):
        score = Accuracy().verify(f"<answer>{spelled}</answer>", task)
        assert (score.value, score.status) == (1.0, "correct")


@pytest.mark.parametrize("empty", [None, math_.nan, -math_.inf, np.float32("nan"), Decimal("NaN")])
def test_an_empty_cell_is_no_gold(empty, tmp_path):
    task = make_task("q", {"answer": empty})
    assert task.answer is None
    assert not Accuracy().applies(task)
    assert make_task("q", {"answer": empty, "solution": 4}).answer == "4"
    said = f"<answer>{empty}</answer>"
    assert Accuracy()(completions=[said], answer=[empty]) == [None]
    with pytest.raises(DataError, match=r"some/set row 3: the answer must be text or a number"):
        answer_text("some/set row 3", empty)
    if isinstance(empty, float):
        row = {"prompt": "q", "completion": said, "answer": empty}
        path = write(tmp_path / "s.jsonl", [row])
        says = (
            r"s.jsonl, line 1: .* needs column 'answer\|solution'; the row has completion, prompt$"
        )
        with pytest.raises(DataError, match=says):
            list(score_file("accuracy", path))
        rows = [{"problem": "p", "solution": r"\boxed{3}", "answer": empty}]
        found = math(path=write(tmp_path / "m.jsonl", rows), heldout_fraction=0).task("train", 0)
        assert found.answer == "3"


def test_missing_file_folder_and_binary(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        file(path=str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="holds no file of rows"):
        file(path=str(tmp_path))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        file(path=str(tmp_path / "b.jsonl"))


def test_unicode_line_separators_stay_inside_their_row(tmp_path):
    path = tmp_path / "u.jsonl"
    path.write_text('{"prompt": "a\u2028b", "answer": "1"}\n', encoding="utf-8")
    assert file(path=str(path), heldout_fraction=0).task("train", 0).prompt == "a\u2028b"


def test_gsm8k_gold(tmp_path):
    rows = [{"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,024"}]
    path = write(tmp_path / "g.jsonl", rows)
    task = gsm8k(path=path, heldout_fraction=0).task("train", 0)
    assert (task.prompt, task.answer) == ("How many?", "1024")
    assert task.columns["solution"] == rows[0]["answer"]
    assert gold_answer("x", "a #### 1\n#### -7") == "-7"
    for broken in ("no mark", "#### "):
        with pytest.raises(DataError, match=r"x: the answer has no final '#### number'"):
            gold_answer("x", broken)


def test_math_rows(tmp_path):
    rows = [
        {"problem": "p1", "solution": r"so \boxed{1}", "answer": r"\frac{1}{2}", "level": 3},
        {"problem": "p2", "solution": r"\boxed{0} no: \boxed{\frac{3}{4}}."},
    ]
    source = math(path=write(tmp_path / "m.jsonl", rows), instruction="Box it.", heldout_fraction=0)
    first, second = source.task("train", 0), source.task("train", 1)
    assert (first.prompt, first.answer) == ("p1\nBox it.", r"\frac{1}{2}")
    assert first.columns == {"solution": r"so \boxed{1}", "level": 3}
    assert second.answer == r"\frac{3}{4}"


def test_last_boxed():
    assert last_boxed(r"\boxed{a} \fbox{b{c}}") == "b{c}"
    assert last_boxed(r"\boxed{a") is None
    assert last_boxed("none") is None


def test_hub_maps_columns_and_reports_failure(monkeypatch):
    asked = []

    def load_dataset(path, name, *, split, revision):
        asked.append((path, name, split, revision))
        if path == "no/such":
            raise FileNotFoundError("nowhere")
        return [{"q": f"{split}{i}", "a": i, "tests": [i]} for i in range(3)]

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr(
        sys.modules["grpo.data.published"], "find_repo", lambda path, *_: Repo(path=path)
    )
    source = hub(path="some/set", name="main", heldout_split="test", prompt="q", answer="a")
    found = everything(source)
    assert [(t.prompt, t.answer, t.columns) for t in found["heldout"]] == [
        (f"test{i}", str(i), {"a": i, "tests": [i]}) for i in range(3)
    ]
    assert asked == [("some/set", "main", "train", None), ("some/set", "main", "test", None)]
    with pytest.raises(DataError, match=r"'no/such'.*cannot be loaded: FileNotFoundError: nowhere"):
        hub(path="no/such")
    with pytest.raises(DataError, match=r"some/set\[train\] row 0 has no column 'prompt'"):
        hub(path="some/set")
    rows = [{"prompt": f"q{i}", "answer": value} for i, value in enumerate((1.5, math_.nan))]
    fake.load_dataset = lambda *_, **__: rows
    with pytest.raises(DataError, match=r"set\[train\] row 1: the answer must .*, not nan"):
        hub(path="some/set")
