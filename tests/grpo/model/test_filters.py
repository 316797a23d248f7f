"""What a sampler leaves out, against hand computations and transformers."""

import pytest
import torch

from grpo.model import filters
from grpo.model.filters import filtered_probs, make_plan
from grpo.types import Sampling

CPU = torch.device("cpu")
PROBS = torch.tensor([[0.05, 0.4, 0.1, 0.25, 0.2]])


def kept(**sampling: float) -> list[float]:
    plan = make_plan([Sampling(**sampling)], 5, CPU)  # type: ignore[arg-type]
    return filtered_probs(PROBS, plan)[0].tolist()


def test_top_k_keeps_the_largest():
    assert kept(top_k=2) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0])


def test_top_p_keeps_the_token_that_crosses():
    assert kept(top_p=0.5) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0])
    assert kept(top_p=0.7) == pytest.approx([0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85])
    assert kept(top_p=1e-6) == pytest.approx([0, 1, 0, 0, 0])


@pytest.mark.parametrize("spread", [0.5, 4.0])  # needs more than the prefix, and less
def test_top_p_without_a_prefix_keeps_the_same(spread, monkeypatch):
    """A device sorts whole rows, as it would have to wait for whether the prefix is enough."""
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(4)) * spread
    rows = [Sampling(top_p=p) for p in (0.3, 0.9, 0.99, 1.0)]
    args = torch.softmax(logits, -1), make_plan(rows, 3000, CPU)
    want = filtered_probs(*args)
    monkeypatch.setattr(filters, "_prefix", lambda *_: None)
    assert torch.equal(filtered_probs(*args), want)


def test_a_plan_says_on_the_host_what_decides_about_operations():
    greedy, warm = Sampling(temperature=0, top_k=3), Sampling(temperature=0.5, top_k=7)
    plan = make_plan([greedy, warm, Sampling(top_k=99), Sampling(top_k=40)], 40, CPU)
    assert (plan.largest, plan.only_greedy) == (7, False)  # 40 and more of 40 filter nothing
    assert plan.top_k is not None
    assert plan.top_k.tolist() == [3, 7, 40, 40]
    assert isinstance(plan.temperature, torch.Tensor)
    assert plan.temperature.tolist() == [[1.0], [0.5], [1.0], [1.0]]
    assert make_plan([greedy, greedy], 40, CPU).only_greedy
    assert make_plan([Sampling()], 40, CPU).largest == 1


def test_min_p_is_relative_to_the_largest():
    assert kept(min_p=0.3) == pytest.approx([0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85])


def test_filters_apply_one_after_the_other():
    # top-k 3 leaves .4 .25 .2 of .85; half of that needs the first two tokens (.47, .76).
    assert kept(top_k=3, top_p=0.5) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0])
    assert kept(top_k=3, top_p=0.5, min_p=0.7) == pytest.approx([0, 1, 0, 0, 0])


def test_rows_have_filters_of_their_own():
    rows = [Sampling(), Sampling(top_k=1), Sampling(top_p=0.5), Sampling(temperature=0)]
    got = filtered_probs(PROBS.repeat(4, 1), make_plan(rows, 5, CPU))
    for row, want in enumerate([PROBS[0].tolist(), kept(top_k=1), kept(top_p=0.5)]):
        assert got[row].tolist() == pytest.approx(want)
    assert got[3].tolist() == pytest.approx(PROBS[0].tolist())


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.7, "top_k": 50}, {"top_p": 0.8}, {"temperature": 1.3, "min_p": 0.05}],
)
def test_filters_equal_transformers(sampling):
    from transformers.generation import logits_process as hf

    logits = torch.randn(6, 2000, generator=torch.Generator().manual_seed(1)) * 3
    warped = logits / sampling.get("temperature", 1.0)
    for name, warper in (
        ("top_k", hf.TopKLogitsWarper),
        ("top_p", hf.TopPLogitsWarper),
        ("min_p", hf.MinPLogitsWarper),
    ):
        if name in sampling:
            warped = warper(sampling[name])(None, warped)
    plan = make_plan([Sampling(**sampling)] * 6, 2000, CPU)
    probs = torch.softmax(logits / plan.temperature, -1)
    torch.testing.assert_close(filtered_probs(probs, plan), torch.softmax(warped, -1))
