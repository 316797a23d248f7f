"""A tokenizer of characters, and reward models that score its texts at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

LETTERS = "0123456789+= ?<>/abcdefghijklmnopqrstuvwxyz\\{}"
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; what is not in LETTERS is a space."""
    names = ["<pad>", "<eos>", *LETTERS]
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(names)}, unk_token=" "))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token=" "
    )


def save_scorer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A reward model with random weights, saved in `folder` with its tokenizer."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = {**SIZES, "vocab_size": len(tokenizer), "num_labels": 1, "pad_token_id": 0}
    config = LlamaConfig(**settings)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
