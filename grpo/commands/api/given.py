"""Objects that a call is given, as entries of a recipe: `object:NAME`, or a folder of a model."""

from __future__ import annotations

import glob
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from grpo.commands.api.settings import Tree, plain
from grpo.config.locate import local
from grpo.config.schema import REFERENCE
from grpo.data import SOURCES
from grpo.data.given import GivenRows
from grpo.data.in_memory import Placed, rows_given
from grpo.data.table import TableSource
from grpo.errors import DataError, GrpoError, RecipeError
from grpo.model import pretrained
from grpo.outside.code import plugins
from grpo.outside.code.foreign import guarded, said
from grpo.outside.code.objects import PREFIX
from grpo.rewards.reward_model import RewardModel
from grpo.rundir import checkpoint
from grpo.rundir.run_folder import model_path

DEEPEST = 20  # mappings and lists in one another
FOLDER = "given"  # in a run's folder: models that were in memory
# Keywords of a call that are no settings.
OBJECTS = (
    *("model", "models", "teacher", "tokenizer", "dataset", "eval_dataset", "rewards"),
    "reward_weights",
)
_TRAINED = ("model", "tokenizer", "dataset")
_REWARDED = (*_TRAINED, "rewards", "reward_weights")
TAKEN = {  # kind of a stage -> those that it takes
    "pretrain": (),
    "sft": _TRAINED,
    "rl": (*_REWARDED, "eval_dataset"),
    "reject": _REWARDED,
    "distill": (*_REWARDED, "teacher"),
    "eval": ("models", *_REWARDED[1:]),
}


@dataclass(frozen=True, kw_only=True)
class Given:
    """The objects of one call. models: name of a folder -> (model, tokenizer) to be saved in it."""

    objects: dict[str, Any] = field(default_factory=dict[str, Any])
    models: dict[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])

    def add(self, name: str, value: Any) -> str:
        """The address of an object. Two of one name become NAME and NAME_2."""
        if self.objects.get(name) is value:
            return PREFIX + name
        unique = _unique(name, self.objects)
        self.objects[unique] = value
        return PREFIX + unique


def model_entry(given: Given, folder: Path, model: Any, tokenizer: Any, what: str) -> str:
    """`model.path` for a path, a hub id, a run, or a model in memory. Raises RecipeError.

    A model that is not in memory, and a tokenizer for it, become one in memory.
    """
    left = getattr(model, "left_model", None)  # a Run
    path = str(left()) if callable(left) and not isinstance(model, type) else model
    tokenizer = _tokenizer_given(tokenizer)
    if isinstance(path, str | os.PathLike):
        path = model_path(os.fspath(cast("str | os.PathLike[str]", path)))  # also of a run
        if tokenizer is None:
            return path
        if path.startswith(REFERENCE):
            raise RecipeError(f"{what} = {path!r} has the tokenizer of its stage; leave out yours")
        model = pretrained.load_model(local(path), setting=what)
    _check_model(model, what)
    name = _unique(what, given.models)
    given.models[name] = model, tokenizer if tokenizer is not None else _tokenizer_of(model, what)
    return str(folder / FOLDER / name)


def _tokenizer_given(tokenizer: Any) -> Any:
    """A tokenizer in memory, from a path too; None for none. Raises RecipeError."""
    if isinstance(tokenizer, str | os.PathLike):
        return pretrained.tokenizer(local(os.fspath(cast("str", tokenizer))), "tokenizer")
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise RecipeError(
            f"tokenizer is of type {type(tokenizer).__name__}; valid: a tokenizer of transformers, "
            "or the folder or hub id of one"
        )
    return tokenizer


def _check_model(model: Any, what: str) -> None:
    """Refuse what is no model that can be saved and sampled from. Raises RecipeError."""
    kind = cast("type[Any]", type(model))
    names = {one.__name__ for one in kind.__mro__}
    why = ""
    if names & {"DataParallel", "DistributedDataParallel"}:
        why = f"; give {what}.module"
    elif "PeftModel" in names:
        why = f"; give {what}.merge_and_unload(), a new adapter is trained on it"
    elif isinstance(model, type):
        why = f", the class {cast('type[Any]', model).__name__}; give an object of it"
    elif is_model(model):
        if not model.can_generate():
            raise RecipeError(
                f"{what} is a {kind.__name__}, which generates no text; give a causal language "
                "model, as AutoModelForCausalLM loads it"
            )
        empty = [name for name, value in model.named_parameters() if value.is_meta]
        if empty:
            raise RecipeError(
                f"{what} has no numbers in {empty[0]!r}, which is on the meta device; load the "
                "weights, or give the folder of the model"
            )
        return
    raise RecipeError(
        f"{what} is of type {kind.__name__}{why}; valid: a folder, a hub id, a run, or a "
        "transformers.PreTrainedModel"
    )


def is_model(value: Any) -> bool:
    """Whether `value` is a PreTrainedModel; transformers is not imported to find out."""
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers.")
        for kind in type(value).__mro__
    )


def _tokenizer_of(model: Any, what: str) -> Any:
    """The tokenizer from where the model was loaded. Raises RecipeError where none is there."""
    path = str(getattr(model, "name_or_path", "") or "")
    try:
        if not path:
            raise RecipeError("it was made in memory")
        return pretrained.tokenizer(path, "its name_or_path")
    except RecipeError as error:
        raise RecipeError(
            f"{what} is a {type(model).__name__} in memory, and no tokenizer was found for it "
            f"({error}); pass tokenizer="
        ) from None


def make_places(given: Given, folder: Path) -> None:
    """Make the folders of the models in memory, which a recipe names before they are saved."""
    for name in given.models:
        (folder / FOLDER / name).mkdir(parents=True)


def save_models(given: Given, folder: Path) -> None:
    """Save the models in memory below the folder of the run, whole or not at all."""
    for name, (model, tokenizer) in given.models.items():
        place = folder / FOLDER / name
        aside = place.with_suffix(".tmp")

        def write(to: Path, model: Any = model, tokenizer: Any = tokenizer) -> None:
            model.save_pretrained(to)
            tokenizer.save_pretrained(to)

        with pretrained.without_bars():
            checkpoint.make_folder(aside, write)
        checkpoint.replace(aside, place)


# -- rewards ------------------------------------------------------------------------------


def reward_entries(
    given: Given, rewards: Any, weights: Sequence[float] | None = None
) -> list[Tree]:
    """`rewards` of a stage: names, functions, verifiers, reward models, or mappings of a recipe.

    Raises RecipeError for anything else.
    """
    several = isinstance(rewards, list | tuple | Iterator)
    listed = list(cast("Iterable[Any]", rewards)) if several else [rewards]
    if not listed:
        raise RecipeError("rewards = []: give at least one reward, say rewards=[my_function]")
    entries = [_reward(given, reward, f"rewards[{i}]") for i, reward in enumerate(listed)]
    if weights is not None:
        if not isinstance(weights, Sequence) or len(weights) != len(entries):
            raise RecipeError(
                f"reward_weights = {weights!r:.60}: give a list with one number for each reward, "
                f"{len(entries)} here"
            )
        for entry, weight in zip(entries, weights, strict=True):
            entry["weight"] = plain("reward_weights", weight)
    return entries


def _reward(given: Given, reward: Any, where: str) -> Tree:
    if isinstance(reward, Mapping):
        entry = dict(cast("Mapping[str, Any]", reward))
        if entry.get("name") is None:
            raise RecipeError(
                f"{where} is a dict without 'name'; write it as "
                "{'name': my_function, 'weight': 1.0}"
            )
        name = entry.pop("name", None)
        return {**_reward(given, name, f"{where}['name']"), **plain(where, entry)}
    if isinstance(reward, str):
        return {"name": reward}
    pair = cast("tuple[Any, ...]", reward)
    if isinstance(reward, tuple) and len(pair) == 2 and is_model(pair[0]):
        made = RewardModel.of(*pair)
        return {"name": given.add("reward_model", made)}
    if is_model(reward) and cast(Any, reward).can_generate():
        raise RecipeError(
            f"{where} is a {type(reward).__name__}, which generates text; a reward model gives one "
            "number, as AutoModelForSequenceClassification loads it"
        )
    if is_model(reward):
        made = RewardModel.of(reward, _tokenizer_of(reward, where))
        return {"name": given.add("reward_model", made)}
    if isinstance(reward, type):
        _check_class(reward, where)
    if callable(reward) or hasattr(reward, "scores") or hasattr(reward, "verify"):
        return {"name": given.add(name_of(reward), reward)}
    raise RecipeError(
        f"{where} = {reward!r:.60} is of type {type(reward).__name__}; valid: a function, the name "
        "of a reward, a verifier, a reward model, or a dict with 'name' and 'weight'"
    )


def _check_class(reward: type[Any], where: str) -> None:
    """Refuse a class that cannot be called without arguments to make a reward."""
    try:
        inspect.signature(reward).bind()
    except ValueError:  # written in C
        return
    except TypeError as error:
        raise RecipeError(
            f"{where} is the class {reward.__name__}, not an object of it ({error}); make one, "
            f"{reward.__name__}(…)"
        ) from None


def name_of(value: Any) -> str:
    """What metrics call a function or an object."""
    found = getattr(value, "func", value)  # of a partial
    name = getattr(found, "__name__", None) or getattr(found, "name", None)
    name = name if isinstance(name, str) else type(found).__name__
    return "".join(c if c.isalnum() or c == "_" else "" for c in name) or "reward"


# -- data ---------------------------------------------------------------------------------


def tasks_entry(given: Given, dataset: Any, eval_dataset: Any, args: Mapping[str, Any]) -> Tree:
    """`data.source` and `data.args` for tasks. Raises DataError."""
    if isinstance(dataset, str | os.PathLike):
        text = os.fspath(cast("str | os.PathLike[str]", dataset))
        if text in SOURCES and not os.path.exists(text):
            return {"source": text, "args": {**args, **_heldout_path(eval_dataset)}}
        here = os.path.exists(os.path.expanduser(text)) or glob.has_magic(text) or Path(text).suffix
        source = "file" if here else "hub"
        return {"source": source, "args": {**args, "path": text, **_heldout_path(eval_dataset)}}
    if hasattr(dataset, "size") and hasattr(dataset, "task"):
        return {"source": given.add("dataset", _Maker(dataset)), "args": dict(args)}
    rows = _rows(dataset, "dataset")
    heldout = None if eval_dataset is None else _rows(eval_dataset, "eval_dataset")
    return {"source": given.add("dataset", GivenRows(rows, heldout)), "args": dict(args)}


def _rows(dataset: Any, what: str) -> list[Placed]:
    """The rows of a data set in memory; what a generator of the user's raises is a DataError."""

    def fail(error: BaseException) -> GrpoError:
        return error if isinstance(error, GrpoError) else DataError(f"{what} {said(error)}")

    with guarded(what, fail):
        return rows_given(dataset, what)


def rows_entry(given: Given, dataset: Any) -> str:
    """`data.path` for prompt-completion rows."""
    if isinstance(dataset, str | os.PathLike):
        return os.fspath(cast("str | os.PathLike[str]", dataset))
    left = getattr(dataset, "left_rows", None)  # a Run
    if left is not None:
        return str(left())
    return given.add("dataset", GivenRows(_rows(dataset, "dataset")))


def _heldout_path(eval_dataset: Any) -> Tree:
    if eval_dataset is None:
        return {}
    if isinstance(eval_dataset, str | os.PathLike):
        return {"heldout_path": os.fspath(cast("str | os.PathLike[str]", eval_dataset))}
    raise DataError(
        "eval_dataset has rows in memory and dataset is a path: give both as paths, or both as rows"
    )


def table_of(given: Given, data: Mapping[str, Any]) -> TableSource | None:
    """The tasks of rows from memory, a file or the hub; None of any other source."""
    source = str(data["source"])
    if not source.startswith(PREFIX):
        known = source in ("file", "hub")
        return plugins.load("source", source, data["args"]) if known else None
    made = given.objects[source.removeprefix(PREFIX)]
    plugins.check_args("source", source, made, data["args"])
    return made(**data["args"]) if isinstance(made, GivenRows) else None


class _Maker:
    """A source that exists already, as what a recipe's `data.source` calls."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __call__(self) -> Any:
        return self.source


# -- everything else ----------------------------------------------------------------------


def callables(given: Given, tree: Any, depth: int = 0) -> Any:
    """`tree` of settings with an address in place of each function and object with methods.

    Raises RecipeError for one that holds itself.
    """
    if depth > DEEPEST:
        raise RecipeError(f"settings are nested more than {DEEPEST} deep: {tree!r:.60}")
    if isinstance(tree, Mapping):
        items = cast("Mapping[str, Any]", tree).items()
        return {name: callables(given, value, depth + 1) for name, value in items}
    if isinstance(tree, list | tuple):
        return [callables(given, value, depth + 1) for value in cast("Sequence[Any]", tree)]
    is_value = isinstance(tree, str | type) or type(tree).__module__ in ("numpy", "torch")
    return given.add(name_of(tree), tree) if callable(tree) and not is_value else tree


def _unique(name: str, taken: Iterable[str]) -> str:
    used, number = set(taken), 1
    while (found := name if number == 1 else f"{name}_{number}") in used:
        number += 1
    return found
