"""Chat templates from outside (`data.chat_template`): read, tried, and how they end.

A template is a Jinja program that writes messages as text. It has to show what was said, to begin
the assistant's turn where it is asked to (`add_generation_prompt`), and to end that turn.

Some templates write today's date (`strftime_now`, Llama 3.2 and SmolLM3 among them). A run would
then use other prompts after midnight, on another machine, or when it is resumed. So every prompt,
run and rank gets the same date (`dated`).
"""

from __future__ import annotations

import datetime
import json
import re
import traceback
from pathlib import Path
from typing import Any

from grpo.errors import RecipeError
from grpo.outside.templates.template_limits import rendered

SETTING = "data.chat_template"
_ASKED, _SAID = "grpo asks", "grpo answers"
_CODE = re.compile(r"\{[{%#]")


def template_text(given: str, file: Path | None, setting: str = SETTING) -> str:
    """The text of a template that is given as text, or as a path.

    file: where the path leads; None where there is nothing. A folder is that of a tokenizer.
    Raises RecipeError.
    """
    if _CODE.search(given):
        return given
    if file is None:
        raise RecipeError(
            f"{setting} = {given!r} is neither a template (there is no {{{{ or {{% in it) nor the "
            "path of a file or of a tokenizer's folder"
        )
    try:
        text = _of_folder(file) if file.is_dir() else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"{setting} = {given!r} cannot be read: {error}") from error
    if text is None:
        raise RecipeError(
            f"{setting} = {given!r}: the folder has neither a chat_template.jinja nor a "
            "tokenizer_config.json with a chat_template"
        )
    if not _CODE.search(text):
        raise RecipeError(
            f"{setting} = {given!r}: no template, since there is no {{{{ or {{% in it"
        )
    return text


def _of_folder(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return None
    try:
        found: Any = json.loads(settings.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{settings.name}: {error}") from error
    found = found.get("chat_template") if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def check_template(tokenizer: Any) -> None:
    """Try the tokenizer's template on a question and an answer. Raises RecipeError."""
    prompt = _rendered(tokenizer, [_ASKED], True)
    shown = _rendered(tokenizer, [_ASKED], False)
    whole = _rendered(tokenizer, [_ASKED, _SAID], False)
    for who, said, text in (("user", _ASKED, prompt), ("assistant", _SAID, whole)):
        if said not in text:
            raise RecipeError(f"{SETTING} does not show the text of the {who}'s message")
    before = whole.partition(_SAID)[0]
    begins = before[len(shown) :].strip() if before.startswith(shown) else ""
    if prompt == shown and begins:
        raise RecipeError(
            f"{SETTING} does not use add_generation_prompt, so that the model would have to write "
            f"{begins!r} itself: end it with {{% if add_generation_prompt %}}…{{% endif %}}, "
            "which writes what stands before an answer"
        )


def turn_end(tokenizer: Any) -> str:
    """What the tokenizer's template writes after an answer; "" where it is not known."""
    try:
        whole = _rendered(tokenizer, [_ASKED, _SAID], False)
    except RecipeError:  # of a model's own template, which may refuse this and take others
        return ""
    return whole.partition(_SAID)[2].strip()


def _rendered(tokenizer: Any, said: list[str], begin: bool) -> str:
    from jinja2 import TemplateSyntaxError  # there wherever a chat template is

    roles = ("user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    try:
        return rendered(tokenizer, messages, add_generation_prompt=begin)
    except TemplateSyntaxError as error:
        raise RecipeError(f"{SETTING}, line {error.lineno}: {error.message}") from error
    except Exception as error:  # it is a program
        line = _line(error)
        where = f"{SETTING}, line {line}" if line else SETTING
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RecipeError(f"{where}: {reason}") from error


def _line(error: BaseException) -> int | None:
    """The line of the template at which it failed: Jinja puts it into the traceback."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [n for f, n in frames if f.f_code.co_filename in ("<template>", "<unknown>")]
    return lines[-1] if lines else None


TEMPLATE_DATE = datetime.date(2024, 7, 26)  # what Llama's templates write where there is no clock

_NOW = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1\s*\)""")
_CALLED = re.compile(r"strftime_now\s*\(")


def asks_for_date(source: str) -> bool:
    """Whether a chat template calls for today's date."""
    return bool(_CALLED.search(source))


def dated(source: str, date: datetime.date = TEMPLATE_DATE) -> str:
    """A chat template with `date` in place of today's, in the format that it asks for.

    Raises RecipeError where the format is not written in the template itself.
    """
    moment = datetime.datetime.combine(date, datetime.time())
    fixed = _NOW.sub(lambda call: repr(moment.strftime(call[2])), source)
    if asks_for_date(fixed):
        raise RecipeError(
            "this model's chat template writes today's date in a format that it computes, so its "
            "prompts would change from day to day; give data.template_args.chat_template_kwargs."
            "chat_template a template without strftime_now"
        )
    return fixed


def parse_date(value: object) -> datetime.date:
    """A date from YYYY-MM-DD, or one that YAML has read. Raises RecipeError."""
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(str(value))
    except ValueError:
        raise RecipeError(
            f"data.template_args.date = {value!r} is not a date; write it as 2024-07-26"
        ) from None
