"""The figures of a held-out evaluation in words, each under the name of its reward.

Only a verifier has accuracy and pass@k. If no reward says right or wrong, every reward has the mean
of its values, and nothing is called accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Evaluation = Mapping[str, Any]  # what `grpo.evaluation.tally.figures` gives
UNSCORED = "no completion was scored"
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


def change(before: Evaluation, after: Evaluation) -> str:
    """The deciding figure of two evaluations: "pass@1 0.500 -> 0.900 [0.850, 0.950]"."""
    name, names = before["headline"], list(before["rewards"])
    if "pass1" in before and "pass1" in after and name == after["headline"]:
        title = "pass@1" if _alone(before, name) else f"{name}: pass@1"
        return f"{title} {number(before['pass1'])} -> {interval(after, 'pass1')}"
    if len(names) == 1:
        old, new = (evaluation["rewards"][name] for evaluation in (before, after))
        return f"{name}: mean {number(old['mean'])} -> {interval(new, 'mean')}"
    first = number(before["mean_reward"])
    return f"weighted sum: mean {first} -> {interval(after, 'mean_reward')}"


def rows(before: Evaluation, after: Evaluation) -> list[tuple[str, str, str]]:
    """(heading, before, after) of the table at the end of a run."""
    pair = (before, after)
    found: list[tuple[str, str, str]] = []
    for name in dict.fromkeys([*shown(before), *shown(after)]):
        of = [e["rewards"][name] for e in pair]
        title = "" if all(_alone(e, name) for e in pair) else f"{name}: "
        key = "pass1" if all("pass1" in one for one in of) else "mean"
        heading = ("greedy accuracy", "pass@1") if key == "pass1" else ("greedy mean", "mean")
        for at, said in (("greedy", heading[0]), (key, heading[1])):
            found.append((f"{title}{said}", number(of[0][at]), number(of[1][at])))
        found.append((f"{title}95% interval", bounds(of[0], key), bounds(of[1], key)))
        if not all(_whole(e, name) for e in pair):
            found.append((f"{title}scored completions", scored(before, name), scored(after, name)))
    lengths = [f"{e['mean_length']:.1f}" for e in pair]
    return [*found, ("mean length (tokens)", lengths[0], lengths[1])]


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
    ci = found[f"{key}_ci"]
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
