"""What rewards remember from one step to the next, kept in checkpoints.

A reward with `state_dict()` and `load_state_dict(state)`, as PyTorch names them, has a state. It
is plain JSON data, because a checkpoint is read without running anybody's code. A reward inside
another (a gate's, a route's) is found through the outer one's `nested`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from grpo.errors import GrpoError, RewardError
from grpo.outside.code.foreign import guarded, said

Named = Iterable[tuple[str, Any]]


def remembering(rewards: Named) -> Iterator[tuple[str, Any]]:
    """(name, reward) of those that have a state, inner ones too: "gate.short" for one in a gate."""
    for name, reward in rewards:
        yield from ((f"{name}.{inner}", one) for inner, one in remembering(nested(reward)))
        methods = (getattr(reward, m, None) for m in ("state_dict", "load_state_dict"))
        # The weights of a network are no memory of the run.
        if all(map(callable, methods)) and not _is_module(reward):
            yield name, reward


def nested(reward: Any) -> Named:
    """The rewards inside `reward`, by name; a `nested` that means something else has none."""
    found: Any = getattr(reward, "nested", ())
    if not isinstance(found, list | tuple):
        return ()
    pairs = cast("Sequence[Any]", found)
    return pairs if all(map(_is_named, pairs)) else ()


def _is_named(pair: Any) -> bool:
    match pair:
        case (str(), _):
            return True
        case _:
            return False


def states(rewards: Named) -> dict[str, Any]:
    """The state of every reward that has one, by name.

    Raises RewardError where `state_dict` raises, or gives what JSON cannot hold, and for two
    rewards of one name.
    """
    found: dict[str, Any] = {}
    for name, reward in remembering(rewards):
        if name in found:
            raise RewardError(
                f"two rewards that remember earlier steps are called {name!r}, and a checkpoint "
                "keeps their states by name; list one of them under another label"
            )
        with _calling(name, "state_dict"):
            state = reward.state_dict()
        try:
            # A copy: the reward goes on changing its own.
            found[name] = json.loads(json.dumps(state, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {name!r}: state_dict() gave what a checkpoint cannot keep ({error}); "
                "give numbers, texts, lists and dicts of them"
            ) from error
        if found[name] != state:
            raise RewardError(
                f"reward {name!r}: state_dict() would come back as something else, as tuples "
                "come back as lists and numbers as keys come back as texts; give what JSON holds"
            )
    return found


def restore(rewards: Named, kept: Mapping[str, Any]) -> None:
    """Give the rewards the states that `states` found. Raises RewardError as they do."""
    for name, reward in remembering(rewards):
        if name in kept:
            with _calling(name, "load_state_dict"):
                reward.load_state_dict(kept[name])


def _calling(name: str, method: str) -> Any:
    who = f"reward {name!r}"

    def fail(error: BaseException) -> GrpoError:
        return RewardError(f"{who}: {method} {said(error)}")

    return guarded(who, fail)


def _is_module(reward: Any) -> bool:
    return any(kind.__module__.startswith("torch.nn") for kind in type(reward).__mro__)
