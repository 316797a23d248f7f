"""Tiny random models and a character tokenizer for the rollout tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from grpo.types import Request, Sampling, Version

VOCAB = 40
V0 = Version(step=0, hash="zero")
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 36,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,  # one that kernels are compiled for
    "max_position_embeddings": 128,
    "initializer_range": 0.6,  # far from uniform, so that a wrong context shows in the log-probs
}


def tiny(kind: str, seed: int = 0) -> Any:
    """A random float32 model of `kind`."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=False))
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.q_proj.bias)
            torch.nn.init.normal_(layer.self_attn.k_proj.bias)
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8))
    elif kind == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, sliding_window=8, query_pre_attn_scalar=6))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128)
        )
    else:
        mla = {k: v for k, v in SHAPE.items() if k != "head_dim"} | {"num_key_value_heads": 6}
        model = DeepseekV3ForCausalLM(
            DeepseekV3Config(
                **mla,
                q_lora_rank=16,
                kv_lora_rank=12,
                qk_nope_head_dim=8,
                qk_rope_head_dim=4,
                v_head_dim=10,
                n_routed_experts=4,
                num_experts_per_tok=2,
                n_group=1,
                topk_group=1,
                first_k_dense_replace=2,
                moe_intermediate_size=16,
            )
        )
    return model.eval()


class Letters:
    """Token 0 is a special token without text, token i the i-th letter."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(96 + i) for i in ids if i or not skip_special_tokens)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(c) - 96 for c in text]


class Pairs(Letters):
    """Two characters a token, so that a stop string may end within one: token 1 is "aA"."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(c + c.upper() for c in super().decode(ids, skip_special_tokens))


def request(uid: str, ids: list[int], n: int = 1, key: int = 0, **sampling: Any) -> Request:
    deadline = sampling.pop("deadline", None)
    return Request(
        uid=uid,
        ids=tuple(ids),
        n=n,
        sampling=Sampling(**sampling),
        key=(0, key),
        deadline=deadline,
    )


def ragged(count: int = 5, n: int = 3, **sampling: Any) -> list[Request]:
    """Requests of prompt lengths 3, 7, 11, .. with limits on their completions that differ."""
    limit = sampling.pop("max_tokens", 12)
    return [
        request(
            f"r{i}",
            [(5 * i + 3 * j) % VOCAB for j in range(3 + 4 * i)],
            n=n,
            key=i,
            max_tokens=limit + i,
            **sampling,
        )
        for i in range(count)
    ]


def drain(engine: Any) -> dict[tuple[str, int], Any]:
    """Every completion the engine has left, by (uid, index)."""
    out: dict[tuple[str, int], Any] = {}
    while polled := engine.poll():
        for completion in polled:
            assert (completion.request, completion.index) not in out
            out[completion.request, completion.index] = completion
    return out


def run(engine: Any, requests: list[Request]) -> dict[tuple[str, int], Any]:
    engine.submit(requests)
    return drain(engine)


def full_logprobs(model: Any, prompt: tuple[int, ...], ids: Any, temperature: float) -> Any:
    """float32 [T]: what one plain forward pass over prompt and completion gives the completion."""
    both = torch.tensor([[*prompt, *ids.tolist()]])
    with torch.no_grad():
        logits = model(input_ids=both, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logp = torch.log_softmax(logits.float() / temperature, -1)
    return logp.gather(1, both[0, len(prompt) :, None]).squeeze(1).numpy()
