"""Templates: exact text and ids, what is recorded as prefill, and over-long prompts by policy."""

from __future__ import annotations

import string

import pytest

from grpo.data.prompts import R1_ZERO_PREAMBLE, PromptTemplate
from grpo.errors import DataError, RecipeError
from grpo.stages.from_scratch import build_tokenizer
from grpo.types import Task

CHATML = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ opening }}{% endif %}"
)
TASK = Task(uid="t", prompt="2+2?", answer="4")


@pytest.fixture
def tokenizer():
    made = build_tokenizer(string.printable)
    made.chat_template = CHATML
    return made


def test_raw_is_the_text_as_it_is(tokenizer):
    prompt = PromptTemplate("raw", tokenizer).render(TASK)
    assert (prompt.text, prompt.prefill) == ("2+2?", "")
    assert tokenizer.decode(prompt.ids) == "2+2?"
    assert prompt.task is TASK


def test_r1_zero(tokenizer):
    prompt = PromptTemplate("r1_zero", tokenizer, prefill=" <think>").render(TASK)
    assert prompt.text == R1_ZERO_PREAMBLE + " User: 2+2? Assistant: <think>"
    assert prompt.prefill == " <think>"
    assert prompt.ids[-1] == tokenizer.convert_tokens_to_ids("<think>")
    assert tokenizer.decode(prompt.ids) == prompt.text
    short = PromptTemplate("r1_zero", tokenizer, system_prompt="Think.").render(TASK)
    assert short.text == "Think. User: 2+2? Assistant:"


def test_chat_with_system_prompt_and_kwargs(tokenizer):
    template = PromptTemplate(
        "chat", tokenizer, system_prompt="Be good.", chat_template_kwargs={"opening": ">"}
    )
    assert template.render(TASK).text == "[system]Be good.\n[user]2+2?\n[assistant]>"
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}]
    rendered = template.render(Task(uid="u", prompt=own)).text
    assert rendered == "[system]Mine.\n[user]Hi\n[assistant]>"
    assert own[0]["content"] == "Mine."


@pytest.mark.parametrize(
    ("opening", "asked", "text_end", "recorded"),
    [
        ("<think>\n", "", "[assistant]<think>\n", "<think>\n"),
        ("<think>\n", "<think>", "[assistant]<think>\n", "<think>\n"),  # not opened twice
        ("<think>\n", "So", "[assistant]<think>\nSo", "<think>\nSo"),
        ("", "<think>\n", "[assistant]<think>\n", "<think>\n"),
        ("<think>\n\n</think>\n\n", "", "</think>\n\n", "<think>\n\n</think>\n\n"),
        ("", "", "[assistant]", ""),
    ],
)
def test_what_the_template_opened_is_prefill(tokenizer, opening, asked, text_end, recorded):
    template = PromptTemplate(
        "chat", tokenizer, prefill=asked, chat_template_kwargs={"opening": opening}
    )
    prompt = template.render(TASK)
    assert prompt.text.endswith(text_end)
    assert prompt.prefill == recorded
    assert prompt.text == f"[user]2+2?\n[assistant]{recorded}"


def test_a_thought_in_the_question_is_not_prefill(tokenizer):
    task = Task(uid="u", prompt="What does <think> mean?")
    assert PromptTemplate("raw", tokenizer).render(task).prefill == ""


def test_overlong_policies(tokenizer):
    long = Task(uid="long", prompt="0123456789")
    drop = PromptTemplate("raw", tokenizer, max_prompt_length=4)
    assert drop.render(long) is None
    assert drop.render(TASK) is not None  # exactly at the limit
    assert drop.counts == {"rendered": 1, "dropped": 1, "truncated": 0}
    cut = PromptTemplate(
        "raw", tokenizer, prefill="<think>", max_prompt_length=4, overlong="truncate"
    )
    prompt = cut.render(long)
    assert (prompt.text, prompt.prefill, len(prompt.ids)) == ("789<think>", "<think>", 4)
    assert cut.counts == {"rendered": 1, "dropped": 0, "truncated": 1}
    refuse = PromptTemplate("raw", tokenizer, max_prompt_length=4, overlong="error")
    with pytest.raises(DataError, match="long: the prompt has 10 tokens, more than"):
        refuse.render(long)
    narrow = PromptTemplate(
        "raw", tokenizer, prefill="abcdef", max_prompt_length=3, overlong="truncate"
    )
    with pytest.raises(DataError, match="no room for the prefill"):
        narrow.render(TASK)


def test_bos_is_added_once_and_a_closing_eos_is_taken_away(tokenizer):
    class Wrapped:
        eos_token_id, chat_template = 1, CHATML

        def encode(self, text, *, add_special_tokens):
            body = tokenizer.encode(text)
            return [99, *body, 1] if add_special_tokens else body

        def apply_chat_template(self, *args, **kwargs):
            return tokenizer.apply_chat_template(*args, **kwargs)

    raw = PromptTemplate("raw", Wrapped()).render(TASK)
    assert raw.ids == (99, *tokenizer.encode("2+2?"))
    chat = PromptTemplate("chat", Wrapped()).render(TASK)
    assert chat.ids == tuple(tokenizer.encode(chat.text))


@pytest.mark.parametrize(
    ("template", "kwargs", "says"),
    [
        ("r1zero", {}, "unknown data.template 'r1zero'. Did you mean 'r1_zero'?"),
        ("raw", {"overlong": "skip"}, "unknown data.overlong 'skip'"),
        ("raw", {"system_prompt": "x"}, "data.system_prompt has no place"),
        ("raw", {"chat_template_kwargs": {"a": 1}}, "needs data.template 'chat'"),
        ("raw", {"max_prompt_length": 0}, "at least 1"),
    ],
)
def test_combinations_that_cannot_work(tokenizer, template, kwargs, says):
    with pytest.raises(RecipeError, match=says.replace(".", r"\.").replace("?", r"\?")):
        PromptTemplate(template, tokenizer, **kwargs)


def test_chat_needs_a_chat_template_and_conversations_need_chat(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="has no chat template"):
        PromptTemplate("chat", tokenizer)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="is a conversation"):
        PromptTemplate("raw", tokenizer).render(Task(uid="u", prompt=turns))
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match=r"u: the model's chat template refuses.*no system role"):
        PromptTemplate("chat", tokenizer).render(Task(uid="u", prompt=turns))
    one = PromptTemplate("raw", tokenizer).render(Task(uid="u", prompt=turns[:1]))
    assert one.text == "a"


def test_a_character_the_tokenizer_does_not_know_is_named():
    template = PromptTemplate("raw", build_tokenizer("1"))
    assert len(template.render(Task(uid="a", prompt="11")).ids) == 2
    with pytest.raises(DataError, match="cannot write the prompt '1é'"):
        template.render(Task(uid="b", prompt="1é"))
