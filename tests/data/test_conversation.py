"""Conversations: what rows say is in the prompt, or the row is refused; one bos; one date."""

from __future__ import annotations

import datetime
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors

from grpo.data.files import as_row
from grpo.data.prompts import PromptTemplate
from grpo.data.table import file
from grpo.errors import DataError, RecipeError
from grpo.outside.rows.columns import checked_prompt
from grpo.rewards.compose import call_arguments
from grpo.stages.from_scratch import build_tokenizer
from grpo.stages.supervised_rows import TextRow, encode, read_rows
from grpo.types import Completion, Segment, Task, Version

# In the style of models that call tools and think.
FULL = (
    "{% if tools %}[tools]{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]"
    "{% if m.get('reasoning_content') %}<think>{{ m['reasoning_content'] }}</think>{% endif %}"
    "{{ m['content'] }}"
    "{% for c in m.get('tool_calls') or [] %}[call]{{ c | tojson }}{% endfor %}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
PLAIN = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
USER = {"role": "user", "content": "weather?"}
TOOLS = [{"type": "function", "function": {"name": "w"}}]


def call(arguments: Any, content: Any = "") -> dict[str, Any]:
    function = {"name": "w", "arguments": arguments}
    return {"role": "assistant", "content": content, "tool_calls": [{"function": function}]}


RAIN = {"role": "tool", "content": "rain", "name": "w"}


def made(chat_template: str, template: str = "chat", **settings: Any) -> PromptTemplate:
    tokenizer = build_tokenizer(string.printable)
    tokenizer.chat_template = chat_template
    return PromptTemplate(template, tokenizer, **settings)


def shown(template: PromptTemplate, prompt: Any, **columns: Any) -> str:
    task = Task(uid="u", prompt=checked_prompt("f:1", "prompt", prompt), columns=columns)
    found = template.render(task)
    assert found is not None
    assert template.tokenizer.decode(list(found.ids)) == found.text
    return found.text


def test_calls_thoughts_and_tools_of_a_row_are_shown() -> None:
    full = made(FULL)
    written = '[call]{"function": {"name": "w", "arguments": {"c": "Oslo"}}}[end]\n'
    turns = f"[user]weather?[end]\n[assistant]{written}[tool]rain[end]\n[assistant]"
    assert shown(full, [USER, call({"c": "Oslo"}), RAIN]) == turns
    # OpenAI's API gives arguments as text, and no content beside a call; tables fill in None.
    assert shown(full, [{**USER, "tool_calls": None}, call('{"c": "Oslo"}', None), RAIN]) == turns
    thought = {"role": "assistant", "content": "hello", "reasoning_content": "greet"}
    text = shown(full, [USER, thought, USER])
    assert "[assistant]<think>greet</think>hello[end]" in text
    for tools in (TOOLS, json.dumps(TOOLS)):
        assert shown(full, "hi", tools=tools) == (
            f"[tools]{json.dumps(TOOLS)}\n[user]hi[end]\n[assistant]"
        )
    assert shown(full, "hi", tools=[]) == "[user]hi[end]\n[assistant]"


def test_a_rows_own_variables_win_over_the_recipes() -> None:
    both = made(FULL, chat_template_kwargs={"enable_thinking": True})
    assert shown(both, "hi") == "[user]hi[end]\n[assistant]"
    text = shown(both, "hi", chat_template_kwargs={"enable_thinking": False})
    assert text == "[user]hi[end]\n[assistant]<think>\n\n</think>\n\n"
    # Tables fill in null where other rows have a variable: it is none, and not a false one.
    assert shown(both, "hi", chat_template_kwargs={"enable_thinking": None}) == (
        "[user]hi[end]\n[assistant]"
    )
    assert (
        shown(made(PLAIN), "hi", chat_template_kwargs={"x": None}) == "[user]hi[end]\n[assistant]"
    )


@pytest.mark.parametrize(
    ("prompt", "columns", "says"),
    [
        ([USER, call({}), RAIN], {}, "does not show 'tool_calls'"),
        ([USER, {**USER, "role": "assistant", "reasoning_content": "r"}, USER], {}, "reasoning_c"),
        ("hi", {"tools": TOOLS}, "does not show the tools"),
        ("hi", {"tools": "w"}, "column 'tools' is a list of JSON schemas"),
        ("hi", {"chat_template_kwargs": {"enable_thinking": False}}, "variable 'enable_thinking'"),
        ("hi", {"chat_template_kwargs": {"tokenize": True}}, "'tokenize' is not a variable"),
        ("hi", {"chat_template_kwargs": "x"}, "holds variables by name"),
        ("hi", {"chat_template_kwargs": ["x"]}, "holds variables by name"),
        ([USER, call({})], {}, "ends with tool calls"),
        ([USER, {"role": "assistant", "content": " "}], {}, "ends with an empty message"),
    ],
)
def test_what_a_template_does_not_show_is_refused_by_name(
    prompt: Any, columns: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=f"task u: .*{says}"):
        shown(made(PLAIN), prompt, **columns)


def test_a_message_whose_text_is_left_out_is_refused() -> None:
    template = "{% for m in messages if m['role'] in ('user', 'assistant') %}[{{ m['role'] }}]"
    template += "{{ m['content'].split('</think>')[-1] }}\n{% endfor %}"
    with pytest.raises(DataError, match=r"leaves out the text of the system message \('Be kind"):
        shown(made(template, system_prompt="Be kind."), "hi")
    with pytest.raises(DataError, match="the tool message"):
        shown(made(template), [USER, {"role": "tool", "content": "rain"}])
    with pytest.raises(DataError, match="the human message"):  # a text that stands elsewhere, too
        shown(made(template), [{"role": "human", "content": "as"}, {**USER, "content": "fast"}])
    # A thought of an earlier turn is taken out on purpose, and the turn is still there.
    earlier = {"role": "assistant", "content": "<think>so</think>yes"}
    assert shown(made(template), [USER, earlier, USER]).split("\n")[1] == "[assistant]yes"


def test_a_key_that_is_not_shown_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    plain = made(PLAIN)
    for _ in range(3):
        shown(plain, [{**USER, "name": "Ada", "id": 7}])
    assert [record.getMessage() for record in caplog.records] == [
        f"the model's chat template does not show {key!r} of the messages" for key in ("name", "id")
    ]


TRIMS = PLAIN.replace("m['content']", "m['content'] | trim")
EMPTY_THOUGHT = PLAIN.replace(
    "[{{ m['role'] }}]",
    "[{{ m['role'] }}]{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}",
)

THOUGHT = PLAIN.replace(
    "[{{ m['role'] }}]",
    "[{{ m['role'] }}]{% if m['reasoning_content'] %}<think>\n{{ m['reasoning_content'] }}\n"
    "</think>\n{% endif %}",
)


@pytest.mark.parametrize(
    ("template", "said", "end", "prefill"),
    [
        (PLAIN, "<think>Let me", "[assistant]<think>Let me", "<think>Let me"),
        (PLAIN, "<think>\n", "[assistant]<think>\n", "<think>\n"),
        (TRIMS, " <think>\n", "[assistant]<think>\n", "<think>\n"),
        (EMPTY_THOUGHT, "<think>Let", "[assistant]<think>Let", "<think>Let"),
        (
            EMPTY_THOUGHT,
            "It is",
            "[assistant]<think>\n\n</think>\n\nIt is",
            "<think>\n\n</think>\n\nIt is",
        ),
        (
            THOUGHT,
            "It is",
            "[assistant]<think>\nso\n</think>\nIt is",
            "<think>\nso\n</think>\nIt is",
        ),
    ],
)
def test_a_final_message_of_the_assistant_is_continued(
    template: str, said: str, end: str, prefill: str
) -> None:
    final = {"role": "assistant", "content": said}
    prompt = [USER, final | ({"reasoning_content": "so"} if template == THOUGHT else {})]
    found = made(template, prefill="Well, ").render(Task(uid="u", prompt=prompt))
    assert found is not None
    assert (found.text, found.prefill) == (f"[user]weather?[end]\n{end}", prefill)


def test_rewards_see_what_the_assistant_had_begun_as_part_of_the_completion() -> None:
    prompt = [USER, {"role": "assistant", "content": "<think>Let me"}]
    found = made(PLAIN).render(Task(uid="u", prompt=prompt, columns={"tools": []}))

    assert found is not None
    version = Version(step=0, hash="h")
    segment = Segment(ids=np.array([1]), version=version, logprobs=np.array([-1.0]))
    said = Completion(
        request="u", index=0, segments=(segment,), text=" see</think>rain", finish="stop"
    )
    arguments = call_arguments(found, [said])
    assert arguments["prompts"] == [[USER]]
    assert arguments["completions"] == [
        [{"role": "assistant", "content": "<think>Let me see</think>rain"}]
    ]


def test_a_rewritten_final_message_is_refused() -> None:
    cut = PLAIN.replace("m['content']", "m['content'].split('</think>')[-1]")
    with pytest.raises(DataError, match="rewrites the final message of the assistant"):
        shown(made(cut), [USER, {"role": "assistant", "content": "<think>so</think>It"}])


def test_todays_date_is_one_date(caplog: pytest.LogCaptureFixture) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now( \"%Y'%m\" ) }}" + PLAIN
    today = datetime.date.today().strftime("%d %b %Y")
    tokenizer = build_tokenizer(string.printable)
    tokenizer.chat_template = dated
    assert str(tokenizer.apply_chat_template([USER], tokenize=False)).startswith(today)
    assert shown(made(dated), "hi").startswith("26 Jul 2024|2024'07[user]hi")
    assert "all say 2024-07-26: set data.template_args.date" in caplog.text
    for date in ("2031-01-02", datetime.date(2031, 1, 2)):
        assert shown(made(dated, date=date), "hi").startswith("02 Jan 2031|2031'01[")
    with pytest.raises(RecipeError, match="date: the model's chat template does not write today's"):
        made(PLAIN + "{% set x = date_string %}", date="2031-01-02")
    with pytest.raises(RecipeError, match="'tomorrow' is not a date"):
        made(dated, date="tomorrow")
    with pytest.raises(RecipeError, match="in a format that it computes"):
        shown(made("{% set f = '%d' %}{{ strftime_now(f) }}" + PLAIN), "hi")


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"enable_thinkin": True}, "does not use a variable 'enable_thinkin'"),
        ({"add_generation_prompt": False}, "'add_generation_prompt' is not a variable"),
    ],
)
def test_a_variable_that_does_nothing_is_refused(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        made(FULL, chat_template_kwargs=kwargs)


def test_several_templates_without_a_default_ask_for_a_choice() -> None:
    tokenizer = build_tokenizer(string.printable)
    tokenizer.chat_template = {"rag": FULL, "plain": PLAIN}
    with pytest.raises(RecipeError, match=r"no default \(plain, rag\)"):
        PromptTemplate("chat", tokenizer)
    chosen = PromptTemplate("chat", tokenizer, chat_template_kwargs={"chat_template": "plain"})
    assert shown(chosen, "hi") == "[user]hi[end]\n[assistant]"


# Rows


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"type": "image"}, {"type": "text", "text": "?"}], "a part of type 'image'"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "is in 2 parts"),
        (None, "must be non-empty text or a list of messages"),
        (" ", "must be non-empty text or a list of messages"),
    ],
)
def test_content_that_is_not_one_text_is_refused(content: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        checked_prompt("f:1", "prompt", [{"role": "user", "content": content}])


def test_messages_keep_what_they_have_and_old_rows_their_place(tmp_path: Path) -> None:
    parts = {"content": [{"type": "text", "text": "2+2?"}], "role": "user"}
    one = checked_prompt("f:1", "prompt", [parts])
    assert json.dumps(one) == '[{"role": "user", "content": "2+2?"}]'
    table = as_row({"prompt": [{**RAIN, "tool_calls": None}], "tools": [{"a": None, "b": [1]}]})
    assert table == {"prompt": [RAIN], "tools": [{"b": [1]}]}
    path = tmp_path / "rows.jsonl"
    row = {"prompt": [USER, call({"c": None}), RAIN], "tools": TOOLS, "answer": "x"}
    path.write_text(json.dumps(row) + "\n")
    task = file(path=str(path), heldout_fraction=0.0).task("train", 0)
    assert task.prompt == row["prompt"]
    assert task.columns == {"tools": TOOLS}


def test_fine_tuning_reads_the_same_prompt_and_teaches_content_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    said = {"role": "assistant", "content": "rain"}
    file.write_text(json.dumps({"prompt": [USER], "completion": [said], "tools": TOOLS}) + "\n")
    full = made(FULL)
    ((row,), _) = encode(read_rows(str(file)), full, 1000)
    assert full.tokenizer.decode(list(row.prompt_ids)) == shown(full, [USER], tools=TOOLS)
    began = [USER, {"role": "assistant", "content": "It is "}]
    rows = [TextRow(place="f:1", prompt=began, completion="It is rain")]
    ((row,), _) = encode(rows, full, 1000)
    assert full.tokenizer.decode(list(row.ids[:-1])) == "rain"
    file.write_text(json.dumps({"prompt": [USER], "completion": [call({})]}) + "\n")
    with pytest.raises(DataError, match="message has tool_calls beside its content"):
        read_rows(str(file))


# Begin and end of sequence


@pytest.fixture
def wrapping() -> Any:
    """A tokenizer that writes <pad> (as bos) before what it encodes, and <eos> after it."""
    made = build_tokenizer(string.printable)
    made.bos_token = made.pad_token
    bos, eos = made.bos_token, made.eos_token
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(bos, made.bos_token_id), (eos, made.eos_token_id)],
    )
    return made


def test_there_is_one_bos_and_no_eos_but_the_prompts_own(wrapping: Any) -> None:
    bos, eos = wrapping.bos_token_id, wrapping.eos_token_id
    raw = PromptTemplate("raw", wrapping)
    plain = wrapping.encode("2+2?", add_special_tokens=False)
    for text, ids in {
        "2+2?": [bos, *plain],
        f"{wrapping.bos_token}2+2?": [bos, *plain],
        f"{wrapping.bos_token}2+2?{wrapping.eos_token}": [bos, *plain, eos],
    }.items():
        found = raw.render(Task(uid="u", prompt=text))
        assert found is not None
        assert list(found.ids) == ids


def test_truncation_keeps_the_bos_and_the_assistants_turn(wrapping: Any) -> None:
    long = Task(uid="u", prompt="0123456789")
    raw = PromptTemplate("raw", wrapping, max_prompt_length=4, overlong="truncate")
    found = raw.render(long)
    assert found is not None
    assert list(found.ids) == [wrapping.bos_token_id, *wrapping.encode("789")[1:-1]]
    wrapping.chat_template = "{{ bos_token }}" + PLAIN
    turn = len("[end]\n[assistant]")
    for limit, fits in ((1 + turn, True), (turn, False)):
        chat = PromptTemplate("chat", wrapping, max_prompt_length=limit, overlong="truncate")
        if fits:
            found = chat.render(long)
            assert found is not None
            assert found.text == f"{wrapping.bos_token}[end]\n[assistant]"
            continue
        with pytest.raises(DataError, match=r"no room for the assistant's turn"):
            chat.render(long)
