"""The card of a rejection-sampled data set: README.md, by which `datasets` finds its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from grpo.evaluation.screen import REASONS

_HEAD = """---
configs:
- config_name: default
  data_files: train.jsonl
license: unknown  # yours to choose: the terms of the model and of the tasks apply
language: {language}
size_categories:
- {size}
---
# {title}

Completions of a model on training tasks, verified and filtered by `grpo`.

| | |
|---|---|
| rows | {rows} |
| rows mixed in from elsewhere | 0 (an sft stage mixes other rows in: `data.mix`) |
| model | {model} |
| sha256 of its files | {model_hash} |
| seed | {seed} |

## Tasks

| | |
|---|---|
{tasks}

## Completions

| | |
|---|---|
{completions}

## Columns

`prompt` (the task's own, without a template), `completion` (with the template's prefill), `answer`,
`task`, `tokens`, `reward` (weighted sum), `noise` (seed/split/task/visit/sample of its sampling).
{leaks}
## Settings

```json
{settings}
```
"""
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def card(title: str, made_of: Mapping[str, Any], counts: Mapping[str, Any], settings: Any) -> str:
    """README.md from the counts of a stage; nothing in it depends on the time or the machine."""
    size = next((name for most, name in _SIZES.items() if counts["rows"] < most), "1M<n<10M")
    dropped = [f"| dropped: {REASONS[name]} | {n} |" for name, n in counts["dropped"].items()]
    sets = counts["evaluation_sets"]
    leaks = "".join(
        f"\nCompared with {row['tasks']} tasks of `{name}`; {row['wording']} word runs shared by "
        "many of them are the wording of its prompts and were not counted as leaks.\n"
        for name, row in sets.items()
    )
    return _HEAD.format(
        title=title,
        language=settings["filter"]["language"] or "[]",
        size=size,
        rows=counts["rows"],
        model=made_of["model"],
        model_hash=made_of["model_hash"] or "not a local model",
        seed=made_of["seed"],
        tasks="\n".join(f"| {name} | {n} |" for name, n in counts["tasks"].items()),
        completions="\n".join([f"| sampled | {counts['completions']} |", *dropped]),
        leaks=leaks,
        settings=json.dumps(settings, indent=1, ensure_ascii=False),
    )
