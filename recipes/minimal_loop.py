"""GRPO in one file: a tiny model learns to think before it answers.

The task is parity: the prompt is sixteen bits and "=", the completion should read
"<think>…</think><answer>b</answer>". The base model has seen short thoughts, which cannot work,
and a few long ones (running parities), which do. Only the answer and the format are rewarded.

This is the method of the library without the library: nothing is imported from `grpo`, every
tensor is named where it is made, and a test checks that loss and gradient equal the library's.
Against the paper (DeepSeekMath 2402.03300, DeepSeek-R1 2501.12948):
  1. no KL term, so no reference model;
  2. one optimizer step per batch, so the policy that learns is the policy that sampled. The ratio
     is 1 in value and clipping never acts; both are kept below because this *is* the method;
  3. tokens are averaged over the whole batch (DAPO, 2503.14476), not per completion.
What the library adds is speed and care: a sampler that refills finished rows, prompts shared in
the learner, micro-batches, evaluation with intervals, checkpoints, resume.

    python recipes/minimal_loop.py        # about three minutes on two cores

Dimensions: P prompts, G completions of each, B = P * G, T completion tokens, L prompt tokens,
V vocabulary.
"""

import random
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = Path(__file__).parent / "assets" / "parity-base"
BITS = 16
STEPS = 40
P = 32  # prompts a step
G = 8  # completions a prompt
MAX_TOKENS = 32
TEMPERATURE = 1.0
LEARNING_RATE = 1e-4
EPSILON = 0.2
MAX_GRAD_NORM = 1.0
HELDOUT = 2048  # bit strings never trained on
EVAL_TASKS = 512
SEED = 0


# -- the task ------------------------------------------------------------------------------------


def make_splits(seed):
    """All bit strings in random order: (train, held-out), disjoint."""
    strings = [format(i, f"0{BITS}b") for i in range(2**BITS)]
    random.Random(seed).shuffle(strings)
    return strings[HELDOUT:], strings[:HELDOUT]


FORMAT = re.compile(r"<think>[^<]+</think><answer>([^<]+)</answer>")


def reward(bits, completion):
    """(accuracy, format), each 0 or 1; what is learned from is their sum."""
    match = FORMAT.fullmatch(completion)
    right = match is not None and match[1].strip() == str(bits.count("1") % 2)
    return float(right), float(match is not None)


# -- sampling ------------------------------------------------------------------------------------


@torch.no_grad()
def sample(model, prompt_B_L, eos, temperature):
    """Token ids [B, T] and mask [B, T]: True up to and including the end-of-sequence token.

    All prompts have the same length, so nothing is padded on the left.
    """
    B = len(prompt_B_L)
    ids_B, cache = prompt_B_L, None
    alive_B = torch.ones(B, dtype=torch.bool)
    tokens, masks = [], []
    for _ in range(MAX_TOKENS):
        out = model(input_ids=ids_B, past_key_values=cache, use_cache=True)
        cache, logits_B_V = out.past_key_values, out.logits[:, -1].float()
        if temperature == 0:
            token_B = logits_B_V.argmax(dim=-1)
        else:
            token_B = torch.multinomial((logits_B_V / temperature).softmax(-1), 1)[:, 0]
        tokens.append(token_B)
        masks.append(alive_B)
        alive_B = alive_B & (token_B != eos)
        if not alive_B.any():
            break
        ids_B = token_B[:, None]
    return torch.stack(tokens, dim=1), torch.stack(masks, dim=1)


def texts(tokenizer, tokens_B_T, mask_B_T):
    """The completions as strings, without the end-of-sequence token."""
    eos = tokenizer.eos_token_id
    rows = zip(tokens_B_T.tolist(), mask_B_T.tolist(), strict=True)
    kept = [[t for t, m in zip(ts, ms, strict=True) if m and t != eos] for ts, ms in rows]
    return [tokenizer.decode(row, skip_special_tokens=False) for row in kept]


# -- the method ----------------------------------------------------------------------------------


def group_advantages(rewards_P_G):
    """How much better than the other completions of the same prompt, in standard deviations."""
    mean_P_1 = rewards_P_G.mean(dim=1, keepdim=True)
    std_P_1 = rewards_P_G.std(dim=1, keepdim=True)
    return (rewards_P_G - mean_P_1) / (std_P_1 + 1e-4)


def log_probs(model, prompt_B_L, tokens_B_T, temperature):
    """log p [B, T] of each completion token given everything before it."""
    ids = torch.cat([prompt_B_L, tokens_B_T], dim=1)
    logits = model(input_ids=ids, use_cache=False).logits[:, prompt_B_L.shape[1] - 1 : -1].float()
    logp_B_T_V = torch.log_softmax(logits / temperature, dim=-1)
    return logp_B_T_V.gather(-1, tokens_B_T[..., None])[..., 0]


def grpo_loss(model, prompt_B_L, tokens_B_T, mask_B_T, advantages_B, temperature=TEMPERATURE):
    """The clipped surrogate, averaged over all completion tokens of the batch.

    Padding after the end-of-sequence token is masked by position, never by the token's identity,
    so the end-of-sequence token itself is trained on.
    """
    logp_B_T = log_probs(model, prompt_B_L, tokens_B_T, temperature)
    ratio_B_T = torch.exp(logp_B_T - logp_B_T.detach())
    clipped_B_T = ratio_B_T.clamp(1 - EPSILON, 1 + EPSILON)
    A_B_1 = advantages_B[:, None].to(logp_B_T.dtype)
    loss_B_T = -torch.minimum(ratio_B_T * A_B_1, clipped_B_T * A_B_1)
    return (loss_B_T * mask_B_T).sum() / mask_B_T.sum()


# -- training ------------------------------------------------------------------------------------


def encode(tokenizer, strings):
    """Prompt ids [B, L]."""
    rows = [tokenizer(f"{bits}=", add_special_tokens=False)["input_ids"] for bits in strings]
    return torch.tensor(rows)


def evaluate(model, tokenizer, strings, temperature):
    """Accuracy and mean completion length on held-out prompts."""
    tokens, mask = sample(model, encode(tokenizer, strings), tokenizer.eos_token_id, temperature)
    completions = texts(tokenizer, tokens, mask)
    right = [reward(bits, text)[0] for bits, text in zip(strings, completions, strict=True)]
    return sum(right) / len(right), float(mask.sum(dim=1).float().mean())


def report(name, model, tokenizer, strings):
    """Print one line of held-out results."""
    greedy, _ = evaluate(model, tokenizer, strings, 0)
    sampled, length = evaluate(model, tokenizer, strings, TEMPERATURE)
    print(
        f"{name}: held-out accuracy {greedy:.3f} greedy, {sampled:.3f} sampled; {length:.1f} tokens"
    )


def train():
    """Load the base model, train it, and print the curve."""
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    train_strings, heldout_strings = make_splits(SEED)
    order = random.Random(SEED)
    report("before", model, tokenizer, heldout_strings[:EVAL_TASKS])

    for step in range(1, STEPS + 1):
        # sample a group of completions for each prompt
        bits_P = order.sample(train_strings, P)
        bits_B = [bits for bits in bits_P for _ in range(G)]
        prompt_B_L = encode(tokenizer, bits_B)
        tokens_B_T, mask_B_T = sample(model, prompt_B_L, tokenizer.eos_token_id, TEMPERATURE)

        # score them, and compare within each group
        completions = texts(tokenizer, tokens_B_T, mask_B_T)
        scores = [reward(bits, text) for bits, text in zip(bits_B, completions, strict=True)]
        rewards_P_G = torch.tensor([sum(pair) for pair in scores]).view(P, G)
        advantages_P_G = group_advantages(rewards_P_G)

        # learn
        optimizer.zero_grad()
        loss = grpo_loss(model, prompt_B_L, tokens_B_T, mask_B_T, advantages_P_G.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()

        accuracy = sum(right for right, _ in scores) / len(scores)
        dead = float((rewards_P_G.std(dim=1) == 0).float().mean())
        length = float(mask_B_T.sum(dim=1).float().mean())
        print(
            f"step {step:3d}  accuracy {accuracy:.3f} {'#' * round(30 * accuracy):30s}  "
            f"length {length:4.1f}  groups without signal {dead:.2f}",
            flush=True,
        )

    report("after", model, tokenizer, heldout_strings[:EVAL_TASKS])


if __name__ == "__main__":
    train()
