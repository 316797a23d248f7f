"""The one-file loop computes the library's loss and gradient, and imports nothing from it."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.learner.learner import TorchLearner
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES
from grpo.method.weighted_rows import drop_dead, make_rows
from grpo.types import Completion, Group, Prompt, Rollout, Score, Segment, Task, Version

PATH = Path(__file__).parents[2] / "recipes" / "minimal_loop.py"
EOS, V, P, G, L = 2, 13, 4, 4, 5


@pytest.fixture(scope="module")
def loop():
    spec = importlib.util.spec_from_file_location("minimal_loop", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


def test_is_one_short_file_without_the_library():
    source = PATH.read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.split(".")[0] == "grpo" for name in names)


def test_loss_and_gradient_equal_the_librarys(loop):
    policy = model()
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, V, (P, L), generator=generator)
    prompt_B_L = prompts.repeat_interleave(G, dim=0)
    torch.manual_seed(2)
    tokens, mask = loop.sample(policy, prompt_B_L, EOS, temperature=0.8)
    assert (tokens[mask] == EOS).any()
    assert not mask.all()
    rewards = torch.randint(0, 3, (P, G), generator=generator).float()
    rewards[1] = 1.0  # a group without signal
    advantages = loop.group_advantages(rewards)
    loss = loop.grpo_loss(policy, prompt_B_L, tokens, mask, advantages.flatten(), 0.8)
    loss.backward()

    groups = []
    for p in range(P):
        prompt = Prompt(task=Task(uid=str(p), prompt=""), text="", ids=tuple(prompts[p].tolist()))
        rollouts = []
        for g in range(G):
            ids = tokens[p * G + g][mask[p * G + g]].numpy()
            segment = Segment(
                ids=ids,
                version=Version(step=0, hash=""),
                logprobs=np.zeros(len(ids), dtype=np.float32),
            )
            completion = Completion(
                request=str(p), index=g, segments=(segment,), text="", finish="stop"
            )
            score = Score(value=float(rewards[p, g]), status="scored")
            rollouts.append(Rollout(prompt=prompt, completion=completion, score=score))
        groups.append(Group(prompt=prompt, visit=0, rollouts=tuple(rollouts)))
    matrix = ADVANTAGES["grpo"].function(reward_matrix(groups))
    np.testing.assert_allclose(matrix, advantages.numpy(), rtol=1e-5, atol=1e-6)
    rows = make_rows(groups, matrix, loss_type="dapo", max_completion_length=32)
    rows, counts = drop_dead(rows, beta=0.0)
    assert counts["rows/dead"] >= G
    learner = TorchLearner(
        model(),
        algorithm=Algorithm(loss_type="dapo", epsilon=loop.EPSILON, sampling_correction="none"),
        config=Config(tokens_per_micro_batch=150, max_grad_norm=0.0),
        temperature=0.8,
    )
    metrics = learner.step(rows)
    assert metrics["learner/micro_batches"] > 1
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-7)
    for (name, ours), (_, theirs) in zip(
        policy.named_parameters(), learner.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_reward(loop):
    assert loop.reward("011", "<think>010</think><answer>0</answer>") == (1.0, 1.0)
    assert loop.reward("011", "<think>010</think><answer>1</answer>") == (0.0, 1.0)
    assert loop.reward("011", "<think></think><answer>0</answer>") == (0.0, 0.0)
    assert loop.reward("011", "x<think>0</think><answer>0</answer>") == (0.0, 0.0)


def test_splits_are_disjoint(loop):
    train, heldout = loop.make_splits(0)
    assert len(heldout) == loop.HELDOUT
    assert len(set(train) | set(heldout)) == 2**loop.BITS
    assert not set(train) & set(heldout)
