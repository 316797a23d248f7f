"""The date that a chat template writes: the same one for every prompt, run and rank.

Some templates write today's date (`strftime_now`, Llama 3.2 and SmolLM3 among them). A run would
then use other prompts after midnight, on another machine, or when it is resumed.
"""

from __future__ import annotations

import datetime
import re

from grpo.errors import RecipeError

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
