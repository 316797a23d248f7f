"""The settings in a run's resolved.json, compared with those it was started with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from grpo.errors import RunError
from grpo.outside.files.durable import Tree

# Settings that may be edited in a run's resolved.json: they change no number.
FREE = (
    *("run.dir", "run.trackers", "run.save_steps", "run.save_total_limit"),
    *("run.num_samples_logged", "ray.address", "ray.timeout"),
)
# The length of an rl stage may be edited too if its learning rate is constant.
LENGTH = "learner.max_steps"


def check_settings(record: Tree, now: Tree, folder: Path) -> list[str]:
    """Lines about the settings in resolved.json that were edited and may be. `record` gets them.

    Raises RunError naming every other setting that differs, with both values.
    """
    before, after = (dict(_flat(tree)) for tree in (record["settings"], now))
    names = [name for name in {**before, **after} if _text(before, name) != _text(after, name)]
    said = {n: f"{n} = {_text(after, n)} (was {_text(before, n)})" for n in names}
    may = [name for name in names if _is_free(name, record, before, after)]
    refused = [said[name] for name in names if name not in may]
    if refused:
        many = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise RunError(
            f"{folder / 'resolved.json'} is not what the run was started with: "
            f"{', '.join(refused[:5])}{many}; put it back, or start a new run from a checkpoint "
            f"(model.path=FOLDER). {', '.join(FREE)} may be edited, {LENGTH} where the learning "
            "rate is constant, and a path whose content is the same"
        )
    record["settings"] = now
    return [f"resolved.json: {said[name]}" for name in may]


def _is_free(name: str, record: Tree, before: Tree, after: Tree) -> bool:
    """Whether a setting may be edited between two parts of a run."""
    if name in FREE:
        return True
    where = name.removesuffix(LENGTH)
    if name.endswith(LENGTH) and before.get(f"{where}kind") == "rl":
        return before.get(f"{where}learner.lr_scheduler_type", "constant") == "constant"
    # A file that was moved keeps its name, and is compared by its content.
    old, new = before.get(name), after.get(name)
    if not (isinstance(old, str) and isinstance(new, str) and Path(old).name == Path(new).name):
        return False
    stages = record.get("stages", {})
    many = len(record["settings"].get("stages", [])) > 1
    stage, _, inner = name.partition(".") if many else (next(iter(stages), ""), "", name)
    return inner in stages.get(stage, {}).get("files", {}) or _leads_to_rows(inner)


def _leads_to_rows(setting: str) -> bool:
    last = setting.rpartition(".")[2]
    return setting == "data.path" or (
        setting.startswith("data.args.") and (last == "path" or last.endswith("_path"))
    )


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting. A single stage's settings lack its name."""
    if isinstance(tree, dict) and not name and isinstance(tree.get("stages"), list):
        rest = {key: value for key, value in tree.items() if key != "stages"}
        yield from _flat(rest)
        stages = cast(list[Any], tree["stages"])
        for index, stage in enumerate(stages):
            title = stage.get("name", index) if isinstance(stage, dict) else index
            yield from _flat(stage, f"{title}." if len(stages) > 1 else ".")
        return
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(cast(list[Any], tree))
        for key, value in items:
            yield from _flat(value, f"{name}{key}." if name != "." else f"{key}.")
        return
    yield name.rstrip("."), tree


def _text(flat: Mapping[str, Any], name: str) -> str:
    return json.dumps(flat[name]) if name in flat else "nothing"
