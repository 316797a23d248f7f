"""Tasks through a template: what the model reads, as text and as token ids.

Templates: `r1_zero` (the user/assistant template of DeepSeek-R1-Zero, for base models), `chat` (the
tokenizer's own chat template, `conversation.py`) and `raw` (the task's text as it is). A prompt may
end with the beginning of the answer: from `prefill`, from a chat template that opens `<think>`
itself, or from a final message of the assistant. `Prompt.prefill` has that beginning, so that
rewards can put it back in front of the completion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import TYPE_CHECKING, Any, Literal

from grpo.data.conversation import ChatTemplate
from grpo.errors import DataError, RecipeError, unknown_name
from grpo.types import Message, Prompt, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("r1_zero", "chat", "raw")
TEMPLATE_ARGS = ("system_prompt", "prefill", "chat_template_kwargs", "date")
OVERLONG = ("drop", "truncate", "error")
# The column by which a task says how it is sampled (`grpo.data.mixture`).
SAMPLING_COLUMN = "rollout"

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


def template_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """`data.template_args`, every name of it known. Raises RecipeError."""
    for name in args:
        if name not in TEMPLATE_ARGS:
            raise RecipeError(unknown_name("data.template_args", name, TEMPLATE_ARGS))
    return dict(args)


@dataclass(eq=False)
class PromptTemplate:
    """Renders tasks; `counts` says how many prompts were rendered, dropped and truncated.

    `date` (YYYY-MM-DD) stands for today's in chat templates that write it; `vocab_size` is the
    number of tokens that the model has embeddings for. A prompt is too long if it has more than
    `max_prompt_length` tokens, or if the model's `positions` leave no room behind it for
    `completion` tokens (or for as many as the task asks for, if those are fewer). Raises
    RecipeError for a combination that cannot work (no chat template, a system prompt with `raw`),
    DataError for a task that cannot be rendered or, with overlong="error", is too long.
    """

    template: str
    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    system_prompt: str | None = None
    prefill: str | None = None
    chat_template_kwargs: InitVar[Mapping[str, Any] | None] = None
    date: InitVar[object] = None
    vocab_size: int | None = None
    max_prompt_length: int | None = None
    overlong: Literal["drop", "truncate", "error"] = "drop"
    positions: int | None = None
    completion: int = 0

    def __post_init__(self, chat_template_kwargs: Mapping[str, Any] | None, date: object) -> None:
        template, most = self.template, self.max_prompt_length
        if template not in TEMPLATES:
            raise RecipeError(unknown_name("data.template", template, TEMPLATES))
        if self.overlong not in OVERLONG:
            raise RecipeError(unknown_name("data.overlong", self.overlong, OVERLONG))
        if template != "chat" and (chat_template_kwargs or date is not None):
            name = "chat_template_kwargs" if chat_template_kwargs else "date"
            raise RecipeError(f"data.{name} needs data.template 'chat', not {template!r}")
        if template == "raw" and self.system_prompt:
            raise RecipeError(
                "data.system_prompt has no place in data.template 'raw'; "
                "use 'chat' or 'r1_zero', or write it into the prompts"
            )
        if most is not None and most < 1:
            raise RecipeError(f"data.max_prompt_length must be at least 1, not {most}")
        self.chat: ChatTemplate | None = None
        if template == "chat":
            self.chat = ChatTemplate(self.tokenizer, chat_template_kwargs, date)
        self.counts = {"rendered": 0, "dropped": 0, "truncated": 0}

    def render(self, task: Task) -> Prompt | None:
        """The prompt of a task, or None when it is too long and overlong="drop".

        overlong="truncate" keeps a bos and the last `max_prompt_length` tokens: the end of a prompt
        has the end of the question, the assistant's turn and the prefill, which are all needed.
        """
        text, prefill = self._written(task)
        ids = self._ids(text, task.where)
        if not ids:
            raise DataError(f"{task.where}: the prompt is empty")
        self.check_ids(task.where, "prompt", ids)
        limit, why = self.limit(task)
        if limit is not None and len(ids) > limit:
            if self.overlong == "drop":
                self.counts["dropped"] += 1
                return None
            if self.overlong == "error":
                raise DataError(
                    f"{task.where}: the prompt has {len(ids)} tokens, more than {why}; shorten "
                    "it, or set data.overlong to 'drop' or 'truncate'"
                )
            self.counts["truncated"] += 1
            ids, text = self._truncated(ids, limit, prefill, why)
        self.counts["rendered"] += 1
        return Prompt(task=task, text=text, ids=tuple(ids), prefill=prefill)

    def length(self, task: Task) -> int:
        """The tokens of a prompt, however many they are."""
        return len(self._ids(self._written(task)[0], task.where))

    def text_bytes(self, task: Task) -> int:
        """Bytes of a prompt's whole text in UTF-8: no tokenizer makes more tokens than that."""
        return len(self._written(task)[0].encode(errors="replace"))

    def limit(self, task: Task | None = None) -> tuple[int | None, str]:
        """The most tokens that a prompt (of `task`) may have, None for no limit, and the reason."""
        limit = self.max_prompt_length
        if self.positions is not None:
            own = task.columns.get(SAMPLING_COLUMN) if task else None
            asked = own.get("max_completion_length") if isinstance(own, Mapping) else None
            length = min(self.completion, asked) if isinstance(asked, int) else self.completion
            room = self.positions - length
            if limit is None or room < limit:
                return room, (
                    f"the {room} tokens that max_completion_length = {length} leaves of the "
                    f"model's {self.positions} positions"
                )
        return limit, f"data.max_prompt_length={limit}"

    def _written(self, task: Task) -> tuple[str, str]:
        """The whole text, and the part of it that is the beginning of the answer."""
        if self.chat is not None:
            where, messages = task.where, self._messages(task)
            text, final = self.chat.render(where, messages, task.columns)
            if final:  # a row's own beginning goes before that of the recipe
                return text, final
        else:
            text = self._text(task)
        opened = _OPENED_THOUGHT.search(text)
        prefill = opened.group(0) if opened else ""
        own = self.prefill or ""
        if opened and own.strip() == "<think>":  # never open the thought twice
            return text, prefill
        return text + own, prefill + own

    def _truncated(
        self, ids: list[int], limit: int, prefill: str, why: str
    ) -> tuple[list[int], str]:
        """The last of `ids`, `limit` in all, as ids and text."""
        bos = ids[:1] if ids[0] == getattr(self.tokenizer, "bos_token_id", None) else []
        kept = bos + ids[len(ids) - limit + len(bos) :]
        text = str(self.tokenizer.decode(kept, skip_special_tokens=False))
        ending = prefill
        if self.chat is not None and not prefill:
            ending = self.chat.ending()
        if not text.endswith(ending):
            what = f"the prefill {prefill!r}" if prefill else f"the assistant's turn {ending!r}"
            raise DataError(f"a prompt cut to {why} has no room for {what}")
        return kept, text

    def check_ids(self, where: str, what: str, ids: Sequence[int]) -> None:
        """Refuse tokens that the model has no embedding for. Raises DataError."""
        size, last = self.vocab_size, max(ids, default=0)
        if size is not None and last >= size:
            token = self.tokenizer.convert_ids_to_tokens(last)
            raise DataError(
                f"{where}: the {what} has the token {token!r} ({last}), but the model has "
                f"embeddings for {size} tokens only; resize them, or use the model's own tokenizer"
            )

    def _text(self, task: Task) -> str:
        question = self._question(task)
        if self.template == "raw":
            return question
        preamble = self.system_prompt or R1_ZERO_PREAMBLE
        # No space after the colon: the model's first token carries its own in most vocabularies.
        # A prefill therefore brings the space it wants.
        return f"{preamble} User: {question} Assistant:"

    def _messages(self, task: Task) -> list[Message]:
        messages = (
            [{"role": "user", "content": task.prompt}]
            if isinstance(task.prompt, str)
            else list(task.prompt)
        )
        # A row's own system message goes before that of the recipe.
        if self.system_prompt and (not messages or messages[0].get("role") != "system"):
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return messages

    def _question(self, task: Task) -> str:
        if isinstance(task.prompt, str):
            return task.prompt
        if len(task.prompt) == 1 and task.prompt[0].get("role") == "user":
            return str(task.prompt[0]["content"])
        raise DataError(
            f"{task.where}: the prompt is a conversation, which data.template "
            f"{self.template!r} cannot show; use 'chat'"
        )

    def _ids(self, text: str, where: str) -> list[int]:
        # A chat template writes its own special tokens; elsewhere the tokenizer adds its <bos>.
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=self.template != "chat")
        except Exception as error:  # the tokenizers library raises plain Exception
            raise DataError(
                f"{where}: the model's tokenizer cannot write the prompt {text[-60:]!r}: {error}; "
                "a model made by a pretrain stage knows the characters of its own tasks only"
            ) from error
        if self.template != "chat":
            # Some tokenizers also append an <eos>, and a prompt must stay open.
            eos: Any = self.tokenizer.eos_token_id
            if eos is not None and len(ids) > 1 and ids[-1] == eos:
                own = _trailing(self.tokenizer.encode(text, add_special_tokens=False), eos)
                ids = ids[: len(ids) - max(0, _trailing(ids[1:], eos) - own)]
            # A text that a template made has a <bos> of its own.
            bos = getattr(self.tokenizer, "bos_token_id", None)
            while bos is not None and ids[:2] == [bos, bos]:
                ids = ids[1:]
        return ids


def _trailing(ids: Sequence[int], token: int) -> int:
    """How many of the last ids are `token`, one after another."""
    return next((n for n, i in enumerate(reversed(ids)) if i != token), len(ids))
