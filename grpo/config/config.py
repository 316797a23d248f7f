"""Reading a recipe: YAML and overrides in, a frozen `Recipe` out, or one clear sentence.

    load("parity-r1-zero", ["run.seed=7", "rollout.num_generations=16"])

A recipe with one stage writes that stage's sections at the top level. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from grpo.config.locate import locate
from grpo.config.schema import STAGES, PretrainStage, Recipe, RLStage, Run
from grpo.errors import RecipeError, UnknownSettingError, did_you_mean, unknown_name
from grpo.errors.sampling_settings import REASONS
from grpo.outside.files.yaml_tree import Tree, read_yaml, read_yaml_file

__all__ = ["PretrainStage", "RLStage", "Recipe", "Run", "from_dict", "load", "resolved", "shipped"]

_PLAIN = {
    "Input should be": "it should be",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "an object": "a mapping of settings",
    "a valid dictionary": "a mapping of settings",
    "String should match pattern": "it should match",
    "Tuple should have": "it should have",
    " after validation, not 0": "",
}
# What was renamed, and peft's names: an old recipe or run gets an error that names the new one.
_RENAMED = {
    "parity": "agreement",
    "model.lora_rank": "model.lora.rank",
    "model.lora.r": "model.lora.rank",
    "model.lora.lora_alpha": "model.lora.alpha",
}


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at a path, or a shipped one by its bare name, with `section.key=value` overrides.

    Values are YAML. `stage.section.key=value` addresses one stage of several. Raises RecipeError.
    """
    file = find(recipe)
    tree = read_yaml_file(file, f"the recipe {str(file)!r}")
    if not isinstance(tree, dict):
        raise RecipeError(f"the recipe {str(file)!r} is not a mapping of sections to settings.")
    return from_dict({"name": file.stem, **cast(Tree, tree)}, overrides, folder=file.parent)


def from_dict(
    data: Mapping[str, Any],
    overrides: Sequence[str] = (),
    folder: Path | None = None,
    is_done: Callable[[Recipe, str], bool] = lambda _recipe, _stage: False,
) -> Recipe:
    """The recipe in a plain dict: a parsed YAML file, or `resolved` data. Raises RecipeError.

    Relative paths are looked up in the working directory, then in `folder`, then in the package.
    is_done: whether the stage of a name is finished, so that its files need not exist.
    """
    tree = _normal(data)
    for override in overrides:
        _override(tree, override)
    many = len(tree["stages"]) > 1
    for index, stage in enumerate(tree["stages"]):
        _known_kind(stage)
        where = f"{stage.get('name', index)}." if many else ""
        _validate(STAGES[stage["kind"]], stage, where)
    built = cast(Recipe, _validate(Recipe, tree, ""))
    stages = tuple(
        stage if is_done(built, stage.name) else locate(stage, folder, many)
        for stage in built.stages
    )
    return built.model_copy(update={"stages": stages})


def resolved(recipe: Recipe) -> Tree:
    """Every setting of `recipe`, defaults included, as plain data for resolved.json."""
    return recipe.model_dump(mode="json")


def texts(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted setting, text) of every text in plain data of settings."""
    if isinstance(tree, str):
        yield name, tree
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, dict):
        items = cast(dict[Any, Any], tree).items()
    elif isinstance(tree, list):
        items = enumerate(cast(list[Any], tree))
    for key, value in items:
        yield from texts(value, f"{name}.{key}" if name else str(key))


def parse_args(pairs: Sequence[str]) -> Tree:
    """{key: value} of `key=value` words whose values are YAML. Raises RecipeError."""
    parsed: Tree = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise RecipeError(f"argument {pair!r} is not of the form key=value.")
        if key in parsed:
            raise RecipeError(f"argument {pair!r}: {key!r} is given twice.")
        parsed[key] = read_yaml(text, f"the value of {key}")
    return parsed


def shipped() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    folder = Path(str(importlib.resources.files("grpo.recipes")))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find(recipe: str | Path) -> Path:
    """The file of a recipe given by path or by bare name. Raises RecipeError."""
    path = Path(recipe).expanduser()
    if path.is_file():
        return path.resolve()
    names = shipped()
    if str(recipe) in names:
        return names[str(recipe)]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_dir():
            raise RecipeError(f"{str(recipe)!r} is a folder, not the file of a recipe.")
        close = difflib.get_close_matches(path.stem, names, n=1)
        hint = f" A recipe named {close[0]!r} is shipped." if close else ""
        raise RecipeError(f"there is no recipe file {str(recipe)!r}.{hint}")
    raise RecipeError(unknown_name("recipe", str(recipe), names) + " Or give the path of a file.")


def section_types(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Dotted name -> field of every setting under `model`; list entries count once."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        inner = _model_in(info.annotation)
        if inner is None:
            found[name] = info
        else:
            found |= {f"{name}.{key}": value for key, value in section_types(inner).items()}
    return found


def _normal(data: Mapping[str, Any]) -> Tree:
    """A fresh tree of {name, run, stages: [{kind, name, sections…}]} from either way of writing."""
    tree: Tree = json.loads(json.dumps(data, default=str))
    head = {key: tree.pop(key) for key in ("name", "run", "ray") if key in tree}
    if "stages" in tree:
        stages: Any = tree.pop("stages")
        if tree:
            raise RecipeError(
                f"{next(iter(tree))!r} stands beside 'stages'; put it inside one of the stages."
            )
    else:
        stages = [tree]
    if not isinstance(stages, list) or not stages:
        raise RecipeError(f"stages = {stages!r} is not a list of stages.")
    for stage in cast(list[Any], stages):
        if not isinstance(stage, dict):
            raise RecipeError(f"stages holds {stage!r}, which is not a mapping of sections.")
        entry = cast(Tree, stage)
        entry.setdefault("kind", "rl")
        _known_kind(entry)
        entry.setdefault("name", entry["kind"])
    return {**head, "stages": stages}


def _known_kind(stage: Tree) -> None:
    kind = stage["kind"]
    if not isinstance(kind, str) or kind not in STAGES:
        raise RecipeError(f"kind: {unknown_name('kind of stage', str(kind), STAGES)}")


def _override(tree: Tree, override: str) -> None:
    """Apply one `section.key=value` in place."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"override {override!r} is not of the form section.key=value.")
    value = read_yaml(text, f"the value of {key}")
    stages: list[Tree] = tree["stages"]
    named = [stage for stage in stages if stage["name"] == parts[0] and len(parts) > 1]
    if parts[0] in ("run", "ray", "name"):
        target = tree
    elif named and not _has(STAGES[named[0]["kind"]], parts):
        target, parts = named[0], parts[1:]
    else:
        having = [stage for stage in stages if _has(STAGES[stage["kind"]], parts)]
        if len(having) > 1:
            choices = " or ".join(f"{stage['name']}.{key}" for stage in having)
            raise RecipeError(f"override {override!r}: several stages have {key!r}; use {choices}.")
        if not having and len(stages) > 1:
            valid = [
                f"{s['name']}.{name}" for s in stages for name in section_types(STAGES[s["kind"]])
            ]
            renamed = ".".join(_RENAMED.get(part, part) for part in parts)
            hint = did_you_mean(renamed, valid)
            names = ", ".join(["run", "ray", *(stage["name"] for stage in stages)])
            raise RecipeError(
                f"override {override!r}: no stage has {key!r}.{hint} Start with: {names}."
            )
        target = having[0] if having else stages[0]
    _set(target, parts, value, override)


def _set(target: Tree, parts: list[str], value: Any, override: str) -> None:
    node: Any = target
    for depth, part in enumerate(parts):
        name, index = ".".join(parts[:depth]), cast(Any, part)
        if isinstance(node, list):
            count = len(cast(list[Any], node))
            if not part.isdigit() or int(part) >= count:
                valid = ", ".join(map(str, range(count))) or "none"
                raise RecipeError(
                    f"override {override!r}: {name} has {count} entries; valid: {valid}."
                )
            index = int(part)
        elif not isinstance(node, dict):
            raise RecipeError(f"override {override!r}: {name} is one value and has no {part!r}.")
        entries = cast("dict[Any, Any]", node)
        found = entries[index] if isinstance(node, list) else entries.get(index)
        if depth == len(parts) - 1:
            entries[index] = value
        elif found is None:
            entries[index] = {}
        node = entries[index]


def _has(model: type[BaseModel], parts: Sequence[str]) -> bool:
    """Whether a dotted key leads to a setting of `model`."""
    if parts[0] not in model.model_fields:
        return False
    info = model.model_fields[parts[0]]
    inner = _model_in(info.annotation)
    rest = [part for part in parts[1:] if not part.isdigit()] if inner else []
    return not rest or (inner is not None and _has(inner, rest))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `tuple[RewardSpec, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def _validate(model: type[BaseModel], data: Tree, where: str) -> BaseModel:
    """Strict validation (no "8" for 8, no true for 1); the first error as one sentence."""
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        kind = UnknownSettingError if first["type"] == "extra_forbidden" else RecipeError
        raise kind(_sentence(model, cast(Tree, first), where)) from error


def _sentence(model: type[BaseModel], error: Tree, where: str) -> str:
    loc = list(error["loc"])
    if error["type"] == "value_error":  # written in a section: names fields and values itself
        return f"{where}{error['msg'].removeprefix('Value error, ').removesuffix('.')}."
    owner: type[BaseModel] = model
    info: FieldInfo | None = None
    for part in loc:
        if isinstance(part, str) and part in owner.model_fields:
            info = owner.model_fields[part]
            owner = _model_in(info.annotation) or owner
    name = where + ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        section = ".".join(str(part) for part in loc[:-1])
        place = f" in {where}{section}" if section else f" in {where[:-1]}" if where else ""
        key, known = str(loc[-1]), section_types(model)
        if new := _RENAMED.get(".".join(map(str, loc))):
            now = f", as the {'setting' if section else 'section'} is called now?"
            return f"unknown key {key!r}{place}. Did you mean {new!r}{now}"
        full = [name for name in known if name.rpartition(".")[2] == key]
        if full and not section:  # TRL's flat name
            return f"unknown key {key!r}{place}. Did you mean {' or '.join(map(repr, full))}?"
        if key in REASONS and section.rpartition(".")[2] in ("", "rollout"):
            return f"unknown key {key!r}{place}: {REASONS[key]}."
        return unknown_name("key", key, owner.model_fields).replace(".", f"{place}.", 1)
    described = f" ({info.description})" if info is not None and info.description else ""
    if error["type"] == "missing":
        return f"{name} is missing{described}."
    expected = str(error["msg"])
    for pydantic_says, we_say in _PLAIN.items():
        expected = expected.replace(pydantic_says, we_say)
    return f"{name} = {error['input']!r}{described}: {expected}."
