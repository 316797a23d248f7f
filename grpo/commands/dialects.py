"""Tokenizers of tiny models, with the special tokens and the chat template of a family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

MAX_POSITION = 4096  # tokens that a tiny model has positions for

# The text that the tokenizer and the model are trained on: short worked answers, and a prompt.
LINES = (
    "<think>\n2 + 3 = 5\n</think>\n<answer>\\boxed{5}</answer>",
    "<think>\nWe add them.\n</think>\n<answer> \\boxed{12} </answer>",
    "<think>4 * 7 = 28</think><answer>28</answer>",
    "<think>\nThe sum is 10.\n</think>\n<answer>10</answer>",
    "The answer is \\boxed{3}.",
    "So the answer is 42.",
    "<think>\nIf A lies, B is a knight.\n</think>\n<answer>A is a knave, B is a knight.</answer>",
    "```python\ndef f(x):\n    return x + 1\n```",
    "```python\nprint(input())\n```",
    "<think>\n(1 + 2) * 3 = 9\n</think>\n<answer>(1 + 2) * 3</answer>",
)
PROMPTS = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. User: What is the answer? Assistant: Let's think step by step and put "
    "the final answer in \\boxed{}. You are a helpful assistant.",
)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a family of tokenizers marks texts and turns."""

    bos: str | None
    eos: str
    pad: str
    others: tuple[str, ...]
    chat_template: str
    ends: tuple[str, ...]  # the tokens that end a completion, as in generation_config.json
    words: tuple[str, ...] = ()  # single tokens that are ordinary text


_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ HEAD }}{% endif %}"
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
)
_DEFAULT = "'<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n'"
_QWEN = Dialect(
    bos=None,
    eos="<|im_end|>",
    pad="<|endoftext|>",
    others=("<|im_start|>",),
    chat_template=_SYSTEM.replace("HEAD", _DEFAULT) + _CHATML + "{% endif %}",
    ends=("<|im_end|>", "<|endoftext|>"),
)
DIALECTS: dict[str, Dialect] = {
    "chatml": _QWEN,
    "qwen3": replace(
        _QWEN,
        words=("<think>", "</think>"),
        chat_template=_CHATML
        + "{% if enable_thinking is defined and not enable_thinking %}"
        + "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}",
    ),
    "llama3": Dialect(
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        others=("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
        chat_template="{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] }}"
        "{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ends=("<|eot_id|>", "<|end_of_text|>"),
    ),
    "deepseek": Dialect(
        bos="<｜begin▁of▁sentence｜>",  # noqa: RUF001
        eos="<｜end▁of▁sentence｜>",  # noqa: RUF001
        pad="<｜▁pad▁｜>",  # noqa: RUF001
        others=("<｜User｜>", "<｜Assistant｜>"),  # noqa: RUF001
        words=("<think>", "</think>"),
        chat_template="{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ '<｜Assistant｜>' + m['content'] + eos_token }}"  # noqa: RUF001
        "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"  # noqa: RUF001
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}OPEN{% endif %}",  # noqa: RUF001
        ends=("<｜end▁of▁sentence｜>",),  # noqa: RUF001
    ),
}


def make_tokenizer(dialect: Dialect, opens_thought: bool) -> Any:
    """A byte-level BPE tokenizer trained on `LINES` and `PROMPTS`, in a dialect.

    opens_thought: its chat template writes <think> before an answer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    bos = [dialect.bos] if dialect.bos else []
    marks = dict.fromkeys([*bos, *dialect.ends, dialect.pad, *dialect.others])
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512 + len(marks),
        special_tokens=list(marks),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*LINES, *PROMPTS], trainer)
    bpe.add_tokens([AddedToken(word, special=False, normalized=False) for word in dialect.words])
    if dialect.bos:
        first = (dialect.bos, bpe.token_to_id(dialect.bos))
        bpe.post_processor = TemplateProcessing(single=f"{dialect.bos} $A", special_tokens=[first])
    opened = "{{ '<think>\\n' }}" if opens_thought else ""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=dialect.bos,
        eos_token=dialect.eos,
        pad_token=dialect.pad,
        model_max_length=MAX_POSITION,
    )
    tokenizer.chat_template = dialect.chat_template.replace("OPEN", opened)
    return tokenizer
