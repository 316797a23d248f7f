"""Which causal language models can be trained, found out from the model and not from its name.

`check_causal` asks the model itself: a token's logits must not change with what comes after it.
Rows padded on the right, log-probs of a whole completion from one forward pass and sampling token
by token all rest on that. It costs three forward passes of `CANARY_LENGTH` tokens. `check_family`
says the same from a configuration alone, for families whose code is known. A test compares the two
over every causal family of transformers, and writes docs/models.md.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from grpo.errors import RecipeError
from grpo.model.canary import canary_ids, evaluating, logits_of, vocabulary

if TYPE_CHECKING:
    from torch import Tensor, nn

# Encoders that transformers runs as decoders too. They have layers in front of their output
# embedding, which the learner's head does not know.
ENCODERS = """
    bert big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta
    roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod
"""
BOTH_WAYS = "reads a text in both directions"
REFUSED = dict.fromkeys(ENCODERS.split(), "is an encoder, with an output layer of its own") | {
    "cpmant": BOTH_WAYS,
    "xlm": BOTH_WAYS,
    "xlnet": BOTH_WAYS,
    "prophetnet": "predicts several tokens at a time, from positions that depend on the length",
    "reformer": "hashes tokens into buckets at random, so that no two readings agree",
    "modernbert-decoder": "has layers between its last hidden states and its output embedding",
}


def refusal(config: Any) -> str | None:
    """Why models of this configuration cannot be trained, None where nothing is known."""
    kind = getattr(config, "model_type", None)
    if kind == "bert-generation" and not getattr(config, "is_decoder", True):
        return BOTH_WAYS
    return REFUSED.get(str(kind))


def check_family(config: Any) -> None:
    """Raise RecipeError where models of this configuration are known not to be trainable."""
    reason = refusal(config)
    if reason is not None:
        raise RecipeError(
            f"model.path: a {config.model_type} model {reason}, so it cannot be trained here; "
            "choose a causal language model (docs/models.md lists the families)"
        )


def looks_ahead(model: nn.Module) -> float:
    """Relative change of a text's logits when the tokens after it change, or are left out."""
    size = vocabulary(model.config)
    ids = canary_ids(size)
    half = len(ids) // 2
    other = [(token + 1) % size for token in ids[half:]]
    with evaluating(model):
        own = logits_of(model, ids)[:half]
        changed = [logits_of(model, ids[:half] + other)[:half], logits_of(model, ids[:half])]
    return max(_apart(logits, own) for logits in changed)


def check_causal(model: nn.Module) -> None:
    """Raise RecipeError where a token's logits depend on what comes after it."""
    off = looks_ahead(model)
    if not off <= _tolerance(model):  # NaN is no logit either
        raise RecipeError(
            f"model.path: {type(model).__name__} is no causal language model: logits of a text "
            f"change by {off:.1e} of their size with the tokens after it (in an encoder's "
            "config.json, is_decoder may be missing); choose another model"
        )


def check_packing(model: nn.Module) -> None:
    """Raise RecipeError where rows that lie in one sequence would see one another.

    Only positions say where a row begins. Attention of transformers goes by them; a recurrent
    state, a convolution and positions that a model counts itself do not.
    """
    import torch

    ids = canary_ids(vocabulary(model.config))
    cut = len(ids) // 3
    restarted = [[*range(cut), *range(len(ids) - cut)]]
    positions = torch.tensor(restarted, device=next(model.parameters()).device)
    with torch.no_grad():
        alone = torch.cat([logits_of(model, ids[:cut]), logits_of(model, ids[cut:])])
        try:
            off = _apart(logits_of(model, ids, position_ids=positions), alone)
        except TypeError:  # the model takes no positions
            off = math.inf
    if not off <= _tolerance(model):
        raise RecipeError(
            f"learner.packing = true: rows of one sequence would see one another in a "
            f"{type(model).__name__} (logits off by {off:.1e} of their size); set it to false"
        )


def _apart(logits: Tensor, wanted: Tensor) -> float:
    return float((logits - wanted).norm() / wanted.norm())


def _tolerance(model: nn.Module) -> float:
    """The relative change of logits that rounding alone explains."""
    return 1e-3 if next(model.parameters()).dtype.itemsize >= 4 else 5e-2


def may_share_prompts(model: Any) -> bool:
    """Whether completions of one prompt could lie in a flat row behind it, as far as can be seen.

    Needs full attention by transformers' attention interface in every layer, and rotary or learned
    positions that can be restarted. Sliding windows, chunked or linear attention and state-space
    layers see a row as one sequence, so such models read one completion per row. Works without
    weights.
    """
    config = model.config
    kinds = set(layer_kinds(config))
    window = getattr(config, "sliding_window", None) if len(kinds) == 1 else None
    return (
        kinds <= {"full_attention"}
        and (window is None or not getattr(config, "use_sliding_window", True))
        and not getattr(model, "_is_stateful", False)
        and bool(getattr(model, "_supports_attention_backend", False))
        and "position_ids" in inspect.signature(body(model).forward).parameters
    )


def body(model: Any) -> Any:
    """The model without its language-model head."""
    found = model.base_model
    return model.model if found is model else found  # Llama 4's text model misnames it


def layer_kinds(config: Any) -> list[str]:
    """What each layer is; all are full attention where the configuration does not say."""
    kinds = getattr(config, "layer_types", None)
    return list(kinds) if kinds else ["full_attention"] * getattr(config, "num_hidden_layers", 0)


def kv_values_per_token(config: Any) -> int:
    """Keys and values of a token in all layers that have attention, at most.

    Layers with a recurrent state or a convolution keep something of one size for every row,
    however long it is; that is not counted.
    """
    kinds = layer_kinds(config)
    layers = [config] * len(kinds)
    if getattr(config, "is_heterogeneous", False):  # layers of different sizes
        layers = config.per_layer_config
    return sum(
        _kv_values(layer)
        for kind, layer in zip(kinds, layers, strict=True)
        if ("attention" in kind and kind != "linear_attention") or kind.startswith("hybrid")
    )


def _kv_values(layer: Any) -> int:
    """Of a token in one layer with attention."""

    def size(name: str) -> int:
        return getattr(layer, name, None) or 0

    if size("kv_lora_rank"):  # one latent vector for all heads, and a rotated part
        return size("kv_lora_rank") + size("qk_rope_head_dim")
    heads = size("num_attention_heads")
    if not heads:
        return 0
    kv_heads = size("num_key_value_heads") or heads
    if size("multi_query") and not size("new_decoder_architecture"):  # Falcon, GPT-BigCode
        kv_heads = 1
    width = size("head_dim") or layer.hidden_size // heads
    return max(kv_heads, size("swa_num_key_value_heads")) * 2 * width
