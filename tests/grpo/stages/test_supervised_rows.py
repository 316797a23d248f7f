"""Rows of the supervised stages: where they are read, which ids they become, how they are mixed."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo.data.prompts import PromptTemplate
from grpo.errors import DataError
from grpo.outside.terminal.console import Console
from grpo.stages.from_scratch import build_tokenizer
from grpo.stages.supervised_rows import TextRow, TokenRow, draw, encode, encode_sets, mix, read_rows
from grpo.types import Task

ROWS = [
    {"prompt": "1+1=", "completion": "<think>-</think>2"},
    {"prompt": "2+2=", "completion": "<think>-</think>4", "note": "other columns are not read"},
]
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = build_tokenizer(string.printable)
    made.chat_template = CHAT
    return made


def test_files_folders_and_saved_data_sets_hold_the_same_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    shards = tmp_path / "data"
    shards.mkdir()
    write(shards / "train.jsonl", ROWS)
    table = datasets.Dataset.from_list([{k: r[k] for k in ("prompt", "completion")} for r in ROWS])
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "split"))
    expected = [(r["prompt"], r["completion"]) for r in ROWS]
    for path in (file, str(shards), str(tmp_path / "saved"), str(tmp_path / "split")):
        assert [(row.prompt, row.completion) for row in read_rows(path)] == expected
    assert [row.place for row in read_rows(file)] == [f"{file}:1", f"{file}:2"]
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "test"))
    with pytest.raises(DataError, match="no split train, only test"):
        read_rows(str(tmp_path / "test"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], {"prompt": "x", "completions": "y"}], r":2 has no column 'completion'\. Did"),
        ([ROWS[0], ROWS[1], {"completion": "y"}], r":3 has no column 'prompt'"),
        ([{"prompt": "x", "completion": 7}], r":1: column 'completion' must be non-empty text"),
        ([{"prompt": "x", "completion": ""}], r":1: column 'completion' must be non-empty text"),
        ([{"prompt": [], "completion": "y"}], r":1: column 'prompt' must be non-empty text"),
        ([["x", "y"]], r":1 must be a JSON object"),
        ([], r" is empty"),
        (
            [{"prompt": "x", "completion": [{"role": "user", "content": "y"}]}],
            r":1: a completion is text or one message of the assistant, not messages of user",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl{message}"):
        read_rows(write(tmp_path / "rows.jsonl", rows))


def test_paths_that_hold_no_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_rows(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="holds no file of rows"):
        read_rows(str(tmp_path))


@pytest.mark.parametrize("template", ["raw", "r1_zero", "chat"])
@pytest.mark.parametrize("prefill", ["", "<think>\n"])
def test_a_row_begins_with_the_ids_that_reinforcement_learning_samples_from(
    tokenizer: Any, template: str, prefill: str
) -> None:
    made = PromptTemplate(template, tokenizer, prefill=prefill)
    prompt = made.render(Task(uid="", prompt="3 + 4"))
    assert prompt is not None
    answer = "so it is</think><answer>7</answer>"
    sampled = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    # What a row of sampled text looks like: the prefill put back, as rewards and reject see it.
    row = TextRow(place="f:1", prompt="3 + 4", completion=prefill + answer)
    (found,), dropped = encode([row], made, 2000)
    assert [*found.prompt_ids, *found.ids] == [*prompt.ids, *sampled]
    assert (found.ids, dropped) == (tuple(sampled), 0)


def test_a_chat_completion_is_its_assistants_words_and_eos_comes_once(
    tokenizer: Any, tmp_path: Path
) -> None:
    ask = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    said = [{"role": "assistant", "content": "yes"}]
    rows = read_rows(write(tmp_path / "r.jsonl", [{"prompt": ask, "completion": said}]))
    (found,), _ = encode(rows, PromptTemplate("chat", tokenizer), 100)
    assert tokenizer.decode(found.prompt_ids) == "[system]s[user]u[assistant]"
    assert found.ids == (*tokenizer.encode("yes"), tokenizer.eos_token_id)
    ended = TextRow(place="f:1", prompt="u", completion="yes<eos>")
    assert encode([ended], PromptTemplate("chat", tokenizer), 100)[0][0].ids == found.ids
    with pytest.raises(DataError, match=r"r\.jsonl:1: the prompt is a conversation"):
        encode(rows, PromptTemplate("raw", tokenizer), 100)


def test_tokens_never_merge_across_the_border_of_prompt_and_completion() -> None:
    core = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "<e>": 3}, merges=[("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>")
    assert tokenizer.encode("ab") == [2]
    row = TextRow(place="f:1", prompt="a", completion="b")
    assert encode([row], PromptTemplate("raw", tokenizer), 9)[0] == [
        TokenRow(prompt_ids=(0,), ids=(1, 3))
    ]


def test_long_rows_are_dropped_and_counted_and_none_left_is_an_error(tokenizer: Any) -> None:
    rows = [TextRow(place=f"f:{n}", prompt="x" * n, completion="y") for n in (1, 5, 3)]
    raw = PromptTemplate("raw", tokenizer)
    kept, dropped = encode(rows, raw, 5)  # n + "y" + eos
    assert ([len(row) for row in kept], dropped) == ([3, 5], 1)
    console = Console(record=True, width=80)
    sets, lost = encode_sets({"a": rows, "b": rows[:1], "c": rows[1:]}, raw, 5, console)
    assert ({name: len(found) for name, found in sets.items()}, lost) == (
        {"a": 2, "b": 1, "c": 1},
        2,
    )
    assert console.export_text() == "2 rows of more than 5 tokens were dropped\n"
    with pytest.raises(DataError, match=r"max_length = 2 leaves none of the 3 rows of f: .* has 3"):
        encode(rows, raw, 2)


def test_a_character_the_model_does_not_know_is_named_with_its_row(tokenizer: Any) -> None:
    raw = PromptTemplate("raw", tokenizer)
    with pytest.raises(DataError, match=r"f:3: the model's tokenizer cannot write .*'é'"):
        encode([TextRow(place="f:3", prompt="x", completion="é")], raw, 9)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 80), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_mixed_rows_have_their_share_and_none_comes_again_before_all_came(
    mains: int, others: int, percent: int, seed: int
) -> None:
    main = [TokenRow(prompt_ids=(0,), ids=(n,)) for n in range(mains)]
    other = [TokenRow(prompt_ids=(1,), ids=(n,)) for n in range(others)]
    rows, counts = mix(main, {"o": (percent / 100, other)}, seed)
    assert sorted(r.ids for r in rows if r.prompt_ids == (0,)) == [r.ids for r in main]
    drawn = [r.ids[0] for r in rows if r.prompt_ids == (1,)]
    assert len(drawn) == counts["o"]
    assert abs(len(drawn) - percent / 100 * len(rows)) <= 1
    times = [drawn.count(n) for n in range(others)]
    assert max(times) - min(times) <= 1
    assert mix(main, {"o": (percent / 100, other)}, seed) == (rows, counts)


def test_two_mixes_and_the_order_by_seed() -> None:
    main = [TokenRow(prompt_ids=(0,), ids=(n,)) for n in range(50)]
    a, b = ([TokenRow(prompt_ids=(k,), ids=(n,)) for n in range(99)] for k in (1, 2))
    rows, counts = mix(main, {"a": (0.25, a), "b": (0.25, b)}, 0)
    assert (counts, len(rows)) == ({"a": 25, "b": 25}, 100)
    assert rows != mix(main, {"a": (0.25, a), "b": (0.25, b)}, 1)[0]
    assert mix(main, {}, 1) == (main, {})
    assert sorted(draw(5, 10, 3)[:5]) == sorted(draw(5, 10, 3)[5:]) == [0, 1, 2, 3, 4]
