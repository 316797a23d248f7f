"""Where the files of a recipe are, and whether the plug-ins it names exist."""

from __future__ import annotations

import glob
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.config import schema
from grpo.errors import PluginError, RecipeError
from grpo.errors.sampling_settings import REASONS
from grpo.method.table import ADVANTAGES
from grpo.outside.code import plugins
from grpo.outside.templates.chat_templates import template_text

Tree = dict[str, Any]


def locate(stage: schema.AnyStage, folder: Path | None, many: bool) -> Any:
    """Absolute paths for local files, and plug-in names checked; the stage otherwise unchanged.

    folder: of the recipe, where its files are looked for too; many: whether messages name the
    stage. Raises RecipeError.
    """
    where = f"{stage.name}." if many else ""
    found: dict[str, Any] = {}
    for name in type(stage).model_fields:
        given = getattr(stage, name)
        section = _section(given, f"{where}{name}", folder)
        if section is not given:
            found[name] = section
    if isinstance(stage, schema.EvalStage):
        models = [_path(f"{where}models", path, folder) for path in stage.models]
        found["models"] = tuple(models)
        if stage.baseline:
            found["baseline"] = models[stage.models.index(stage.baseline)]
        found["engine"] = _plugin("engine", f"{where}engine", stage.engine, folder)
    if isinstance(stage, schema.DistillStage | schema.RejectStage):
        _check_length(stage.rollout.max_completion_length, f"{where}rollout.max_completion_length")
    if not isinstance(stage, schema.PretrainStage | schema.SFTStage):
        found["rewards"] = _rewards(stage.rewards, f"{where}rewards", folder)
    if isinstance(stage, schema.RLStage):
        found["callbacks"] = tuple(
            _copy(c, name=_plugin("callback", f"{where}callbacks.{i}.name", c.name, folder))
            for i, c in enumerate(stage.callbacks)
        )
        found["curriculum"] = tuple(
            _copy(
                rule,
                name=_plugin("curriculum", f"{where}curriculum.{i}", rule.name, folder, rule.args),
                args=_data_args(rule.args, folder),
            )
            for i, rule in enumerate(stage.curriculum)
        )
    return _copy(stage, **found)


def local(path: str) -> str:
    """A path as recipes write it, `assets/…` of this package too; a name of the hub as it is."""
    found = _file(path, None)
    return path if found is None else str(found)


def _section(section: Any, field: str, folder: Path | None) -> Any:
    """One section of a stage with its files and plug-ins found; any other value as it is."""
    match section:
        case schema.Data() | schema.PretrainData():
            spec, args = section.source, section.args
            source = _plugin("source", f"{field}.source", spec, folder, args)
            found = _copy(section, source=source, args=_data_args(args, folder))
        case schema.SFTData():
            mix = {
                _path(f"{field}.mix", path, folder): share for path, share in section.mix.items()
            }
            found = _copy(section, path=_path(f"{field}.path", section.path, folder), mix=mix)
        case schema.Model() | schema.Teacher():
            found = _copy(section, path=_path(f"{field}.path", section.path, folder))
            if isinstance(section, schema.Model) and (given := section.lora.adapter):
                adapter = _path(f"{field}.lora.adapter", given, folder)
                found = _copy(found, lora=_copy(section.lora, adapter=adapter))
            return found
        case schema.Rollout():
            _check_engine_args(section, f"{field}.engine_args")
            return _copy(
                section, engine=_plugin("engine", f"{field}.engine", section.engine, folder)
            )
        case schema.Filter():
            names = [_file(name, folder) or name for name in section.decontaminate]
            return _copy(section, decontaminate=tuple(map(str, names)))
        case schema.Eval():
            return _copy(section, rewards=_rewards(section.rewards, f"{field}.rewards", folder))
        case schema.SLM():
            reference = section.reference and _path(f"{field}.reference", section.reference, folder)
            return _copy(section, reference=reference)
        case schema.Algorithm():
            loss, advantage = section.loss_type, section.advantage
            return _copy(
                section,
                loss_type=_plugin("objective", f"{field}.loss_type", loss, folder),
                advantage=_plugin("advantage", f"{field}.advantage", advantage, folder),
            )
        case _:
            return section
    if given := getattr(section, "chat_template", ""):
        file = _file(given, folder) if "{" not in given else None
        text = template_text(given, file, f"{field}.chat_template")
        found = _copy(found, chat_template=text)  # so that a resumed run has the same
    return found


def _check_length(length: Any, field: str) -> None:
    if not isinstance(length, int):
        raise RecipeError(
            f"{field} = {length!r}: only an rl stage has steps to change it at; write one number"
        )


def _check_engine_args(rollout: schema.Rollout, field: str) -> None:
    """Refuse sampling settings that other engines have, by name."""
    for name, value in rollout.engine_args.items():
        if name in REASONS and rollout.engine in ("torch", "vllm", "server"):
            raise RecipeError(f"{field}.{name} = {value!r}: {REASONS[name]}")


def _copy(section: Any, **update: Any) -> Any:
    return section.model_copy(update=update)


def _path(field: str, path: str, folder: Path | None) -> str:
    """An absolute local path; hub ids, addresses and stage:NAME as they are. Raises RecipeError."""
    if path.startswith((schema.REFERENCE, "http://", "https://")):
        return path
    local = _file(path, folder)
    if local is None and (path.startswith((".", "/", "~", "assets/")) or path.count("/") > 1):
        raise RecipeError(f"{field} = {path!r}: there is no such file or folder.")
    return str(local) if local else path


def _rewards(
    specs: Sequence[schema.RewardSpec], where: str, folder: Path | None
) -> tuple[schema.RewardSpec, ...]:
    found: list[schema.RewardSpec] = []
    for i, spec in enumerate(specs):
        name = _plugin("reward", f"{where}.{i}", spec.name, folder, spec.args)
        args = _reward_args(f"{where}.{i}.args", _data_args(spec.args, folder), folder)
        found.append(_copy(spec, name=name, args=spec.args if plugins.is_address(name) else args))
    return tuple(found)


def _reward_args(where: str, args: Any, folder: Path | None) -> Any:
    """Arguments of `gate`, `routed` and the like, with files of rewards made absolute."""
    if isinstance(args, list | tuple):
        return [_reward_args(f"{where}.{i}", value, folder) for i, value in enumerate(args)]
    if not isinstance(args, Mapping):
        return args
    found: Tree = {}
    for key, value in args.items():
        file = isinstance(value, str) and key in ("name", "reward", "verifier") and ":" in value
        if file:
            found[key] = _plugin("reward", f"{where}.{key}", value, folder)
        else:
            found[key] = _reward_args(f"{where}.{key}", value, folder)
    return found


def _plugin(
    kind: str, field: str, spec: str, folder: Path | None, args: Mapping[str, Any] | None = None
) -> str:
    """`spec` with a file made absolute, or checked against the built-in names (and arguments)."""
    file = plugins.split_file(spec)
    if file is not None:
        path = _file(str(file[0]), folder)
        if path is None:
            raise RecipeError(f"{field} = {spec!r}: there is no file {str(file[0])!r}.")
        return f"{path}:{file[1]}"
    if plugins.is_address(spec):
        return spec
    try:
        if kind == "reward" and spec in ADVANTAGES and spec not in plugins.builtins(kind):
            raise PluginError(f"{spec!r} is no reward; it is set by algorithm.advantage: {spec}")
        found = plugins.find(kind, spec)
        if args is not None:
            plugins.check_args(kind, spec, found, args)
    except PluginError as error:
        raise RecipeError(f"{field}: {error}") from error
    return spec


def _data_args(args: Mapping[str, Any], folder: Path | None) -> Tree:
    """`args` with local files in `path` and `*_path` made absolute; others may be hub ids.

    The parts of a mixture have such arguments inside.
    """
    found: Tree = {}
    for name, value in args.items():
        if isinstance(value, Mapping):
            found[name] = _data_args(value, folder)
            continue
        if isinstance(value, list | tuple):
            found[name] = [_data_args(v, folder) if isinstance(v, Mapping) else v for v in value]
            continue
        is_path = (name == "path" or name.endswith("_path")) and isinstance(value, str)
        local = _file(value, folder) if is_path else None
        if local is None and is_path and glob.has_magic(value):
            local = Path.cwd() / Path(value).expanduser()
        found[name] = str(local) if local else value
    return found


def _file(path: str, folder: Path | None) -> Path | None:
    """The first of cwd/path, folder/path and <package>/recipes/path that exists, absolute."""
    given = Path(path).expanduser()
    package = Path(str(importlib.resources.files("grpo.recipes")))
    for base in (Path.cwd(), *([folder] if folder else []), package):
        if (base / given).exists():
            return (base / given).resolve()
    return None
