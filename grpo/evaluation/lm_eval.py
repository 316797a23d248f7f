"""The results of `grpo eval --tasks` in the layout of lm-evaluation-harness's results files."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from grpo.evaluation.builtin_tasks import EvalTask
from grpo.evaluation.report import Figures, of_reward

TASK_VERSION = 1  # of the built-in tasks: raised when a prompt or a verdict changes


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
            found["results"][title] = {"alias": title, **_row(task, figures)}
            found["configs"][title] = {
                "task": title,
                **_config(task, figures, settings),
                "metadata": {"version": TASK_VERSION, "template": template},
            }
            found["versions"][title] = TASK_VERSION
            found["n-shot"][title] = 0
            found["higher_is_better"][title] = {figures["metric"]: True}
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
        "grpo_toolkit_version": version("grpo-toolkit"),
        "model_name": results["paths"][model],
    }


def _row(task: EvalTask, figures: Figures) -> dict[str, Any]:
    """Every reward's pass@1 with its standard error."""
    row: dict[str, Any] = {}
    metric = figures["metric"]
    for spec in task.rewards:
        shown = of_reward(figures, spec.title)
        row[f"{metric},{spec.title}"] = shown["pass1"]
        row[f"{metric}_stderr,{spec.title}"] = shown["pass1_stderr"]
    return row


def _config(task: EvalTask, figures: Figures, settings: Mapping[str, Any]) -> dict[str, Any]:
    """How a task was asked."""
    metric = {"metric": figures["metric"], "aggregation": "mean", "higher_is_better": True}
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
        "metric_list": [metric],
        "filter_list": [{"name": spec.title} for spec in task.rewards],
    }
