"""Tasks through a template: what the model reads, as text and as token ids.

Templates: `r1_zero` (the user/assistant template of DeepSeek-R1-Zero, for base models), `chat` (the
tokenizer's own chat template) and `raw` (the task's text as it is). What is already written of the
answer at the end of the prompt, by `prefill` or by a chat template that opens `<think>` itself, is
recorded in `Prompt.prefill`, so that rewards can put it back in front of the completion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from grpo.errors import DataError, RecipeError, unknown_name
from grpo.types import Message, Prompt, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("r1_zero", "chat", "raw")
OVERLONG = ("drop", "truncate", "error")

# Table 1 of the DeepSeek-R1 paper (arXiv 2501.12948); `system_prompt` replaces it.
R1_ZERO_PREAMBLE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves"
    " it. The assistant first thinks about the reasoning process in the mind and then provides the"
    " user with the answer. The reasoning process and answer are enclosed within <think> </think>"
    " and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think>"
    " <answer> answer here </answer>."
)

# A thought that the template itself opened (or opened and closed, when thinking is turned off).
_OPENED_THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


class PromptTemplate:
    """Renders tasks; `counts` says how many prompts were rendered, dropped and truncated.

    Raises RecipeError for a combination that cannot work (no chat template, a system prompt with
    `raw`), DataError for a task that cannot be rendered or, with overlong="error", is too long.
    """

    def __init__(
        self,
        template: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None = None,
        prefill: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_prompt_length: int | None = None,
        overlong: Literal["drop", "truncate", "error"] = "drop",
    ) -> None:
        if template not in TEMPLATES:
            raise RecipeError(unknown_name("data.template", template, TEMPLATES))
        if overlong not in OVERLONG:
            raise RecipeError(unknown_name("data.overlong", overlong, OVERLONG))
        if template == "chat" and not getattr(tokenizer, "chat_template", None):
            raise RecipeError(
                "data.template is 'chat', but this model's tokenizer has no chat template; "
                "use 'r1_zero' or 'raw'"
            )
        if template != "chat" and chat_template_kwargs:
            raise RecipeError(
                f"data.chat_template_kwargs needs data.template 'chat', not {template!r}"
            )
        if template == "raw" and system_prompt:
            raise RecipeError(
                "data.system_prompt has no place in data.template 'raw'; "
                "use 'chat' or 'r1_zero', or write it into the prompts"
            )
        if max_prompt_length is not None and max_prompt_length < 1:
            raise RecipeError(f"data.max_prompt_length must be at least 1, not {max_prompt_length}")
        self.template = template
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.prefill = prefill or ""
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.max_prompt_length = max_prompt_length
        self.overlong = overlong
        self.counts = {"rendered": 0, "dropped": 0, "truncated": 0}

    def render(self, task: Task) -> Prompt | None:
        """The prompt of a task, or None when it is too long and overlong="drop".

        overlong="truncate" keeps the last `max_prompt_length` tokens: the end of a prompt holds
        the question's own end, the assistant's turn and the prefill, without which nothing works.
        """
        text = self._text(task)
        opened = _OPENED_THOUGHT.search(text)
        prefill = opened.group(0) if opened else ""
        if not (opened and self.prefill.strip() == "<think>"):  # never open the thought twice
            text, prefill = text + self.prefill, prefill + self.prefill
        ids = self._ids(text)
        if not ids:
            raise DataError(f"task {task.uid}: the prompt is empty")
        limit = self.max_prompt_length
        if limit is not None and len(ids) > limit:
            if self.overlong == "drop":
                self.counts["dropped"] += 1
                return None
            if self.overlong == "error":
                raise DataError(
                    f"task {task.uid}: the prompt has {len(ids)} tokens, more than "
                    f"data.max_prompt_length={limit}; raise the limit, or set data.overlong to "
                    "'drop' or 'truncate'"
                )
            self.counts["truncated"] += 1
            ids = ids[-limit:]
            text = str(self.tokenizer.decode(ids, skip_special_tokens=False))
            if not text.endswith(prefill):
                raise DataError(
                    f"data.max_prompt_length={limit} leaves no room for the prefill {prefill!r}"
                )
        self.counts["rendered"] += 1
        return Prompt(task=task, text=text, ids=tuple(ids), prefill=prefill)

    def _text(self, task: Task) -> str:
        if self.template == "chat":
            return self._chat(task)
        question = self._question(task)
        if self.template == "raw":
            return question
        preamble = self.system_prompt or R1_ZERO_PREAMBLE
        # No space after the colon: the model's first token carries its own in most vocabularies.
        # A prefill therefore brings the space it wants.
        return f"{preamble} User: {question} Assistant:"

    def _chat(self, task: Task) -> str:
        from jinja2 import TemplateError  # there wherever a chat template is

        try:
            rendered = self.tokenizer.apply_chat_template(
                self._messages(task),
                tokenize=False,
                add_generation_prompt=True,
                **self.chat_template_kwargs,
            )
        except TemplateError as error:  # many templates refuse a system message or an odd order
            raise DataError(
                f"task {task.uid}: the model's chat template refuses the conversation: {error}"
            ) from error
        return str(rendered)

    def _messages(self, task: Task) -> list[Message]:
        messages = (
            [{"role": "user", "content": task.prompt}]
            if isinstance(task.prompt, str)
            else list(task.prompt)
        )
        # A row's own system message says more about the row than the recipe can.
        if self.system_prompt and (not messages or messages[0].get("role") != "system"):
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return messages

    def _question(self, task: Task) -> str:
        if isinstance(task.prompt, str):
            return task.prompt
        if len(task.prompt) == 1 and task.prompt[0].get("role") == "user":
            return task.prompt[0]["content"]
        raise DataError(
            f"task {task.uid}: the prompt is a conversation, which data.template "
            f"{self.template!r} cannot show; use 'chat'"
        )

    def _ids(self, text: str) -> list[int]:
        # A chat template writes its own special tokens; elsewhere the tokenizer adds its <bos>.
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=self.template != "chat")
        except Exception as error:  # the tokenizers library raises plain Exception
            raise DataError(
                f"the model's tokenizer cannot write the prompt {text[-60:]!r}: {error}; a model "
                "made by a pretrain stage knows the characters of its own tasks only"
            ) from error
        if self.template != "chat":
            # Some tokenizers also close what they encode, and a prompt must stay open.
            while ids and ids[-1] == self.tokenizer.eos_token_id and len(ids) > 1:
                ids = ids[:-1]
        return ids
