"""Make a tiny model from nothing: a tokenizer with one token a character, and random weights.

What is saved loads with AutoModelForCausalLM and AutoTokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch

from grpo.data.source import DemonstrationSource
from grpo.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@runtime_checkable
class WordSource(DemonstrationSource, Protocol):
    """A source with words that are one token each."""

    def words(self) -> tuple[str, ...]:
        """The words, with their spaces; their letters need not be in the alphabet."""
        ...


def words_of(source: DemonstrationSource) -> tuple[str, ...]:
    """The texts of a source that are one token each."""
    return source.words() if isinstance(source, WordSource) else ()


def build_tokenizer(alphabet: str, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer with one token a character, one a tag and one for each of `words`.

    <pad> is 0 and <eos> is 1, both special. The four tags and the words are ordinary tokens, so
    they stay in decoded text. Decoding adds no spaces. A word is one token even inside a longer
    text. Encoding a character outside the alphabet raises.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", *TAGS, *sorted(set(alphabet)), *words]
    # WordLevel without an unknown token: better an error than a silently missing digit.
    model = models.WordLevel({name: i for i, name in enumerate(names)})
    core = Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(["<pad>", "<eos>"])
    whole = [AddedToken(text, normalized=False, special=False) for text in (*TAGS, *words)]
    core.add_tokens(whole)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int | None,
    intermediate_size: int,
    architecture: Literal["llama", "qwen2"],
    max_position: int,
    seed: int,
) -> PreTrainedModel:
    """A randomly initialized float32 model with tied embeddings. Raises RecipeError."""
    from transformers import GenerationConfig, LlamaConfig, Qwen2Config
    from transformers.models.llama import LlamaForCausalLM
    from transformers.models.qwen2 import Qwen2ForCausalLM

    if hidden_size % num_heads or (hidden_size // num_heads) % 2:
        raise RecipeError(
            f"model.hidden_size={hidden_size} must be an even multiple of "
            f"model.num_heads={num_heads}"
        )
    num_kv_heads = num_kv_heads or num_heads
    if num_heads % num_kv_heads:
        raise RecipeError(
            f"model.num_kv_heads={num_kv_heads} must divide model.num_heads={num_heads}"
        )
    classes = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }
    if architecture not in classes:
        raise RecipeError(f"model.architecture must be llama or qwen2, not {architecture!r}")
    config_class, model_class = classes[architecture]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, out_dir: str) -> None:
    """Save so that transformers 4 loads it too: version 5 writes a class name that 4 lacks."""
    tokenizer.save_pretrained(out_dir)
    path = Path(out_dir) / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")
