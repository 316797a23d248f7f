"""What rewards remember goes into checkpoints and comes back, or is refused by name."""

from __future__ import annotations

import pytest
import torch

from grpo.errors import RewardError
from grpo.rewards.compose import RewardSet
from grpo.rewards.routed import Gate, Routed


class Counting:
    """Gives the number of calls so far."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions, **columns):
        self.calls += 1
        return [float(self.calls)] * len(completions)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Saying:
    """`state_dict` gives what it was made with."""

    def __init__(self, state) -> None:
        self.state = state

    def __call__(self, completions, **columns):
        return [0.0] * len(completions)

    def state_dict(self):
        if isinstance(self.state, Exception):
            raise self.state
        return self.state

    def load_state_dict(self, state):
        raise ValueError("not that one")


def plain(completions, **columns):
    return [0.0] * len(completions)


def test_a_state_goes_on_where_it_was_taken():
    first, second = Counting(), Counting()
    before = RewardSet([("plain", plain, 1.0), ("counting", first, 1.0)])
    first(["a"])
    first(["b"])
    state = before.state()
    first(["c"])
    assert state == {"counting": {"calls": 2}}  # as it was when it was asked for
    RewardSet([("plain", plain, 1.0), ("counting", second, 1.0)]).restore(state)
    assert second(["d"]) == [3.0]


def test_rewards_without_a_memory_leave_no_trace():
    assert RewardSet([("plain", plain, 1.0)]).state() == {}


def test_weights_of_a_network_are_no_memory():
    class Network(torch.nn.Linear):
        pass

    assert RewardSet([("network", Network(2, 1), 1.0)]).state() == {}


def test_rewards_inside_others_are_found_by_their_path():
    address = f"{__file__}:Counting"
    gate = Gate(reward=address)
    routed = Routed({"math": [{"name": "accuracy"}, {"name": address, "label": "tries"}]})
    rewards = RewardSet([("gate", gate, 1.0), ("routed", routed, 1.0)])
    gate.reward(["a"])
    state = rewards.state()
    assert state == {f"gate.{address}": {"calls": 1}, "routed.math.tries": {"calls": 0}}
    rewards.restore({"routed.math.tries": {"calls": 7}})
    assert rewards.state()["routed.math.tries"] == {"calls": 7}
    assert rewards.state()[f"gate.{address}"] == {"calls": 1}


def test_two_states_of_one_name_are_refused():
    """One of them would come back as the other's."""
    address = f"{__file__}:Counting"
    gate = Gate(reward=address, verifier=address)
    with pytest.raises(RewardError, match=r"two rewards .* called 'gate\..*Counting'"):
        RewardSet([("gate", gate, 1.0)]).state()


@pytest.mark.parametrize("nested", [True, 3, {"depth": 2}, ["a", "b"], [("a", 1, 2)]])
def test_a_reward_may_call_anything_of_its_own_nested(nested):
    counting = Counting()
    counting.nested = nested
    assert RewardSet([("own", counting, 1.0)]).state() == {"own": {"calls": 0}}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"at": torch.zeros(2)}, "what a checkpoint cannot keep .*Tensor"),
        ({"mean": float("nan")}, "what a checkpoint cannot keep"),
        ({"pair": (1, 2)}, "would come back as something else"),
        ({1: "one"}, "would come back as something else"),
        (KeyError("mean"), r"state_dict raised KeyError: 'mean' at .*test_memory\.py:\d+"),
    ],
)
def test_what_no_checkpoint_can_keep_is_refused_by_name(state, said):
    with pytest.raises(RewardError, match=f"reward 'saying': {said}|{said}") as raised:
        RewardSet([("saying", Saying(state), 1.0)]).state()
    assert "'saying'" in str(raised.value)


def test_a_state_that_is_not_taken_back_is_an_error_with_the_line():
    rewards = RewardSet([("saying", Saying({"a": 1}), 1.0)])
    with pytest.raises(RewardError, match=r"load_state_dict raised ValueError.*test_memory\.py:"):
        rewards.restore(rewards.state())
