"""A recipe for big models made small enough to run for real in seconds on a CPU.

What a recipe is about stays: its stages, data source, template, rewards, algorithm, adapter,
schedule and precision. What costs is replaced: models by tiny ones of the same architecture, hub
data sets by a few rows of the same columns, engines by the one in this process, lengths and counts
by small ones.
`changes` lists every setting that differs, so that nobody takes a dry run for the real thing.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo.config.config import from_dict, resolved
from grpo.config.schema import REFERENCE, Recipe
from grpo.errors import RecipeError
from grpo.method.table import least_group

Tree = dict[str, Any]

STEPS = 2
COMPLETION = 24  # tokens
PROMPT = 1024  # tokens of the small vocabulary, which writes most words in several
NOISE = {"name": "random", "label": "dry_run_noise", "weight": 0.1, "args": {}}
# An empty completion is no row to learn from, and here it would pass as well as any other.
WRITTEN = {
    "name": "grpo.commands.dryrun:written",
    "label": "dry_run_written",
    "weight": 1e6,
    "args": {},
}
INTERRUPT = {"name": "grpo.commands.dryrun:interrupt", "args": {}}

# Hub data sets of the shipped recipes, and the rows that stand for them (recipes/assets/dryrun).
FIXTURES = {
    "openai/gsm8k": "gsm8k",
    "HuggingFaceH4/MATH-500": "math",
    "HuggingFaceH4/aime_2024": "math",
    "math-ai/amc23": "math",
    "nlile/hendrycks-MATH-benchmark": "math",
    "agentica-org/DeepScaleR-Preview-Dataset": "math",
    "open-r1/DAPO-Math-17k-Processed": "dapo",
    "newfacade/LeetCodeDataset": "leetcode",
    "trl-lib/ultrafeedback-prompt": "chat",
    "trl-lib/tldr": "tldr",
    "openr1-math-220k.jsonl": "openr1",
    "openr1-cold-start.jsonl": "openr1",
}
# The hub data set that a source reads when it is given no path.
_OWN_DATA = {
    "gsm8k": "openai/gsm8k",
    "math": "HuggingFaceH4/MATH-500",
    "aime": "HuggingFaceH4/aime_2024",
    "amc": "math-ai/amc23",
    "leetcode": "newfacade/LeetCodeDataset",
}
_HUB_ONLY = ("dataset", "split", "heldout_split", "name", "revision", "year")


def shrink(recipe: Recipe, tiny: Callable[[str], str], scorer: Callable[[], str]) -> Recipe:
    """The small recipe. `tiny(path)` and `scorer()` give folders of a policy and a reward model."""
    tree = resolved(recipe)
    tree["run"] |= {"threads": 1, "save_steps": 1, "trackers": []}
    tree["ray"] |= {"address": "", "learners": 1, "verifiers": 0}
    for stage in tree["stages"]:
        _SHRINK[stage["kind"]](stage, tiny)
        for specs in (stage, stage.get("eval") or {}):
            if specs.get("rewards"):
                specs["rewards"] = [_reward(spec, scorer) for spec in specs["rewards"]]
        if stage["kind"] in ("reject", "distill"):
            stage["rewards"] = [*stage["rewards"], WRITTEN]
        if stage["kind"] == "rl":
            # An untrained model earns the same for everything: without noise nothing is learned.
            stage["eval"]["rewards"] = stage["eval"]["rewards"] or list(stage["rewards"])
            stage["rewards"] = [*stage["rewards"], NOISE]
    first = next((stage for stage in tree["stages"] if stage["kind"] == "rl"), None)
    if first is not None:
        first["callbacks"] = [*first["callbacks"], INTERRUPT]
    return from_dict(tree)


def changes(recipe: Recipe, small: Recipe) -> Iterator[tuple[str, str, str, str]]:
    """(stages, setting, value in the recipe, value in the dry run), equal changes on one line."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for stage, other in zip(recipe.stages, small.stages, strict=True):
        before, after = flat(stage.model_dump(mode="json")), flat(other.model_dump(mode="json"))
        for setting in dict.fromkeys([*before, *after]):
            was, now = before.get(setting), after.get(setting)
            added = was is None and setting.startswith(("eval.rewards.", "callbacks."))
            if was != now and not added and "dry_run_" not in setting:
                found.setdefault((setting, _shown(now)), []).append((stage.name, _shown(was)))
    for (setting, now), where in found.items():
        names = ", ".join(name for name, _ in where)
        was = ", ".join(dict.fromkeys(value for _, value in where))
        yield names if len(where) < len(recipe.stages) else "all", setting, was, now


def flat(tree: Mapping[str, Any], where: str = "") -> Tree:
    """Dotted setting -> value; rewards by their title, other lists as they are."""
    found: Tree = {}
    for name, value in tree.items():
        if value in ({}, []):
            continue
        if name in ("rewards", "callbacks") and isinstance(value, list):
            titles = [spec.get("label") or spec["name"].rpartition("/")[2] for spec in value]
            for title, spec in zip(titles, value, strict=True):
                found |= flat(
                    {title: spec.get("args", {}) or "as in the recipe"}, f"{where}{name}."
                )
        elif isinstance(value, dict) and value:
            found |= flat(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = value
    return found


def fixture(name: str) -> str:
    """Path of shipped rows."""
    return str(importlib.resources.files("grpo.recipes") / "assets" / "dryrun" / f"{name}.jsonl")


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "-"
    path = Path(value) if isinstance(value, str) and "/" in value else None
    return path.name if path is not None and path.is_absolute() else str(value)


def _rl(stage: Tree, tiny: Callable[[str], str]) -> None:
    algorithm, rollout, learner = stage["algorithm"], stage["rollout"], stage["learner"]
    _model(stage, tiny)
    _data(stage["data"])
    minibatches = min(2, algorithm["num_minibatches"])
    least = least_group(algorithm["advantage"], algorithm["advantage_args"])
    _rollout(rollout, least=max(2, least))
    algorithm["num_minibatches"] = minibatches
    algorithm["ref_model_sync_steps"] = min(1, algorithm.get("ref_model_sync_steps", 0))
    ahead = {"sync": 0, "one_step_off": 1, "async": stage["schedule"]["max_staleness"]}
    learner |= {
        # A step more for each that is sampled ahead: its completions are of the first weights.
        "max_steps": STEPS + ahead[stage["schedule"]["mode"]],
        # Large enough to show in bfloat16.
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "tokens_per_micro_batch": 4096,
    }
    steps = 1 if stage["eval"].get("keep_best") else 0
    tasks = min(2, stage["eval"]["num_tasks"])
    stage["eval"] |= {"steps": steps, "num_tasks": tasks, "num_samples": 2}


def _sft(stage: Tree, tiny: Callable[[str], str]) -> None:
    _model(stage, tiny)
    _sft_learner(stage["learner"])
    stage["data"]["path"] = _rows(stage["data"]["path"], "data.path")
    stage["data"]["mix"] = {
        _rows(path, "data.mix"): share for path, share in stage["data"]["mix"].items()
    }
    reference = stage["slm"]["reference"]
    if reference:
        stage["slm"]["reference"] = _policy(reference, tiny)


def _reject(stage: Tree, tiny: Callable[[str], str]) -> None:
    _model(stage, tiny)
    _data(stage["data"])
    _rollout(stage["rollout"], least=2)
    # Nothing that an untrained model writes would pass.
    stage["filter"] |= {
        "num_tasks": min(4, stage["filter"]["num_tasks"]),
        "min_reward": WRITTEN["weight"] / 2,
        "min_pass_rate": 0.0,
        "max_pass_rate": 1.0,
        "min_language": 0.0,
        "max_repetition": 1.0,
        # Not the rows that stand for the training set as well: everything would be contaminated.
        "decontaminate": [
            fixture("gsm8k") if name in _OWN_DATA or name in FIXTURES else name
            for name in stage["filter"]["decontaminate"]
        ],
    }


def _distill(stage: Tree, tiny: Callable[[str], str]) -> None:
    _reject(stage, tiny)
    _sft_learner(stage["learner"])
    teacher = stage["teacher"]
    teacher["path"] = _policy(teacher["model"] or teacher["path"], tiny)
    teacher["model"] = ""


def _eval(stage: Tree, tiny: Callable[[str], str]) -> None:
    small = {path: _policy(path, tiny) for path in stage["models"]}
    stage |= {
        "models": [small[path] for path in stage["models"]],
        "baseline": small.get(stage["baseline"], ""),
        "num_tasks": min(2, stage["num_tasks"]),
        "num_samples": min(2, stage["num_samples"]),
        "max_completion_length": min(COMPLETION, stage["max_completion_length"]),
        "engine": "torch",
    }
    _data(stage["data"])


def _pretrain(stage: Tree, _tiny: Callable[[str], str]) -> None:
    stage["model"] |= {
        "hidden_size": 16 * stage["model"]["num_heads"],
        "num_layers": min(2, stage["model"]["num_layers"]),
        "intermediate_size": min(128, stage["model"]["intermediate_size"]),
    }
    learner = stage["learner"]
    learner |= {
        "max_steps": min(30, learner["max_steps"]),
        "batch_size": min(16, learner["batch_size"]),
        "warmup_steps": min(2, learner["warmup_steps"]),
    }


_SHRINK = {
    "pretrain": _pretrain,
    "sft": _sft,
    "rl": _rl,
    "reject": _reject,
    "distill": _distill,
    "eval": _eval,
}


def _policy(path: str, tiny: Callable[[str], str]) -> str:
    return path if path.startswith(REFERENCE) else tiny(path)


def _model(stage: Tree, tiny: Callable[[str], str]) -> None:
    model = stage["model"]
    model["path"] = _policy(model["path"], tiny)
    lora = model["lora"]
    lora["rank"] = 8 if lora["adapter"] else min(8, lora["rank"])
    lora["adapter"] = ""  # which is of the model's own size


def _rollout(rollout: Tree, *, least: int) -> None:
    rollout |= {
        "engine": "torch",
        "engine_args": {},
        "workers": 1,
        "backend": "local",
        "prompts_per_step": 4,
        "num_generations": max(least, min(4, rollout["num_generations"])),
        "max_completion_length": _length(rollout["max_completion_length"]),
        "oversample": min(1.5, rollout["oversample"]),
        "max_rounds": min(2, rollout["max_rounds"]),
    }


def _length(length: Any) -> Any:
    """A small length; of a schedule, its last length at step 2 and half of it before."""
    if isinstance(length, dict):
        return {1: COMPLETION // 2, 2: COMPLETION}
    return min(COMPLETION, length)


def _sft_learner(learner: Tree) -> None:
    learner |= {
        "max_steps": STEPS,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "max_length": min(512, learner["max_length"]),
    }


def _data(data: Tree) -> None:
    """The same source on shipped rows where it reads the hub; longer prompts, in tokens."""
    data["max_prompt_length"] = PROMPT
    _source(data, "data")


def _source(data: Tree, where: str) -> None:
    args = dict(data["args"])
    for value in args.values():  # sources made of sources
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict) and "source" in inner:
                inner.setdefault("args", {})
                _source(inner, f"{where}.args")
    named = args.get("path") or args.get("dataset") or _OWN_DATA.get(data["source"])
    if named is not None:
        if not Path(str(named)).is_file():
            args = {name: value for name, value in args.items() if name not in _HUB_ONLY}
            if args.get("heldout_fraction") != 1 and data["source"] not in ("aime", "amc"):
                args["heldout_fraction"] = 0.5
        args["path"] = _rows(str(named), f"{where}.args")
        if data["source"] == "hub":
            data["source"] = "file"
    data["args"] = args


def _rows(path: str, where: str) -> str:
    """Local rows as they are; for a hub id the shipped ones. Raises RecipeError."""
    if path.startswith(REFERENCE) or Path(path).exists():
        return path
    path = _OWN_DATA.get(path, path)
    if path not in FIXTURES:
        raise RecipeError(
            f"{where} = {path!r}: no rows are shipped that could stand for it; name a JSONL file "
            "with a few rows of the same columns instead"
        )
    return fixture(FIXTURES[path])


def _reward(spec: Tree, scorer: Callable[[], str]) -> Tree:
    """The reward with short lengths, a tiny reward model, and a coin for a judge."""
    if spec["name"] == "judge":
        return {**spec, "name": "random", "label": spec.get("label") or "judge", "args": {}}
    args = _nested(spec.get("args") or {}, scorer)
    for key in [key for key in args if key.endswith("_args")]:  # of a gate, say
        inner = args.get(key.removesuffix("_args"))
        if isinstance(inner, str):
            args[key] = _short(inner, args[key], scorer)
    small = {**spec, "args": _short(spec["name"], args, scorer)}
    if "from_step" in spec:
        small["from_step"] = min(STEPS, spec["from_step"])
    return small


def _nested(value: Any, scorer: Callable[[], str]) -> Any:
    """Rewards inside the arguments of another (gate, routed), whatever holds them."""
    if isinstance(value, list):
        return [_nested(item, scorer) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("name"), str):
        return _reward(value, scorer)
    return {key: _nested(item, scorer) for key, item in value.items()}


def _short(name: str, args: Tree, scorer: Callable[[], str]) -> Tree:
    small: dict[str, Tree] = {
        "soft_overlong": {"max_length": COMPLETION, "cache": COMPLETION // 4},
        "length_cosine": {"max_length": COMPLETION},
    }
    if name == "reward_model":
        return {**args, "path": scorer(), "device": "cpu"}
    return {**args, **small.get(name, {})}
