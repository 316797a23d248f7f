"""Where completions end: eos ids that the model has, stop strings that it can write."""

from __future__ import annotations

import json
import logging
import string
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from grpo.commands import plan
from grpo.config.config import from_dict
from grpo.config.schema import Rollout
from grpo.errors import DataError, GrpoError, RecipeError
from grpo.stages.endings import sampling_of
from grpo.stages.from_scratch import build_tokenizer
from grpo.stages.prompting import check_text
from grpo.stages.sft import load_tokenizer
from tests.grpo.tiny_bases import save_tiny_base

SPECIAL = ["</answer>", "<|im_end|>"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer(string.printable)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    save_tiny_base(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """A copy of the base, to be spoiled."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def ends(model: Path, *stop: str, **settings: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    return sampling_of(Rollout(stop=stop, **settings), tokenizer, str(model))


def test_a_stop_string_that_is_a_special_token_ends_as_an_eos_does(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    eos, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = ends(base, "<|im_end|>", "</answer>", "\n\n", "<|im_end|>\n")
    assert found.eos_ids == tuple(sorted({eos, end}))
    # A closing tag stays in the text, and so does a string that is more than a special token.
    assert found.stop == ("</answer>", "\n\n", "<|im_end|>\n")
    assert ends(base).eos_ids == (eos,)


def test_a_server_of_text_is_said_not_to_show_special_tokens(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = ends(base, "<|im_end|>", engine="endpoint")
    assert found.stop == ("<|im_end|>",)
    assert "'<|im_end|>' is a special token, which servers leave out" in caplog.text


def test_an_eos_that_the_model_has_no_embedding_for_is_refused(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    assert size == len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|eot|>"})
    tokenizer.save_pretrained(model)
    change(model / "generation_config.json", eos_token_id=None)
    for refused in (lambda: ends(model), lambda: load_tokenizer(str(model))):
        with pytest.raises(RecipeError, match=rf"'<\|eot\|>'.*{size}.*resize"):
            refused()
    change(model / "generation_config.json", eos_token_id=1)
    with pytest.raises(RecipeError, match=rf"rollout\.stop = '<\|eot\|>' is token {size}"):
        ends(model, "<|eot|>")


def test_one_of_several_eos_out_of_reach_is_named(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(model / "generation_config.json", eos_token_id=[1, 9999])
    with caplog.at_level(logging.WARNING):
        assert ends(model).eos_ids == (1,)
    assert "(9999) ends nothing" in caplog.text


def test_an_eos_in_the_model_config_alone_is_found(model: Path) -> None:
    change(model / "tokenizer_config.json", eos_token=None)
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    (model / "generation_config.json").unlink()
    assert AutoTokenizer.from_pretrained(str(model)).eos_token_id is None
    change(model / "config.json", eos_token_id=1)
    assert ends(model).eos_ids == (1,)
    change(model / "config.json", eos_token_id=None)
    with pytest.raises(RecipeError, match="names an eos token, so a completion could never end"):
        ends(model)


def test_an_empty_stop_string_is_refused(base: Path) -> None:
    with pytest.raises(RecipeError, match="empty string"):
        ends(base, "")


CHATML = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def recipe(model: Path, rows: list[dict[str, Any]], **rollout: Any) -> Any:
    file = model.parent / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    heldout = model.parent / "heldout.jsonl"
    heldout.write_text('{"prompt": "9-9?", "answer": "0"}\n')
    return from_dict(
        {
            "name": "t",
            "model": {"path": str(model)},
            "data": {
                "source": "file",
                "args": {"path": str(file), "heldout_path": str(heldout)},
                "template": "chat",
            },
            "rollout": {"max_completion_length": 8, **rollout},
            "rewards": [{"name": "accuracy"}],
        }
    )


USER = {"role": "user", "content": "2+2?"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w"}}]}


@pytest.mark.parametrize(
    ("rows", "rollout", "says"),
    [
        ([{"prompt": [USER], "answer": "4"}] * 3, {}, ""),
        ([{"prompt": [USER], "answer": "4"}], {"stop": [""]}, "rollout.stop has an empty string"),
        (
            [{"prompt": [USER], "answer": "4"}, {"prompt": [USER, CALL, USER], "answer": "4"}],
            {},
            "does not show 'tool_calls'",
        ),
        (
            [{"prompt": "2", "answer": "2"}, {"prompt": "3", "answer": "3", "tools": [{"a": 1}]}],
            {},
            "does not show the tools",
        ),
        (
            [{"prompt": "2", "answer": "2", "chat_template_kwargs": ["x"]}],
            {},
            "holds variables by name",
        ),
    ],
)
def test_a_plan_says_what_training_would_refuse(
    model: Path, rows: list[dict[str, Any]], rollout: dict[str, Any], says: str
) -> None:
    (model / "chat_template.jinja").write_text(CHATML)
    made = recipe(model, rows, **rollout)
    if not says:
        plan.print_plan(made)
        return
    with pytest.raises(GrpoError, match=says):
        plan.print_plan(made)


def test_a_prompt_in_tokens_beyond_the_embedding_is_refused_with_the_token(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    tokenizer.add_tokens(["<|sep|>"])
    tokenizer.save_pretrained(model)
    (model / "chat_template.jinja").write_text(CHATML)
    made = recipe(model, [{"prompt": "2<|sep|>2", "answer": "4"}])
    with pytest.raises(DataError, match=r"the prompt has the token '<\|sep\|>'"):
        check_text(made.stages[0])
