"""The results of `grpo eval --tasks`: tables, and the layout of lm-evaluation-harness's files."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from grpo.evaluation.builtin_tasks import EvalTask
from grpo.evaluation.figures import interval
from grpo.outside.terminal.console import Console
from grpo.outside.version import toolkit_version

Figures = Mapping[str, Any]
TASK_VERSION = 1  # of the built-in tasks: raised when a prompt or a verdict changes


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """One table a task: a figure per row, a column for every model and template."""
    models: Mapping[str, Mapping[str, Mapping[str, Figures]]] = results["models"]
    for task in next(iter(models.values())):
        columns = [
            (name, template, figures)
            for name, tasks in models.items()
            for template, figures in tasks[task].items()
        ]
        console.print(_table(task, columns))
    for gap in results["differences"]:
        low, high = gap["ci"]
        apart = "apart" if low > 0 or high < 0 else "not apart"
        rise = gap["pass1"] if "pass1" in gap else gap["mean"]
        first, second = gap["of"]
        console.print(
            f"{gap['task']}, {gap['template']}, {gap['reward']}: {first} - {second} = "
            f"{rise:+.3f} [{low:+.3f}, {high:+.3f}] ({apart}, task by task)",
            markup=False,
            soft_wrap=True,
        )


def _table(task: str, columns: list[tuple[str, str, Figures]]) -> Table:
    first = columns[0][2]
    table = Table(
        title=f"{task}: {first['tasks']} tasks, {first['k']} completions each, 95% intervals"
    )
    table.add_column("")
    for name, template, _ in columns:
        table.add_column(f"{name}\n{template}", justify="right")
    rows: list[tuple[str, Callable[[Figures], str]]] = []
    for name in first["rewards"]:
        judged = all("pass1" in of_reward(f, name) for _, _, f in columns)
        key, said = ("pass1", "pass@1,") if judged else ("mean", "mean")
        greedy = "greedy," if judged else "greedy mean"
        rows.append((f"{said} {name}", lambda f, n=name, k=key: _interval(of_reward(f, n), k)))
        rows.append((f"{greedy} {name}", lambda f, n=name: _interval(of_reward(f, n), "greedy")))
    judges = all("pass1" in figures for _, _, figures in columns)
    for k in list(first["pass_at_k"])[1:] if judges else ():
        rows.append((f"pass@{k}", lambda f, k=k: _pass_at_k(f, k)))
    if judges and first["maj_at_k"] is not None and first["k"] > 1:
        rows.append((f"maj@{first['k']}", lambda f: _interval(f, "maj_at_k")))
    rows += [
        ("cut by the length limit", lambda f: f"{f['clipped_ratio']:.1%}"),
        ("mean length, tokens", lambda f: f"{f['mean_length']:.1f}"),
        *([("  right · wrong", _lengths)] if judges else []),
        ("language mix, words", _mix),
    ]
    shown = [name for name in first["behaviors"] if any(_has(f, name) for _, _, f in columns)]
    rows += [("share · per 1,000 words", lambda _: "")] if shown else []
    for name in shown:
        rows.append((f"  {name!r} and alike", lambda f, n=name: _behavior(f, n)))
    if "contaminated" in first:
        rows.append(("tasks in the training rows", lambda f: f"{f['contaminated']:.1%}"))
    for heading, cell in rows:
        table.add_row(heading, *(cell(figures) for _, _, figures in columns))
    return table


def of_reward(figures: Figures, reward: str) -> Figures:
    return figures["rewards"][reward]


def _interval(figures: Figures, name: str) -> str:
    return "-" if figures.get(name) is None else interval(figures, name)


def _pass_at_k(figures: Figures, k: str) -> str:
    if k not in figures["pass_at_k"]:
        return "-"
    return interval({k: figures["pass_at_k"][k], f"{k}_ci": figures["pass_at_k_ci"][k]}, k)


def _lengths(figures: Figures) -> str:
    pair = (figures["length_right"], figures["length_wrong"])
    return " · ".join("-" if length is None else f"{length:.1f}" for length in pair)


def _mix(figures: Figures) -> str:
    shares = list(figures["scripts"].items())[:3]
    named = [f"{share:.0%} {'Han' if name == 'CJK' else name.title()}" for name, share in shares]
    return ", ".join(named) or "no words"


def _has(figures: Figures, name: str) -> bool:
    return figures["behaviors"][name]["share"] > 0


def _behavior(figures: Figures, name: str) -> str:
    found = figures["behaviors"][name]
    if found["per_1000_words"] is None:
        return "-"
    return f"{found['share']:.1%} · {found['per_1000_words']:.1f}"


def lm_eval_results(
    results: Mapping[str, Any], model: str, tasks: Mapping[str, EvalTask]
) -> dict[str, Any]:
    """Headline figures of one model in the layout of lm-evaluation-harness's results files.

    "exact_match,strict" is pass@1 by the strict verifier, "exact_match_stderr,strict" its
    standard error over task clusters. A template other than a task's first is "task@template".
    """
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    settings = results["settings"]
    for name, templates in results["models"][model].items():
        for number, (template, figures) in enumerate(templates.items()):
            title = f"{name}@{template}" if number else name
            task, tasks_asked = tasks[name], figures["tasks"]
            found["results"][title] = {"alias": title, **_scores(task, figures)}
            found["configs"][title] = {
                "task": title,
                **_asked(task, figures, settings),
                "metadata": {"version": TASK_VERSION, "template": template},
            }
            found["versions"][title] = TASK_VERSION
            found["n-shot"][title] = 0
            found["higher_is_better"][title] = dict.fromkeys(_metrics(task, figures), True)
            found["n-samples"][title] = {"original": tasks_asked, "effective": tasks_asked}
    return {
        **found,
        "config": {
            "model": settings["engine"],
            "model_args": f"pretrained={results['paths'][model]}",
            "limit": settings.get("limit"),
            "random_seed": settings["seed"],
        },
        "date": time.time(),
        "grpo_toolkit_version": toolkit_version(),
        "model_name": results["paths"][model],
    }


def _metrics(task: EvalTask, figures: Figures) -> list[str]:
    """The names of the metrics that `_scores` has, the task's own for rewards that judge."""
    judged = ("pass1" in of_reward(figures, spec.title) for spec in task.rewards)
    return list(dict.fromkeys(figures["metric"] if right else "mean" for right in judged))


def _scores(task: EvalTask, figures: Figures) -> dict[str, Any]:
    """Every reward's pass@1 with its standard error, or its mean where it says neither."""
    row: dict[str, Any] = {}
    for spec in task.rewards:
        shown = of_reward(figures, spec.title)
        metric, key = (figures["metric"], "pass1") if "pass1" in shown else ("mean", "mean")
        row[f"{metric},{spec.title}"] = shown[key]
        row[f"{metric}_stderr,{spec.title}"] = shown[f"{key}_stderr"]
    return row


def _asked(task: EvalTask, figures: Figures, settings: Mapping[str, Any]) -> dict[str, Any]:
    """How a task was asked."""
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in _metrics(task, figures)
    ]
    return {
        "dataset_path": task.source,
        "dataset_kwargs": dict(task.args),
        "output_type": "generate_until",
        "description": task.instruction,
        "repeats": figures["k"],
        "num_fewshot": 0,
        "generation_kwargs": {
            "do_sample": True,
            "temperature": settings["temperature"],
            "top_p": settings["top_p"],
            "max_gen_toks": figures["max_tokens"],
        },
        "metric_list": metrics,
        "filter_list": [{"name": spec.title} for spec in task.rewards],
    }
