"""Tiny random models of every causal family that the installed transformers knows.

A family is a model type of transformers' causal mapping. Its tiny configuration is its default one
with every size made small by its name (`SMALL`), recursively, and with as many layers as are needed
to have every kind of layer the default has; what that does not settle is in `OVERRIDES`. Weights
are random and large enough for every part of the model to be seen in the logits.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
VOCAB = 96
POSITIONS = 128
WINDOW = 4  # of sliding windows: short, so that a few tokens are beyond it

# Their configurations are of several models, of which text is one: images, sound, or a drafter.
MORE_THAN_TEXT = """
    dots3_note emu3 fuyu gemma3 gemma3n gemma4 gemma4_assistant gemma4_unified
    gemma4_unified_assistant git got_ocr2 llama4 mllama moshi moss_transcribe_diarize musicgen
    musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp
"""
TEXT = tuple(family for family in FAMILIES if family not in MORE_THAN_TEXT.split())

_SMALL_BY_SIZE: tuple[tuple[int, str], ...] = (
    (
        VOCAB,
        """vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size
        encoder_hash_byte_group_vocab pronunciation_vocab_size shape_vocab_size""",
    ),
    (
        POSITIONS,
        """max_position_embeddings n_positions n_ctx max_seq_len model_max_length
        max_target_positions max_source_positions original_max_position_embeddings
        context_length relative_max_distance position_bias_max_distance mem_len
        max_inference_chunksize""",
    ),
    (
        32,
        """hidden_size d_model n_embd decoder_hidden_size embedding_dim emb_dim embedding_size
        attention_hidden_size lru_width word_embed_proj_dim input_embedding_size
        output_embedding_size hidden_size_global cross_attention_hidden_size
        backbone_hidden_size mamba_d_ssm index_n_heads""",
    ),
    (
        48,
        """intermediate_size moe_intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim
        ffn_hidden_size shared_expert_intermediate_size shared_experts_intermediate_size
        shared_intermediate_size dim_ff dff intermediate_size_mlp expert_ffn_hidden_size
        dense_intermediate_size moe_shared_expert_intermediate_size d_inner n_inner
        feed_forward_size""",
    ),
    (
        4,
        """num_attention_heads n_head n_heads num_heads decoder_attention_heads
        encoder_attention_heads attention_heads num_encoder_attention_heads
        num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads
        linear_num_heads num_experts n_routed_experts num_local_experts
        moe_num_experts hidden_size_per_layer_input laurel_rank gated_norm_rank
        adapter_rank hc_lowrank local_attention_window_len position_bias_num_buckets
        num_buckets attention_chunk_size chunk_size mamba_chunk_size block_size
        keep_window_size index_topk cca_rank rotary_dim qk_rope_head_dim d_rel
        local_attn_chunk_length lsh_attn_chunk_length index_block_size""",
    ),
    (
        WINDOW,
        """sliding_window sliding_window_size window_size attention_window_size
        local_attention""",
    ),
    (
        2,
        """num_key_value_heads num_kv_heads num_query_groups swa_num_key_value_heads
        linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k
        moe_num_shared_experts num_shared_experts n_shared_experts n_group topk_group
        num_expert_group n_groups num_hidden_layers n_layer n_layers num_layers
        decoder_layers encoder_layers num_encoder_layers num_decoder_layers zero_expert_num
        o_groups max_window_layers index_topk_blocks mamba_n_groups""",
    ),
    (
        8,
        """head_dim linear_key_head_dim linear_value_head_dim linear_head_dim qk_nope_head_dim
        v_head_dim index_head_dim swa_head_dim kv_channels attention_head_dim mamba_d_head
        mamba_headdim mamba_head_dim mamba_d_state ssm_state_size state_size d_head
        attention_head_size kv_lora_rank q_lora_rank o_lora_rank mamba_dt_rank
        time_step_rank rel_extent router_hidden_size dim_head global_head_dim""",
    ),
)
SMALL = {name: size for size, names in _SMALL_BY_SIZE for name in names.split()}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks")

_HYBRID = ["linear_attention", "full_attention"]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MAMBA = {"mamba_n_heads": 8, "mamba_n_groups": 2}
_MLA = {"num_key_value_heads": 4, "head_dim": 8, "qk_rope_head_dim": 8}

# What the names do not settle: sizes that depend on others, and kinds of layers that the default
# configuration does not have although the family's checkpoints do.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "hyperclovax": {"logits_scaling": 0.5},
    "granite": {"logits_scaling": 3.0},
    "granitemoe": {"logits_scaling": 3.0},
    "inkling_text": {"logits_mup_width_multiplier": 2.0, "unpadded_vocab_size": 90},
    "inkling2_text": {"unpadded_vocab_size": 90},
    "granitemoehybrid": _MAMBA | {"layer_types": _HYBRID},
    "mamba2": {"num_heads": 8},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "n_mamba_heads": 8}
    | {"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_headdim": 8}
    | {"num_query_groups": 4, "hybrid_layer_ids": [1]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]}
    | {"num_hidden_layers": 3, "attention_hidden_size": 64, "attention_head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "nemotron_h": {"mamba_num_heads": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 2},
    "laguna": {"layer_types": ["full_attention", "sliding_attention"]},
    "gemma3n_text": {"num_kv_shared_layers": 2, "num_hidden_layers": 4}
    | {"layer_types": ["sliding_attention", "full_attention"] * 2}
    | {"intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0]},
    "cohere_compass_text": {
        "logit_scale": 0.5,
        "layer_types": ["full_attention", "sliding_attention"],
    }
    | {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROPE)},
    "dots3_note_text": {
        "head_dim": 16,
        "num_hidden_layers": 2,
        "mlp_layer_types": ["dense", "sparse"],
    }
    | {"layer_types": ["indexed_attention", "sliding_attention"], "num_key_value_heads": 4}
    | {"per_layer_config": {1: {"kv_lora_rank": 4}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "zaya": {"num_experts_per_tok": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "nemotron": {"num_key_value_heads": 2},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "qwen4_exp_text": {
        "eos_token_id": 1,
        "ple_layer_ids": [1],
        "ple_embed_dim": 32,
        "ngram_vocab_size_base": 64,
    }
    | {"heads_per_ngram": 2, "split_ngram_parts": 2, "indexer_n_heads": 4, "indexer_kv_heads": 1}
    | {"indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 2},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16]}
    | {"attn_layers": ["local", "lsh"], "num_buckets": 4},
    # equal tokens are equally good to keep in its first layer, and which of them stays is open
    "doge": {"keep_window_size": 64},
    "xmod": {"default_language": "en_XX"},
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}
    },
}


def config(family: str) -> PreTrainedConfig:
    """The family's tiny configuration."""
    kind = CONFIG_MAPPING[family]
    sizes = _shrunk(kind())
    return kind(**_latent(sizes) | OVERRIDES.get(family, {}))


def _latent(sizes: dict[str, Any]) -> dict[str, Any]:
    """With the sizes that go together where heads have their keys from one latent vector."""
    return sizes | _MLA if "kv_lora_rank" in sizes else sizes


def _shrunk(default: PreTrainedConfig) -> dict[str, Any]:
    """The settings of `default` that a tiny model has otherwise."""
    values: dict[str, Any] = dict(default.to_dict())
    aliases = set(getattr(default, "attribute_map", {}))
    found: dict[str, Any] = {
        name: SMALL[name]
        for name, value in values.items()
        if name in SMALL and isinstance(value, int) and value and name not in aliases
    }
    for name in default.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig):
            found[name] = type(part)(**_shrunk(part)).to_dict()
    found |= _few_layers(values)
    for name in values:
        if name.endswith("token_id") and isinstance(values[name], int | list):
            found[name] = 0 if name in ("pad_token_id", "bos_token_id") else 1
    return found


def _few_layers(values: dict[str, Any]) -> dict[str, Any]:
    """As many layers as there are kinds, two at least; kinds go by every list of layers."""
    name = next((n for n in LAYERS if isinstance(values.get(n), int)), None)
    lists = {
        key: list(value)
        for key, value in values.items()
        if name and isinstance(value, list | tuple) and len(value) == values[name]
    }
    if name is None or not lists:
        return {}
    signatures = [repr(layer) for layer in zip(*lists.values(), strict=True)]
    chosen = sorted({signatures.index(s) for s in signatures})[:6]
    if len(chosen) == 1:
        chosen *= 2
    found: dict[str, Any] = {key: [v[i] for i in chosen] for key, v in lists.items()}
    exceptions = {int(i): e for i, e in (values.get("per_layer_config") or {}).items()}
    if exceptions:
        found["per_layer_config"] = {
            new: _latent({key: SMALL.get(key, value) for key, value in exceptions[old].items()})
            for new, old in enumerate(chosen)
            if old in exceptions
        }
    return found | {name: len(chosen)}


def tiny(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A tiny model of the family in float32, in evaluation mode."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family), dtype=torch.float32)
        _enlarge(model)
    return model.eval()


@torch.no_grad()
def _enlarge(model: PreTrainedModel) -> None:
    """Weights of a tenth and more: by default a tiny model's layers hardly change its logits."""
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape)
        if parameter.ndim >= 2:
            scale = float(parameter.std()) if parameter.numel() > 1 else 1.0
            if scale < 0.1:
                parameter.copy_(noise * 0.2)
        else:
            parameter.add_(noise * 0.1)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers says about tokens of the default vocabulary and slow paths."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(before)
