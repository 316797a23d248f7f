"""The gradient of a step in float32 on the card, against float64 on the host.

The host's learner computes in float64, one completion a row: tests/grpo/learner/test_exact.py holds
that one against the plain formula. `learners.FLOAT32` says where the bar comes from.

First suspicion: only `flex` fails, Triton's kernel (TORCH_COMPILE_DISABLE=1 does without); `jobs`
fails too, torch's attention on this card; `padded` alone, its causal kernel; all by about 3e-4,
TF32; one loss_type alone, an operation of its objective that has another meaning on a card.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo.attention import interface
from grpo.learner import packing
from grpo.types import Metrics
from tests.gpu.learners import (
    CPU,
    FLOAT32,
    distance,
    gradients,
    learner,
    long_groups,
    plain_gradients,
    rows_of,
)
from tests.grpo.rows import V, tiny_model

WHOLE = {"tokens_per_micro_batch": 10_000}
# {name: (share_prompts, by flex)}
WAYS = {"flex": (True, True), "jobs": (True, False), "padded": (False, False)}
# query heads, heads of keys, head size: ratios 1, 2, 3, 4 and 7; flex takes sizes 16 to 128
HEADS = [(4, 2, 16), (9, 3, 64), (4, 1, 80), (2, 2, 128), (4, 2, 192), (7, 1, 256)]
EXTRA = {"top_entropy_quantile": 0.3, "entropy_coef": 0.2}
LOSSES: list[dict[str, Any]] = [
    {"loss_type": "grpo", "beta": 0.2},
    {"loss_type": "dr_grpo", "delta": 3.0},
    {"loss_type": "dapo", "epsilon_high": 0.28},
    {"loss_type": "bnpo"},
    {"loss_type": "gspo", "loss_args": {"off_policy_mask_threshold": 0.1}},
    {"loss_type": "luspo", "sampling_correction": "sequence_truncate"},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "sapo", "beta": 0.1},
    {"loss_type": "vespo", "sampling_correction": "token_mask"},
    {"loss_type": "dapo", "loss_args": EXTRA, "beta": 0.2},
]


def sizes(heads: int, keys: int, dim: int) -> dict[str, Any]:
    return {
        "hidden_size": 8 * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": dim,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
    }


@pytest.fixture
def attention(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, flex_calls: list[int]
) -> tuple[bool, list[int] | None]:
    """(whether prompts are shared, where flex was called) of one of `WAYS`, made the only one."""
    share, flex = WAYS[request.param]
    monkeypatch.setattr(packing, "SHARE_ABOVE", -1.0)
    if not flex:
        monkeypatch.setattr(interface, "uses_flex", lambda *_: False)
    return share, flex_calls if flex else None


@pytest.mark.parametrize("attention", WAYS, indirect=True)
@pytest.mark.parametrize(("heads", "keys", "dim"), HEADS)
def test_head_sizes_and_shared_keys(
    device: torch.device,
    attention: tuple[bool, list[int] | None],
    heads: int,
    keys: int,
    dim: int,
) -> None:
    share, calls = attention
    if calls is not None and dim > 128:
        pytest.skip("larger than what FlexAttention is used for")
    shape = sizes(heads, keys, dim)
    rows = rows_of(long_groups())
    exact = learner(tiny_model(**shape), CPU, config={**WHOLE, "share_prompts": False})
    exact.step(rows)
    ours = learner(
        tiny_model(dtype=torch.float32, **shape), device, config={**WHOLE, "share_prompts": share}
    )
    assert ours.share_prompts == share
    ours.step(rows)
    if calls is not None:
        assert max(calls) > 800, "the flat row did not go through FlexAttention"
    assert distance(gradients(ours), gradients(exact)) < FLOAT32


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(map(str, loss.values())))
def test_losses_with_kl_and_entropy(device: torch.device, loss: dict[str, Any]) -> None:
    """With log-probs of the sampler that are made up, so that masks, clips and corrections act.

    A token whose ratio lies on the edge of a clip by less than float32's rounding may fall on
    either side; none of these does, as the host's own float32 says.
    """
    rows = rows_of(long_groups(), loss["loss_type"])
    shape = sizes(4, 2, 16)

    def after(where: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, Metrics]:
        made = learner(
            tiny_model(dtype=dtype, **shape),
            where,
            algorithm=loss,
            reference=tiny_model(seed=1, dtype=dtype, **shape),
            temperature=0.8,
            config={**WHOLE, "share_prompts": False},
        )
        metrics = made.step(rows)
        return gradients(made), metrics

    exact, right = after(CPU, torch.float64)
    found, ours = after(device, torch.float32)
    assert distance(found, exact) < FLOAT32
    for name in ("loss", "entropy", "kl", "grad_norm", "sampling/sampling_logp_difference/max"):
        if name in right:
            assert ours[name] == pytest.approx(right[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("budget", [250, 500])
@pytest.mark.parametrize("share", [True, False])
def test_how_a_batch_is_cut_does_not_matter(device: torch.device, budget: int, share: bool) -> None:
    """Two sums of the same terms in another order: apart by rounding alone."""
    rows = rows_of(long_groups())
    shape = sizes(9, 3, 64)
    found = []
    for tokens in (10_000, budget):
        config = {"tokens_per_micro_batch": tokens, "share_prompts": share}
        model = tiny_model(dtype=torch.float32, **shape)
        made = learner(model, device, algorithm={"beta": 0.1}, config=config)
        count = made.step(rows)["learner/micro_batches"]
        assert (count > 1) == (tokens == budget)
        found.append(gradients(made))
    assert distance(found[1], found[0]) < FLOAT32


def test_rows_beside_a_row_do_not_matter(device: torch.device) -> None:
    """Log-probs of a completion alone, padded beside longer ones, and behind a shared prompt."""
    rows = rows_of(long_groups())
    model = tiny_model(dtype=torch.float32, **sizes(9, 3, 64))
    padded, shared = (
        learner(model, device, config={**WHOLE, "share_prompts": share}) for share in (False, True)
    )
    together, flat = padded.logprobs(rows), shared.logprobs(rows)
    for row, one, other in zip(rows, together, flat, strict=True):
        (alone,) = padded.logprobs([row])
        # log-probs of about -3, from sums of some hundred float32 terms
        assert abs(one - alone).max() < 2e-5
        assert abs(other - alone).max() < 2e-5


FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "window": (MistralConfig, MistralForCausalLM, {"sliding_window": 24}),
    "window and caps": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {"sliding_window": 24, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    ),
    "biases": (Qwen2Config, Qwen2ForCausalLM, {}),
    "norms of heads": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(device: torch.device, family: str) -> None:
    """Against plain autograd through the model's own code, in float64 on the host.

    Their norms compute in float32 whatever the type, on both sides: the bar is that of float32.
    """
    kind, architecture, more = FAMILIES[family]
    torch.manual_seed(0)
    known = {"vocab_size": V, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 2}
    model = architecture(kind(**{**sizes(4, 2, 16), **known, **more})).eval()
    if family == "biases":
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight)
    groups = long_groups()
    algorithm = {"sampling_correction": "none"}
    exact = plain_gradients(model.double(), rows_of(groups), torch.float64)
    model.float()
    ours = learner(model, device, algorithm=algorithm, config=WHOLE)
    assert ours.share_prompts == ("window" not in family)
    ours.step(rows_of(groups))
    assert distance(gradients(ours), exact) < FLOAT32
