"""Which options each form of a verb takes, so that no option is silently ignored.

`FORMS` lists every option of the command line under each form of its verb that uses it. The other
forms refuse it by name.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from grpo.errors import RecipeError

RECIPE = ("recipe", "overrides")
TASKS = (
    *("model", "tasks", "data", "rewards", "k", "limit", "max_tokens", "template"),
    *("temperature", "top_p"),
    *("engine", "engine_args", "dtype", "baseline", "against", "out", "seed", "threads"),
)
# verb -> form, as a person would type it -> the options it takes
FORMS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "train": {"grpo train RECIPE": RECIPE, "grpo train --resume RUN": ("resume", "accept_changes")},
    "eval": {
        "grpo eval MODEL --tasks NAME,…": TASKS,
        "grpo eval MODEL --recipe RECIPE": ("model", "baseline", *RECIPE),
        "grpo eval RUN": ("model", "baseline", "overrides"),
    },
    "score": {"grpo score REWARD FILE.jsonl": ("reward", "file", "workers", "args", "timeout")},
    "data": {
        "grpo data FILE": (
            *("file", "model", "heldout", "prompt", "answer", "max_prompt_length", "json"),
        ),
        "grpo data --recipe RECIPE": ("recipe", "model", "json"),
    },
    "check": {"grpo check RECIPE": (*RECIPE, "limit")},
    "doctor": {"grpo doctor": ()},
    "plan": {"grpo plan RECIPE": RECIPE},
    "dry-run": {"grpo dry-run RECIPE": (*RECIPE, "architecture", "out")},
    "import-trl": {"grpo import-trl CONFIG.yaml": ("config", "out", "rows", "eval_rows")},
    "show": {"grpo show RUN": ("run",)},
    "chat": {"grpo chat MODEL": ("models", "template", "max_tokens", "temperature")},
    "serve": {
        "grpo serve MODEL": (
            *("model", "host", "port", "dtype", "max_model_len", "kv_cache_gib", "threads", "vllm"),
            "no_token",
        )
    },
}
# option -> the setting that a form with settings takes in its place
SETTINGS = {
    "k": "eval.num_samples=N",
    "limit": "eval.num_tasks=N",
    "rewards": "eval.rewards=[{name: NAME}]",
    "max_tokens": "rollout.max_completion_length=N",
    "template": "data.template=NAME",
    "temperature": "eval.temperature=X",
    "engine": "rollout.engine=NAME",
    "engine_args": "rollout.engine_args.KEY=VALUE",
    "dtype": "model.dtype=NAME",
    "seed": "run.seed=N",
    "threads": "run.threads=N",
}
# the settings of a recipe that its held-out evaluation reads; a name stands for all below it
EVALUATED = (
    *("run.seed", "run.threads", "ray.address", "ray.timeout"),
    *("model.dtype", "model.quantization", "data", "rewards"),
    *("rollout.engine", "rollout.engine_args", "rollout.dtype", "rollout.backend"),
    *("rollout.workers", "rollout.max_completion_length", "rollout.stop"),
    *("eval.num_tasks", "eval.num_samples", "eval.temperature", "eval.rewards"),
)


def given(arguments: Namespace) -> list[str]:
    """The names of the options that the user gave, which are those that are not empty."""
    absent: tuple[object, ...] = (None, [], ())
    return [name for name, value in vars(arguments).items() if value not in absent]


def check_form(verb: str, form: str, arguments: Namespace) -> None:
    """Raise RecipeError, with all names, if options were given that this form does not take.

    Options of a verb with several forms have no defaults, or they would seem to be given.
    """
    honored = FORMS[verb][form]
    ignored = [name for name in given(arguments) if name not in (*honored, "verb")]
    if not ignored:
        return
    said = f"`{form}` does not take {', '.join(map(_flag, ignored))}"
    settings = [SETTINGS[name] for name in ignored if name in SETTINGS]
    others = [_flag(name) for name in ignored if name not in SETTINGS]
    if "overrides" in honored and settings:
        left = f", and leave {', '.join(others)} out" if others else ""
        raise RecipeError(f"{said}: write {' '.join(settings)} instead{left}.")
    homes = [f for f, options in FORMS[verb].items() if ignored[0] in options]
    if homes and len(ignored) == 1:
        raise RecipeError(f"{said}, which belongs to `{homes[0]}`.")
    raise RecipeError(f"{said}; leave {'it' if len(ignored) == 1 else 'them'} out.")


def check_folder(path: str, name: str) -> str:
    """The path of a folder that an option or argument names. Raises RecipeError if it is none."""
    if not Path(path).is_dir():
        raise RecipeError(f"{name}: there is no folder {path!r}.")
    return path


def check_evaluated(
    overrides: Sequence[str], stages: Sequence[str], evaluated: str, own_rewards: bool
) -> None:
    """Raise RecipeError for an override that the held-out evaluation of a stage does not read.

    stages: the names of all stages; evaluated: the one whose held-out tasks are asked;
    own_rewards: whether it has eval.rewards, which replace its rewards.
    """
    for override in overrides:
        parts = override.partition("=")[0].strip().split(".")
        if parts[0] in stages and len(parts) > 1:
            where, parts = parts[0], parts[1:]
        else:
            where = evaluated
        key = ".".join(parts)
        read = any(key == name or key.startswith(name + ".") for name in EVALUATED)
        if where != evaluated:
            why = f"it asks the held-out tasks of stage {evaluated!r}"
        elif key == "model.path":
            why = "MODEL says what is evaluated"
        elif own_rewards and parts[0] == "rewards":
            why = "eval.rewards are there"
        elif not read:
            why = _valid(key)
        else:
            continue
        raise RecipeError(f"override {override!r} changes nothing of this evaluation: {why}.")


def _valid(key: str) -> str:
    section = key.partition(".")[0]
    near = [name for name in EVALUATED if name.partition(".")[0] == section] or EVALUATED
    return f"it reads {', '.join(near)}"


def _flag(name: str) -> str:
    return "settings" if name == "overrides" else f"--{name.replace('_', '-')}"
