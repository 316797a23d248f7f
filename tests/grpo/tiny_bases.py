"""Tiny bases as a pretrain stage leaves them, for the tests of the stages that start from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo.stages.from_scratch import build_model, build_tokenizer, save_tokenizer

LETTERS = "abcdefgh"
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
    "intermediate_size": 32,
    "max_position": 64,
}


def tiny_base(tokenizer: Any, seed: int = 0, architecture: Any = "llama", **sizes: Any) -> Any:
    """A random float32 model over the tokens of `tokenizer`; `sizes` as of a pretrain stage."""
    return build_model(tokenizer, **SIZES | sizes, architecture=architecture, seed=seed)


def save_tiny_base(
    folder: Path, seed: int = 0, tokenizer: Any = None, letters: str = LETTERS, **sizes: Any
) -> str:
    """Model and tokenizer (by default one token a letter) in `folder`; its path."""
    tokenizer = tokenizer or build_tokenizer(letters)
    tiny_base(tokenizer, seed, **sizes).save_pretrained(folder)
    save_tokenizer(tokenizer, str(folder))
    return str(folder)
