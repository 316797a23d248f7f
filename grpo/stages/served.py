"""Prompts for a server that samples as a teacher: text, or the messages of a chat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from grpo.config.schema import Data
from grpo.data.conversation import template_columns
from grpo.data.prompts import PromptTemplate, template_args
from grpo.errors import DataError, RecipeError
from grpo.evaluation.decontaminate import prompt_text
from grpo.rollout.remote.endpoint import Said
from grpo.types import Prompt, Request, Task


class ServedTemplate(PromptTemplate):
    """Prompts for a server. It gets their text, or with data.template=chat their messages.

    A prompt's ids are those of the student's tokenizer. They measure its length, and `say` finds
    its text by them.
    """

    def __init__(self, data: Data, tokenizer: Any) -> None:
        args = template_args(data.template_args)
        self.chats = data.template == "chat"
        self.said: dict[tuple[int, ...], Said] = {}
        system = args.pop("system_prompt", None) if self.chats else None
        if self.chats and (args or data.overlong == "truncate"):
            wrong = f"data.template_args.{next(iter(args))}" if args else "data.overlong=truncate"
            raise RecipeError(
                f"{wrong} has no place with data.template=chat and a server as the teacher, which "
                "writes the prompt itself; fields of the request go into rollout.engine_args.body"
            )
        super().__init__(
            "raw" if self.chats else data.template,
            tokenizer,
            max_prompt_length=data.max_prompt_length,
            overlong=data.overlong,
            **args,
        )
        self.system = system

    def render(self, task: Task) -> Prompt | None:
        """As PromptTemplate. What the server will get is stored for `say`."""
        if not self.chats:
            prompt = super().render(task)
            if prompt is not None:
                self.said[prompt.ids] = prompt.text
            return prompt
        _check_servable(task)
        prompt = super().render(replace(task, prompt=prompt_text(task.prompt)))
        if prompt is None:
            return None
        messages = task.prompt
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        self.said[prompt.ids] = messages
        return replace(prompt, task=task)

    def say(self, request: Request) -> Said:
        """Text or messages of a request."""
        return self.said[request.ids]


def _check_servable(task: Task) -> None:
    """Refuse what cannot be passed to a server's own chat template. Raises DataError."""
    for name in template_columns(task.columns):
        raise DataError(
            f"task {task.uid}: a server with OpenAI's API gets messages only, not the row's "
            f"{name!r}; leave the column out, or write it into the messages"
        )
    if not isinstance(task.prompt, str) and task.prompt[-1].get("role") == "assistant":
        raise DataError(
            f"task {task.uid}: the prompt ends with a message of the assistant, which a server "
            "would close instead of going on with it; leave it out"
        )
