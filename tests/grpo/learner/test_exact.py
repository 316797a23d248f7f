"""No saving changes the gradient: each against one sequence at a time through the model's own code.

The reference runs every completion by itself, prompt and all, takes log-softmax of all logits at
once, weighs tokens by the table in `grpo/method/objective.py` written out here, and adds the loss
up over the whole batch: no rows, sharing, packing, chunks, micro-batches, dropping or ranks.
"""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grpo.attention import shared
from grpo.attention.layout import Attentions
from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.learner import head, packing
from grpo.learner.learner import TorchLearner
from grpo.method.advantage import reward_matrix
from grpo.method.losses import Clip, LossInputs, loss_of, sampling_weights
from grpo.method.table import ADVANTAGES, OBJECTIVES, find_objective
from grpo.method.weighted_rows import drop_dead, make_rows, rank_share
from tests.grpo.rows import V, group, tiny_model

LIMIT = 10  # max_completion_length
# What a token weighs; T trained tokens of its completion, N completions, S tokens of the step.
WEIGHTS = {
    "grpo": lambda T, N, S: 1 / (T * N),
    "dr_grpo": lambda T, N, S: 1 / (LIMIT * N),
    "dapo": lambda T, N, S: 1 / S,
    "gspo": lambda T, N, S: 1 / (T * N),
    "luspo": lambda T, N, S: 1 / N,
    "cispo": lambda T, N, S: 1 / S,
    "sapo": lambda T, N, S: 1 / (T * N),
    "vespo": lambda T, N, S: 1 / S,
}
HIGH = {"cispo": 5.0}

# {name: (share_prompts, SHARE_ABOVE)}: one completion a row; flat, no prompt shared; all shared
LAYOUTS = {"padded": (False, 0.0), "packed": (True, 1e9), "shared": (True, -1.0)}


def made(groups, loss_type):
    advantages = ADVANTAGES["grpo"].function(reward_matrix(groups))
    return make_rows(groups, advantages, loss_type=loss_type, max_completion_length=LIMIT)


def plain_logprobs(groups, model):
    """[N] of every token that the model wrote in a scored completion."""
    logps = []
    for rollout in trained(groups):
        prompt, completion = rollout.prompt.ids, rollout.completion
        ids = torch.tensor([[*prompt, *completion.ids.tolist()]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits, dim=-1)
        logp = logp.gather(-1, torch.from_numpy(completion.ids)[:, None])[:, 0]
        logps.append(logp[torch.from_numpy(completion.mask)])
    return torch.cat(logps)


def trained(groups):
    rollouts = [rollout for each in groups for rollout in each.rollouts]
    return [r for r in rollouts if r.score.value is not None and r.completion.mask.any()]


def plain_gradient(groups, algorithm, model, logp_old=None):
    """Of the whole batch at once; `logp_old` [N] of the policy that sampled, by default `model`."""
    advantages = ADVANTAGES["grpo"].function(reward_matrix(groups))
    scored = [r.score.value is not None for each in groups for r in each.rollouts]
    lengths = [int(r.completion.mask.sum()) for r in trained(groups)]
    weigh = WEIGHTS[algorithm.loss_type]
    weights = [weigh(T, sum(scored), sum(lengths)) for T in lengths]
    own = [
        advantages[i][j]
        for i, each in enumerate(groups)
        for j, rollout in enumerate(each.rollouts)
        if rollout.score.value is not None and rollout.completion.mask.any()
    ]

    def tokens(values):
        """A value of each completion given to its tokens, rounded as rows hold it."""
        return torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), lengths))

    logp = plain_logprobs(groups, model)
    old = logp.detach() if logp_old is None else logp_old
    sampler = torch.from_numpy(
        np.concatenate([r.completion.logprobs[r.completion.mask] for r in trained(groups)])
    )
    completions = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    inputs = LossInputs(
        logp=logp,
        logp_old=old,
        logp_sampler=sampler,
        logp_ref=old if algorithm.beta else None,
        advantages=tokens(own),
        weights=tokens(weights),
        entropy=None,
        completions=completions,
        correction=sampling_weights(
            old,
            sampler,
            completions,
            algorithm.sampling_correction,
            algorithm.sampling_correction_cap,
        ),
    )
    clip = Clip(epsilon=algorithm.epsilon, epsilon_high=algorithm.epsilon_high, beta=algorithm.beta)
    loss_of(find_objective(algorithm.loss_type), inputs, clip)[0].backward()
    return flat_gradient(model)


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double()


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


@torch.no_grad()
def move(model):
    """The weights some optimizer steps on: ratios differ from 1, some beyond the clips."""
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight), alpha=0.03)


class Swapped(torch.optim.Optimizer):
    """Every step brings in the other of two sets of weights, so the second pass is off-policy."""

    def __init__(self, model, other):
        super().__init__(model.parameters(), {"lr": 0.0})
        self.pairs = list(zip(model.parameters(), other.parameters(), strict=True))

    @torch.no_grad()
    def step(self):
        for here, there in self.pairs:
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)


def learner_of(model, algorithm, moved=None):
    config = Config(max_grad_norm=0.0)
    learner = TorchLearner(model, algorithm=algorithm, config=config)
    if moved is not None:
        learner.optimizer = Swapped(learner.model, moved)
    return learner


def our_gradient(rows, learner, budget, share, num_ranks=1):
    """By the learner; of several ranks, each with its share, the gradients are added up."""
    learner.config = learner.config.model_copy(update={"tokens_per_micro_batch": budget})
    learner.share_prompts = share
    total = torch.zeros(sum(p.numel() for p in learner.model.parameters()), dtype=torch.float64)
    for rank in range(num_ranks):
        if own := rank_share(rows, rank, num_ranks):
            learner.step(own)
            total += flat_gradient(learner.model)
    return total


def ragged(shapes):
    """Groups of (prompt length, whether rewards differ, completions).

    A completion: (length, reward or None, first and last token of what a tool wrote in between).
    """
    groups = []
    for number, (P, alive, completions) in enumerate(shapes):
        lengths = [length for length, *_ in completions]
        rewards = [reward if alive else 1.0 for _, reward, _ in completions]
        tools = [sorted(min(place, T) for place in tool) for T, _, tool in completions]
        groups.append(group(number, P, lengths, rewards, tools=tools))
    return groups


COMPLETIONS = st.tuples(
    st.integers(1, 12),
    st.sampled_from([0.0, 1.0, 0.5, None]),
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
SHAPES = st.lists(
    st.tuples(st.integers(1, 9), st.booleans(), st.lists(COMPLETIONS, min_size=2, max_size=4)),
    min_size=1,
    max_size=4,
)


def test_every_objective_is_here_but_the_one_that_depends_on_the_cut():
    assert set(WEIGHTS) == set(OBJECTIVES) - {"bnpo"}
    assert OBJECTIVES["bnpo"].per_micro_batch


@pytest.mark.parametrize("loss_type", WEIGHTS)
@settings(max_examples=4)
@given(
    shapes=SHAPES,
    budget=st.integers(1, 60),
    tile=st.sampled_from([1, 500, 2**21]),
    kv_heads=st.sampled_from([1, 2, 4]),
    beta=st.sampled_from([0.0, 0.1]),
    correction=st.sampled_from(["none", "token_truncate", "token_mask"]),
    off_policy=st.booleans(),
)
def test_every_combination_in_float64(
    loss_type, shapes, budget, tile, kv_heads, beta, correction, off_policy
):
    """Layout x dropping x chunks x micro-batches x ranks, all of them, for each objective.

    Not bnpo, whose denominator is the micro-batch's. The ranks' processes are in `test_ranks.py`;
    here their shares are.
    """
    groups = ragged(shapes)
    assume(trained(groups))
    algorithm = Algorithm(
        loss_type=loss_type,
        epsilon_high=HIGH.get(loss_type),
        beta=beta,
        sampling_correction=correction,
        num_iterations=2 if off_policy else 1,
    )
    model, moved = (tiny_model(num_key_value_heads=kv_heads) for _ in range(2))
    if off_policy:
        move(moved)
    with torch.no_grad():
        old = plain_logprobs(groups, model)
    exact = plain_gradient(groups, algorithm, moved, old if off_policy else None)
    rows = [row for row in made(groups, loss_type) if row.mask.any()]  # masked ones always go
    alive = drop_dead(rows, beta=beta, loss_type=loss_type)[0]
    learner = learner_of(model, algorithm, moved)
    # Opposite advantages may cancel: then there is no norm to be relative to.
    bar = 1e-10 * exact.norm() + 1e-14
    chosen = (rows,) if len(alive) == len(rows) else (rows, alive)
    ways = product(LAYOUTS, chosen, (3, 1000), (budget, 10_000), (1, 2, 4))
    for layout, kept, chunk, most, ranks in ways:
        share, share_above = LAYOUTS[layout]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "SHARE_ABOVE", share_above)
            patch.setattr(head, "CHUNK_ELEMENTS", chunk * V)
            patch.setattr(head, "SLICE_ELEMENTS", 2 * V)
            patch.setattr(shared, "TILE_ELEMENTS", tile)
            found = our_gradient(kept, learner, most, share, ranks)
        difference = (found - exact).norm()
        assert difference < bar, (layout, len(kept), chunk, most, ranks)


@pytest.mark.parametrize("share", [True, False])
def test_in_float32_no_further_from_float64_than_the_plain_computation(share):
    algorithm = Algorithm(loss_type="dapo", sampling_correction="none")
    ours = plain = 0.0
    for seed in range(4):
        groups = [group(i, 7, [12, 5, 9, 3], [1.0, 0.0, 0.0, 1.0], seed=seed) for i in range(3)]
        single = tiny_model(seed, dtype=torch.float32)
        double = tiny_model(seed)
        double.load_state_dict(single.state_dict())
        exact = plain_gradient(groups, algorithm, double)
        stock = tiny_model(seed, dtype=torch.float32)
        plain += error(plain_gradient(groups, algorithm, stock), exact)
        ours += error(
            our_gradient(made(groups, "dapo"), learner_of(single, algorithm), 60, share), exact
        )
    assert ours < 1.2 * plain


@pytest.mark.parametrize("causal", [True, False])
def test_attention_where_there_is_no_flash_kernel(causal):
    torch.manual_seed(0)
    query = torch.randn(9, 4, 6, dtype=torch.float64)
    key, value = (torch.randn(9, 2, 6, dtype=torch.float64) for _ in range(2))
    places = torch.tensor([[1, 2, 3], [6, 5, 8]])
    keys = places if causal else places[:, :2]
    part = Attentions(queries=places, keys=keys, real=None, causal=causal)
    kernel = shared._by_flash_kernel(part, query, key, value, 0.4)
    wider = torch.cat([value, value[..., :1]], dim=-1)  # the kernel wants widths to be equal
    out, norm = shared._in_tiles(part, query, key, wider, 0.4)
    torch.testing.assert_close((out[..., :-1], norm), kernel, rtol=1e-12, atol=1e-12)
