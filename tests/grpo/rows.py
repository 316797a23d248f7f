"""Small models and groups shared by the learner's tests."""

from dataclasses import replace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from grpo.types import Completion, Group, Prompt, Rollout, Score, Segment, Task, Version

V = 19
EOS = 2


def tiny_model(seed=0, dtype=torch.float64, **overrides):
    settings = {
        "vocab_size": V,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": EOS,
        "eos_token_id": EOS,
        "bos_token_id": 1,
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).to(dtype)
    if dtype == torch.float64:
        _keep_float64(model)
    return model


class Rotary(torch.nn.Module):
    """Rotary embeddings in float64, from angles on."""

    def __init__(self, frequencies):
        super().__init__()
        self.frequencies = frequencies

    def forward(self, x, position_ids):
        angles = position_ids[..., None].double() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def _keep_float64(model):
    """Hugging Face's RMSNorm and rotary embedding compute in float32 whatever the type.

    torch's RMSNorm does not, and neither does the softmax in torch's attention.
    """
    model.model.rotary_emb = Rotary(model.model.rotary_emb.inv_freq.double())
    for layer in model.model.layers:
        layer.input_layernorm = torch.nn.RMSNorm(model.config.hidden_size, 1e-6).double()
        layer.post_attention_layernorm = torch.nn.RMSNorm(model.config.hidden_size, 1e-6).double()
    model.model.norm = torch.nn.RMSNorm(model.config.hidden_size, 1e-6).double()


def group(number, prompt_length, lengths, rewards, seed=0, finishes=None, tools=None):
    """A group with random tokens that end with EOS, and made-up sampler log-probs.

    tools: for each completion, from where to where a tool wrote it.
    """
    rng = np.random.default_rng((seed, number))
    ids = tuple(rng.integers(3, V, prompt_length).tolist())
    prompt = Prompt(task=Task(uid=str(number), prompt="?"), text="?", ids=ids)
    rollouts = []
    for index, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        tokens = rng.integers(3, V, length)
        finish = "stop" if finishes is None else finishes[index]
        if finish == "stop":
            tokens[-1] = EOS
        logprobs = rng.uniform(-4, -1, length).astype(np.float32)
        first, last = (length, length) if tools is None else tools[index]
        parts = [("model", 0, first), ("tool", first, last), ("model", last, length)]
        segments = tuple(
            Segment(
                ids=tokens[start:stop],
                source=source,
                version=Version(step=0, hash=""),
                logprobs=logprobs[start:stop],
            )
            for source, start, stop in parts
            if start < stop
        )
        completion = Completion(
            request=str(number), index=index, segments=segments, text="", finish=finish
        )
        status = "grader_error" if reward is None else ("correct" if reward > 0 else "wrong")
        score = Score(value=reward, status=status, parts={"mine": reward})
        rollouts.append(Rollout(prompt=prompt, completion=completion, score=score))
    return Group(prompt=prompt, visit=0, rollouts=tuple(rollouts))


def with_columns(row, **columns):
    """The row with other values in some columns, or with more of them."""
    return replace(row, columns={**row.columns, **columns})


def three_groups():
    return [
        group(0, 3, [4, 7, 2], [1.0, 0.0, 0.0]),
        group(1, 6, [1, 5, 5], [1.0, 1.0, 1.0]),  # dead
        group(2, 2, [3, 8, 6], [0.0, 0.5, 1.0]),
    ]
