"""The figures of a held-out evaluation in words, each under the name of its reward.

Only a verifier has accuracy and pass@k. If no reward says right or wrong, every reward has the mean
of its values, and nothing is called accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Evaluation = Mapping[str, Any]  # what `grpo.evaluation.tally.figures` gives
UNSCORED = "no completion was scored"
LENGTH = "mean length (tokens)"
FIRST = "accuracy"  # the name that a verifier's figures need not repeat


def sentence(found: Evaluation) -> str:
    """One line: each verifier's greedy accuracy and pass@1, or each reward's mean; the length.

    A figure says how many completions it is of, if not of all. If there is a verifier, the other
    rewards are only in the table and in summary.json.
    """
    parts: list[str] = []
    for name in shown(found):
        of = found["rewards"][name]
        title = "" if _alone(found, name) else f"{name}: "
        some = "" if _whole(found, name) else f", {scored(found, name)} scored"
        if "pass1" in of:
            greedy = number(of["greedy"])
            parts.append(f"{title}greedy {greedy}  pass@1 {interval(of, 'pass1')}{some}")
        elif of["mean"] is None:
            parts.append(f"{title}{UNSCORED}")
        else:
            mean, greedy = interval(of, "mean"), number(of["greedy"])
            parts.append(f"{title}mean {mean}{some}  greedy {greedy}")
    return f"{'; '.join(parts)}  mean length {found['mean_length']:.1f} tokens"


def change(before: Evaluation | None, after: Evaluation) -> str:
    """The deciding figure of two evaluations: "pass@1 0.500 -> 0.900 [0.850, 0.950]".

    before: None where only one was made, whose figure stands alone then.
    """
    both = [after] if before is None else [before, after]
    name, names = both[0]["headline"], list(both[0]["rewards"])
    if all("pass1" in found and name == found["headline"] for found in both):
        title, key = "pass@1" if _alone(both[0], name) else f"{name}: pass@1", "pass1"
    elif len(names) == 1:
        both, title, key = [found["rewards"][name] for found in both], f"{name}: mean", "mean"
    else:
        title, key = "weighted sum: mean", "mean_reward"
    first = "" if before is None else f"{number(both[0][key])} -> "
    return f"{title} {first}{interval(both[-1], key)}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure that evaluations have: of a reward, or of all completions.

    key: where it is in `tally.figures`. mode: the completions that it is of, "sample" or "greedy".
    """

    name: str
    key: str
    reward: str | None = None
    mode: str = "sample"

    def value(self, found: Evaluation) -> float | None:
        """The figure of an evaluation; None: nothing was scored."""
        return self._home(found)[self.key]

    def bounds(self, found: Evaluation) -> str:
        """Its 95% interval, "-" where there is none."""
        return bounds(self._home(found), self.key)

    def _home(self, found: Evaluation) -> Evaluation:
        return found if self.reward is None else found["rewards"][self.reward]


def listed(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """The figures of a table: those of each reward, their weighted sum, lengths.

    Verifiers come first: rewards that said right or wrong in every evaluation. They have accuracy
    and pass@1, any other reward has the mean of its values. The sum is left out where it is the
    figure of the only reward.
    """
    names = list(evaluations[0]["rewards"])
    verifiers = [n for n in names if all("pass1" in found["rewards"][n] for found in evaluations)]
    table: list[Figure] = []
    for name in sorted(names, key=lambda name: name not in verifiers):
        title, key, said = "", "mean", (f"mean {name}", f"greedy mean {name}")
        if name in verifiers:
            title = "" if verifiers == [FIRST] else f"{name}: "
            key, said = "pass1", ("pass@1", "greedy accuracy")
        table.append(Figure(name=title + said[1], key="greedy", reward=name, mode="greedy"))
        table.append(Figure(name=title + said[0], key=key, reward=name))
    total = Figure(name="reward (weighted sum)", key="mean_reward")
    if len(names) > 1 or any(table[1].value(e) != total.value(e) for e in evaluations):
        table.append(total)
    return [
        *table,
        Figure(name=LENGTH, key="mean_length"),
        Figure(name="cut by the length limit", key="clipped_ratio"),
    ]


def rows(found: Evaluation) -> list[tuple[str, str, str]]:
    """(name, value, 95% interval) of each figure of one evaluation; "-": no interval."""
    table = [(f.name, shown_as(f.name, f.value(found)), f.bounds(found)) for f in listed([found])]
    some = [name for name in found["rewards"] if not _whole(found, name)]
    return table + [(f"{name}: scored completions", scored(found, name), "-") for name in some]


def shown_as(name: str, value: float | None) -> str:
    """The value of figure `name` as tables have it: tokens with one digit, others with three."""
    return f"{value:.1f}" if name == LENGTH and value is not None else number(value)


def shown(found: Evaluation) -> list[str]:
    """The rewards that a short report names: the verifiers, or all if there is none."""
    verifiers = [name for name, of in found["rewards"].items() if "pass1" in of]
    return verifiers or list(found["rewards"])


def decides(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """evaluation -> the figure that `eval.keep_best` compares: pass@1 of the first verifier.

    Without a verifier it is the mean of the weighted sum. It is -inf if nothing was scored.
    """
    found = list(evaluations.values())
    same = len({one.get("headline") for one in found}) == 1
    key = "pass1" if same and all("pass1" in one for one in found) else "mean_reward"
    lowest = float("-inf")
    return {name: lowest if one[key] is None else one[key] for name, one in evaluations.items()}


def scored(found: Evaluation, name: str) -> str:
    """How many of the sampled completions a reward scored: "5 of 8"."""
    return f"{found['scored'][name]} of {found['samples']}"


def number(value: float | None) -> str:
    """A figure with three digits after the point, or that there is none."""
    return UNSCORED if value is None else f"{value:.3f}"


def bounds(found: Mapping[str, Any], key: str) -> str:
    """The interval of a figure, "-" where there is none."""
    ci = found.get(f"{key}_ci")
    return "-" if ci is None else f"[{ci[0]:.3f}, {ci[1]:.3f}]"


def interval(found: Mapping[str, Any], key: str) -> str:
    """A figure with its interval."""
    return UNSCORED if found[key] is None else f"{number(found[key])} {bounds(found, key)}"


def _whole(found: Evaluation, name: str) -> bool:
    """Whether a reward's figures are of every sampled completion."""
    return found["scored"][name] == found["samples"]


def _alone(found: Evaluation, name: str) -> bool:
    """Whether the name can be left out: the only verifier is called accuracy."""
    return name == FIRST and "pass1" in found["rewards"][name] and shown(found) == [name]
