"""Conversations through a tokenizer's chat template, with nothing left out silently.

A chat template may leave out parts of a conversation. So every part of a row (messages of every
role, tool calls, tools, thoughts) is searched for in the rendered text. A row with a part that
makes no difference to the text is refused by name.
"""

from __future__ import annotations

import copy
import datetime
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from grpo.errors import DataError, RecipeError
from grpo.outside.templates.chat_templates import TEMPLATE_DATE, asks_for_date, dated, parse_date
from grpo.outside.templates.template_limits import rendered
from grpo.types import Message

logger = logging.getLogger(__name__)

TOOLS, KWARGS = "tools", "chat_template_kwargs"  # columns of a row, named as in TRL
RESERVED = ("add_generation_prompt", "continue_final_message", "conversation", "tokenize")
# What transformers itself takes besides the template's variables.
_OF_TRANSFORMERS = ("chat_template", "documents", TOOLS)
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_MARK = "\u2063grpo\u2063"  # appended to a message to see whether its text is shown
_SURE = 24  # a text of so many characters is not in a prompt by chance
_THOUGHT = re.compile(r"<think>((?:(?!<think>).)*)</think>\s*\Z", re.DOTALL)


class ChatTemplate:
    """The chat template of `tokenizer`, with variables `kwargs` and with `date` as today's date.

    Raises RecipeError if there is no template, or if it does not use a variable or the date.
    """

    def __init__(
        self, tokenizer: Any, kwargs: Mapping[str, Any] | None = None, date: object = None
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise RecipeError(
                "data.template is 'chat', but this model's tokenizer has no chat template; "
                "give it one by data.chat_template (text or file), or use 'r1_zero' or 'raw'"
            )
        self.tokenizer = tokenizer
        self.kwargs = dict(kwargs or {})
        self.date: datetime.date = TEMPLATE_DATE if date is None else parse_date(date)
        self._dated: dict[str, str] = {}
        self._told: set[str] = set()
        source = self._source(self.kwargs)
        problem = _misnamed(self.kwargs, source)
        if problem:
            raise RecipeError(f"data.template_args.chat_template_kwargs: {problem}")
        if date is not None and not asks_for_date(f"{tokenizer.chat_template} {source}"):
            raise RecipeError(
                "data.template_args.date: the model's chat template does not write today's date, "
                "so it would do nothing; leave it out, or, where the template has a variable for "
                "it, name that in data.template_args.chat_template_kwargs"
            )
        if asks_for_date(source) and date is None and "date_string" not in self.kwargs:
            logger.warning(
                "the model's chat template writes today's date; so that prompts are the same on "
                "every day, all say %s: set data.template_args.date for another",
                self.date.isoformat(),
            )

    def render(
        self, where: str, messages: Sequence[Message], columns: Mapping[str, Any]
    ) -> tuple[str, str]:
        """The prompt's text, and the beginning of the answer that a final assistant message gives.

        `columns` may have the row's own `tools` and `chat_template_kwargs`. Raises DataError, with
        `where`, for what the template refuses or leaves out.
        """
        kwargs = {**self.kwargs, **_row_kwargs(where, columns)}
        problem = _misnamed(kwargs, self._source(kwargs))
        if problem:
            raise DataError(f"{where}: column {KWARGS!r}: {problem}")
        told = [{k: v for k, v in message.items() if v is not None} for message in messages]
        final = told[-1] if told and told[-1].get("role") == "assistant" else None
        if final is not None:
            _check_final(where, final)
        text = self._apply(where, told, kwargs)
        if any(json.dumps(call) in text for call in _argument_texts(told)):
            # Quoted once more: this template wants arguments as objects, OpenAI's API gives text.
            told = _with_objects(told)
            text = self._apply(where, told, kwargs)
        self._check_messages(where, told, kwargs, text)
        if kwargs.get(TOOLS) and self._same(told, {**kwargs, TOOLS: None}, text):
            raise DataError(
                f"{where}: the model's chat template does not show the tools of the row; use a "
                "model with a template that does, or leave out the column 'tools'"
            )
        return (text, "") if final is None else _continued(where, text, str(final["content"]))

    def ending(self) -> str:
        """The text with which the template begins the assistant's turn."""
        asked: list[Message] = [{"role": "user", "content": _MARK}]
        text = self._apply("the generation prompt", asked, self.kwargs)
        return text.rpartition(_MARK)[2]

    # One rendering

    def _apply(self, where: str, messages: Sequence[Message], kwargs: Mapping[str, Any]) -> str:
        from jinja2 import TemplateError  # there wherever a chat template is

        sent, source = list(messages), self._source(kwargs)
        final = bool(sent) and sent[-1].get("role") == "assistant"
        if final:  # marked where it ends, so that what closes its turn can be taken away
            sent[-1] = {**sent[-1], "content": f"{sent[-1].get('content', '')}{_MARK}"}
        options = dict(kwargs)
        if asks_for_date(source):
            if source not in self._dated:
                self._dated[source] = dated(source, self.date)
            options["chat_template"] = self._dated[source]
        try:
            text = rendered(self.tokenizer, sent, add_generation_prompt=not final, **options)
        # Many templates refuse a system message or an odd order; others fail at what they get.
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                f"{where}: the model's chat template refuses the conversation: {reason}"
            ) from error
        return text.rpartition(_MARK)[0] if final else text

    def _source(self, kwargs: Mapping[str, Any]) -> str:
        """The template that is used with `kwargs`, as text."""
        find = getattr(self.tokenizer, "get_chat_template", None)
        if find is None:
            return str(self.tokenizer.chat_template)
        try:
            return str(find(kwargs.get("chat_template"), kwargs.get(TOOLS)))
        except ValueError as error:
            named = ", ".join(sorted(self.tokenizer.chat_template))
            raise RecipeError(
                f"the model has several chat templates and no default ({named}); choose one by "
                "data.template_args.chat_template_kwargs.chat_template"
            ) from error

    def _same(self, messages: Sequence[Message], kwargs: Mapping[str, Any], text: str) -> bool:
        """Whether the text is `text` with these messages and variables, too."""
        try:
            return self._apply("", messages, kwargs) == text
        except DataError:
            return False

    # What is in the text

    def _check_messages(
        self, where: str, messages: list[Message], kwargs: Mapping[str, Any], text: str
    ) -> None:
        for place, message in enumerate(messages):
            said = message.get("content")
            if not isinstance(said, str) or not said.strip():
                continue
            if len(said.strip()) >= _SURE and said.strip() in text:
                continue
            changed = list(messages)
            changed[place] = {**message, "content": said + _MARK}
            if self._same(changed, kwargs, text):
                raise DataError(
                    f"{where}: the model's chat template leaves out the text of the "
                    f"{message['role']} message ({said.strip()!r:.60}); put it into another "
                    "message, or use a model whose template shows it"
                )
        extra = dict.fromkeys(
            key for message in messages for key, value in message.items() if value
        )
        for key in extra:
            if key in ("role", "content") or key in self._told:
                continue
            bare = [{k: v for k, v in message.items() if k != key} for message in messages]
            if self._same(bare, kwargs, text):
                self._left_out(where, key, kwargs)

    def _left_out(self, where: str, key: str, kwargs: Mapping[str, Any]) -> None:
        """Report a key of messages that the text does not depend on. Raises DataError for a loss.

        Templates that know thoughts leave out those of earlier turns on purpose.
        """
        if key in _THOUGHTS and any(name in self._source(kwargs) for name in _THOUGHTS):
            return
        if key == "tool_calls" or key in _THOUGHTS:
            raise DataError(
                f"{where}: the model's chat template does not show {key!r} of the messages; write "
                "it into their content as the model would, or leave it out"
            )
        if key not in self._told:
            self._told.add(key)
            logger.warning("the model's chat template does not show %r of the messages", key)


def template_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that are meant for the chat template."""
    return {name: row[name] for name in (TOOLS, KWARGS) if row.get(name)}


def _row_kwargs(where: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a row: its `chat_template_kwargs`, and its `tools`.

    Tables write None into a row that lacks a variable of others, so None counts as absent.
    """
    own = columns.get(KWARGS) or {}
    if not isinstance(own, Mapping):
        raise DataError(f"{where}: column {KWARGS!r} holds variables by name, not {own!r:.60}")
    given = cast("Mapping[Any, Any]", own).items()
    found = {str(key): value for key, value in given if value is not None}
    template = found.get("chat_template")
    if template is not None and (not isinstance(template, str) or "{" in template):
        raise DataError(
            f"{where}: column {KWARGS!r} brings a chat template of its own, a program that is not "
            "taken from rows: name one of the model's, or give it in data.chat_template"
        )
    tools = columns.get(TOOLS)
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            tools = [tools]
    if tools:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise DataError(
                f"{where}: column {TOOLS!r} is a list of JSON schemas, as objects or as JSON text, "
                f"not {columns[TOOLS]!r:.60}"
            )
        found[TOOLS] = tools
    return found


def _argument_texts(messages: Sequence[Message]) -> list[str]:
    """The arguments of tool calls that are given as JSON text of an object."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    texts = [(call.get("function") or call).get("arguments") for call in calls]
    return [text for text in texts if isinstance(text, str) and text.lstrip().startswith("{")]


def _with_objects(messages: Sequence[Message]) -> list[Message]:
    """The messages with the arguments of tool calls as objects, where they were JSON text."""
    copied: list[Message] = copy.deepcopy(list(messages))
    for message in copied:
        for call in message.get("tool_calls") or ():
            function = call.get("function") or call
            with suppress(TypeError, ValueError, RecursionError):
                function["arguments"] = json.loads(function["arguments"])
    return copied


def _misnamed(kwargs: Mapping[str, Any], source: str) -> str | None:
    """What is wrong with a name among `kwargs`; None if nothing is."""
    for name in kwargs:
        if name in RESERVED:
            return f"{name!r} is not a variable of templates; the toolkit sets it itself"
        if name not in _OF_TRANSFORMERS and not re.search(rf"\b{re.escape(name)}\b", source):
            return (
                f"the model's chat template does not use a variable {name!r}, so it would do "
                "nothing; leave it out"
            )
    return None


def _check_final(where: str, final: Message) -> None:
    said = final.get("content")
    if final.get("tool_calls"):
        raise DataError(
            f"{where}: the prompt ends with tool calls of the assistant, which only a tool can "
            "answer; add the message of the tool, or leave the calls out"
        )
    if not isinstance(said, str) or not said.strip():
        raise DataError(
            f"{where}: the prompt ends with an empty message of the assistant; leave it out, the "
            "model begins one of its own"
        )


def _continued(where: str, text: str, said: str) -> tuple[str, str]:
    """The prompt that the assistant's message `said` ends, and what rewards put back before it."""
    written = said if text.endswith(said) else said.lstrip()  # templates that trim
    if not text.endswith(written):
        raise DataError(
            f"{where}: the model's chat template rewrites the final message of the assistant "
            f"({said!r:.60}), so it cannot be continued; put it into data.template_args.prefill"
        )
    before = text[: len(text) - len(written)]
    thought = _THOUGHT.search(before)  # the row's reasoning_content, or the template's own
    if thought is None:
        return text, written
    if "<think>" in written and not thought[1].strip():  # one closed before every answer
        before = before[: thought.start()]
        return before + written, written
    return text, thought[0] + written
