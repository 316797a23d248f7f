"""Sums of a step over micro-batches and ranks."""

import torch

from grpo.learner.step_sums import Sums
from grpo.method.losses import LossInputs


class TwoRanks:
    """This rank beside one that has the metric "b", and a larger difference, over 3 tokens."""

    count = 2
    device = torch.device("cpu")

    def gather(self, objects):
        return [*objects, (0.5, ["b"])]

    def sum(self, tensor):
        # loss, tokens, sampled, difference, ratios, squares, then "a" and "b"
        return tensor + torch.tensor([1.0, 3.0, 3.0, 0.9, 3.0, 3.0, 0.0, 12.0])


def test_a_metric_of_one_rank_alone_is_not_added_to_the_other_ones():
    zeros = torch.zeros(2)
    inputs = LossInputs(
        logp=zeros,
        logp_old=zeros,
        logp_sampler=torch.tensor([-0.1, 0.0]),
        logp_ref=None,
        advantages=zeros,
        weights=torch.ones(2),
        entropy=None,
        completions=torch.tensor([0, 0]),
    )
    sums = Sums()
    sums.add(torch.tensor(2.0), inputs, {"a": torch.tensor([1.0, 4.0])}, tokens=2, sampled=True)
    found = sums.metrics(TwoRanks(), 1)
    assert found["a"] == 1.0  # 5 over the 5 tokens of both
    assert found["b"] == 12 / 5
    assert found["loss"] == 3.0
    assert found["sampling/sampling_logp_difference/max"] == 0.5
