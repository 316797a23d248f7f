"""Tiny random models of the families that recipes name, for trying a recipe without its weights.

`family_of` finds a model's family from its hub id, by an explicit table. `make_tiny` writes a model
of the same transformers classes with two small layers, and a byte-level BPE tokenizer with the
family's special tokens and chat template. The model is trained on ten lines for a few steps, so
that its completions end and look a little like text. It knows nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from grpo.commands.dialects import DIALECTS, LINES, MAX_POSITION, make_tokenizer
from grpo.errors import RecipeError, unknown_name
from grpo.outside.files import manifest

STEPS = 25  # of fitting, so that completions end

_SMALL = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITION,
}
_DENSE = {**_SMALL, "head_dim": 12}
# Latent attention, one dense layer and one of four routed experts and a shared one.
_DEEPSEEK_V3 = {
    **_SMALL,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
TIED = "-tied"  # ending of an architecture whose output head is the embedding, as of small models
# Model type of transformers -> its configuration, but for the vocabulary.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": _DENSE,
    "qwen3": _DENSE,
    "llama": _DENSE,
    "deepseek_v3": _DEEPSEEK_V3,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a hub id stands for. `opens_thought`: its chat template writes <think> itself."""

    architecture: str
    dialect: str
    opens_thought: bool = False


def _families(text: str) -> tuple[tuple[str, Family], ...]:
    rows = [line.split() for line in text.strip().splitlines()]
    return tuple(
        (pattern, Family(architecture=a, dialect=d, opens_thought=bool(more)))
        for pattern, a, d, *more in rows
    )


# The first pattern that fits decides. A fourth word: the template opens the thought.
FAMILIES = _families("""
    deepseek-ai/DeepSeek-R1-Distill-Qwen-*   qwen2        deepseek  <think>
    agentica-org/DeepScaleR-*                qwen2        deepseek  <think>
    deepseek-ai/DeepSeek-R1-Distill-Llama-*  llama        deepseek  <think>
    deepseek-ai/DeepSeek-R1                  deepseek_v3  deepseek  <think>
    deepseek-ai/DeepSeek-V3*                 deepseek_v3  deepseek
    Qwen/Qwen2.5-*0.5B*                      qwen2-tied   chatml
    Qwen/Qwen2.5-*1.5B*                      qwen2-tied   chatml
    Qwen/Qwen2.5-*3B*                        qwen2-tied   chatml
    Qwen/Qwen2.5-*                           qwen2        chatml
    open-r1/Qwen2.5-*                        qwen2        chatml
    Qwen/Qwen3-0.6B*                         qwen3-tied   qwen3
    Qwen/Qwen3-1.7B*                         qwen3-tied   qwen3
    Qwen/Qwen3-4B*                           qwen3-tied   qwen3
    Qwen/Qwen3-*                             qwen3        qwen3
    meta-llama/Llama-3.2-1B*                 llama-tied   llama3
    meta-llama/Llama-3.2-3B*                 llama-tied   llama3
    meta-llama/*                             llama        llama3
    HuggingFaceTB/SmolLM2*                   llama-tied   chatml
    *smollm2*                                llama-tied   chatml
""")
_DIALECT_OF = {"qwen2": "chatml", "qwen3": "qwen3", "llama": "llama3", "deepseek_v3": "deepseek"}
_BY_MODEL_TYPE = {
    kind: Family(architecture=kind, dialect=dialect) for kind, dialect in _DIALECT_OF.items()
}


def family_of(path: str, architecture: str | None = None) -> Family:
    """The family of a hub id or a local folder; `architecture` overrides it. Raises RecipeError."""
    if architecture is not None:
        if architecture not in _BY_MODEL_TYPE:
            raise RecipeError(unknown_name("architecture", architecture, _BY_MODEL_TYPE))
        return _BY_MODEL_TYPE[architecture]
    for pattern, family in FAMILIES:
        if fnmatch(path, pattern):
            return family
    kind = _model_type(Path(path) / "config.json")
    if kind in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[kind]
    raise RecipeError(
        f"no family is known for model.path = {path!r}; say which one it is of with "
        f"--architecture, one of {', '.join(_BY_MODEL_TYPE)}"
    )


def _model_type(config: Path) -> str:
    """The model type in a configuration; "" where the file cannot be read."""
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def make_tiny(family: Family, folder: Path, *, classifier: bool = False) -> None:
    """Write a tiny model of the family and its tokenizer to `folder`, float32.

    `classifier`: a sequence classifier with one logit instead, which is what a reward model is.
    """
    import torch
    import transformers as hf

    kind = family.architecture.removesuffix(TIED)
    tokenizer = make_tokenizer(DIALECTS[family.dialect], family.opens_thought)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = hf.AutoConfig.for_model(
            kind,
            vocab_size=len(tokenizer),
            tie_word_embeddings=kind != family.architecture,
            **ARCHITECTURES[kind],
        )
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        made: Any = hf.AutoModelForSequenceClassification if classifier else hf.AutoModelForCausalLM
        if classifier:
            config.num_labels = 1
        model = made.from_config(config, trust_remote_code=False)
        if not classifier:
            _read(model, tokenizer)
            ends = DIALECTS[family.dialect].ends
            model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(ends))
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    manifest.give_mode(folder)


def _read(model: Any, tokenizer: Any) -> None:
    """Train for a few AdamW steps on LINES, each followed by eos."""
    import torch

    rows = [[*tokenizer.encode(line), tokenizer.eos_token_id] for line in LINES]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    labels = ids.clone()
    for place, row in enumerate(rows):
        labels[place, len(row) :] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(STEPS):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
