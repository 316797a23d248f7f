"""A reward model: any Hugging Face sequence-classification model, as a reward.

As in TRL: prompt and completion through the model's own tokenizer (its chat template for messages),
the first logit is the reward. Text a reward model has not seen in training is scored with the same
confidence as text it has, so R1 uses one only late and briefly (2501.12948): mind its weight.
There helpfulness is judged by the answer alone, so that the thought may go its own way, and
harmlessness by all of the response, thought included: `part`.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo.errors import PluginError, RecipeError, unknown_name
from grpo.model import pretrained
from grpo.outside.templates.chat_templates import dated
from grpo.outside.templates.template_limits import rendered
from grpo.rewards.extract import last_answer_block, split_thought
from grpo.rewards.verifier import Scored, text_of
from grpo.types import Message, Score

PARTS = ("all", "answer")
_SETTING = "reward_model: path"


def answer_part(completion: str) -> str:
    """What a reader is meant to see of a completion; "" where the thought never ended."""
    _, text = split_thought(completion)
    block = None if text is None else last_answer_block(text)
    return (block if block is not None else text or "").strip()


@dataclass(eq=False)
class RewardModel(Scored):
    """scale * logit + offset of a sequence-classification model; `sigmoid` bounds it to (0, 1).

    path: folder or hub id. device: "cpu", "cuda", …. batch_size: texts per forward. max_length:
    tokens, longer texts lose their beginning. The model is loaded on first use.
    part: "all" of the completion, or its "answer": what follows the thought, and of that the
    content of `<answer>` where there is such a block. Without an answer it judges empty text, which
    is what a reader would get.
    """

    __name__ = "reward_model"

    path: str
    device: str = "cpu"
    batch_size: int = 8
    max_length: int = 2048
    sigmoid: bool = False
    scale: float = 1.0
    offset: float = 0.0
    part: str = "all"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_length < 1:
            raise PluginError("reward_model: batch_size and max_length are at least 1")
        if self.part not in PARTS:
            raise PluginError(f"reward_model: {unknown_name('part', self.part, PARTS)}")
        self._loaded: tuple[Any, Any] | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> RewardModel:
        """A reward of a sequence-classification model in memory, on the device where it is.

        The model is put in evaluation mode, and its configuration gets the token of the padding.
        """
        made = cls(path="in memory", device=str(model.device))
        made._loaded = _prepared(model, tokenizer)
        return made

    def made_of(self) -> tuple[object, ...]:
        """What tells one in memory from another (`grpo/outside/code/objects.py`)."""
        network = self._loaded[1] if self._loaded and self.path == "in memory" else None
        return network, self.path, self.max_length, self.scale, self.offset, self.sigmoid, self.part

    def _load(self) -> tuple[Any, Any]:
        with self._lock:
            if self._loaded is None:
                try:
                    tokenizer = pretrained.tokenizer(self.path, _SETTING)
                    kind = pretrained.CLASSIFIER
                    model = pretrained.load_model(self.path, setting=_SETTING, kind=kind)
                except RecipeError as error:
                    raise PluginError(str(error)) from error
                self._loaded = _prepared(model.to(self.device), tokenizer)
            return self._loaded

    def scores(
        self,
        *,
        completions: Sequence[str | list[Message]],
        prompts: Sequence[str | list[Message]] | None = None,
        **columns: Any,
    ) -> list[Score]:
        """One `Score` per completion: scored, or grader_error for a logit that is not finite."""
        import torch

        tokenizer, model = self._load()
        asked = prompts if prompts is not None else [""] * len(completions)
        pairs = zip(asked, completions, strict=True)
        texts = [self._text(tokenizer, *pair) for pair in pairs]
        logits: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(texts), self.batch_size):
                inputs = tokenizer(
                    texts[start : start + self.batch_size],
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                    max_length=self.max_length,
                    add_special_tokens=False,
                ).to(self.device)
                logits += model(**inputs).logits[:, 0].float().tolist()
        return [self._score(logit) for logit in logits]

    def _text(self, tokenizer: Any, prompt: Any, completion: Any) -> str:
        text = text_of(completion)
        if self.part == "answer":
            text = answer_part(text)
        if isinstance(prompt, str):
            return prompt + text
        said = [{"role": "assistant", "content": text}]
        template = dated(tokenizer.get_chat_template())  # the same on every day
        return rendered(tokenizer, [*prompt, *said], chat_template=template)

    def _score(self, logit: float) -> Score:
        if not math.isfinite(logit):
            return Score(value=None, status="grader_error", detail=f"the logit is {logit}")
        squashed = 0.5 * (1 + math.tanh(logit / 2)) if self.sigmoid else logit
        return Score(
            value=self.scale * squashed + self.offset, status="scored", detail=f"logit {logit:.4g}"
        )


def _prepared(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Tokenizer and model with padding that the model knows; both keep what else they have."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.truncation_side = "left"
    size = model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= size:
        tokenizer.pad_token = tokenizer.eos_token
    # The logit is that of the last token before the padding.
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model.eval()
