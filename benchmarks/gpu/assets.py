"""The models that are measured, each made on first use into a folder of its own.

SmolLM2 is read from the GGUF file that the kit brings. The others have random weights in the shapes
that are published; speed and memory do not depend on the values, and a machine without network has
no others. Sampled tokens of random weights mean nothing, so their prompts are random ids, and their
tokenizer, the shipped parity model's, is there because the libraries insist on one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu.section import Setup

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "recipes" / "assets" / "parity-base"
SMOLLM2 = "smollm2-135m"
FOLDERS = {SMOLLM2: "smollm2-135m-instruct"}  # as `make test-smollm2` names it; others by name
SEED = 0

_QWEN2 = {
    "vocab_size": 151936,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}
# {name: (class of its configuration, settings)}: what each config.json on the hub says of shapes,
# as of Qwen/Qwen2.5-0.5B (e.g. 494,032,768 parameters), Qwen/Qwen2.5-1.5B and Qwen/Qwen3-0.6B.
SHAPES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5-0.5b": (
        "Qwen2Config",
        _QWEN2
        | {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "max_position_embeddings": 32768,
        },
    ),
    "qwen2.5-1.5b": (
        "Qwen2Config",
        _QWEN2
        | {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "max_position_embeddings": 131072,
        },
    ),
    "qwen3-0.6b": (
        "Qwen3Config",
        _QWEN2
        | {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            # 40,960 as published; the one table there is to compare with has rows of 65,536.
            "max_position_embeddings": 65536,
        },
    ),
}
NAMES = (SMOLLM2, *SHAPES)


def model(setup: Setup, name: str) -> Path:
    """The folder of a model in bfloat16, made where it is missing; tiny: the shipped parity model.

    A folder is there whole or not at all. Raises ValueError on a name that is none of `NAMES`, and
    FileNotFoundError where SmolLM2's file did not come.
    """
    if name not in NAMES:
        raise ValueError(f"no model {name!r}; valid: {', '.join(NAMES)}")
    if setup.tiny:
        return TINY
    folder = setup.assets / FOLDERS.get(name, name)
    if not folder.exists():
        aside = setup.assets / f".{name}.part"
        shutil.rmtree(aside, ignore_errors=True)
        if name == SMOLLM2:
            convert_smollm2(setup.assets, aside)
        else:
            save_random(name, aside, setup.device)
        aside.rename(folder)
    return folder


def convert_smollm2(assets: Path, out: Path) -> None:
    """SmolLM2-135M-Instruct from the GGUF file in `assets`. Raises FileNotFoundError."""
    from grpo.recipes.make_smollm2 import convert

    found = sorted(assets.glob("SmolLM2-135M*.gguf"))
    if not found:
        raise FileNotFoundError(f"{assets} has no SmolLM2-135M*.gguf")
    convert(found[0], out)


def save_random(name: str, out: Path, device: str) -> None:
    """A model of that shape with random weights, made on `device` and saved."""
    import torch
    import transformers

    kind, shape = SHAPES[name]
    config = getattr(transformers, kind)(**shape, dtype="bfloat16")
    torch.manual_seed(SEED)
    with torch.device(device):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(out)
    if device == "cuda":  # others measure beside this process
        del made
        torch.cuda.empty_cache()
    transformers.AutoTokenizer.from_pretrained(TINY).save_pretrained(out)
