"""The one door to pretrained models: configuration, tokenizer, generation config and weights.

Hugging Face's libraries may answer with a traceback, wait for minutes, or put random numbers in
place of a tensor. Here one sentence says what is wrong and names the setting. `check_model` says it
without the weights in memory. Nothing is imported before it is needed, so a path that leads nowhere
is refused before torch is loaded.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.errors import RecipeError
from grpo.model.checks import (
    check_finite,
    check_no_kernels,
    check_tensors,
    check_text_model,
    check_trainable,
    check_vocabulary,
    text_part,
)
from grpo.model.hub import Repo, find_repo, near
from grpo.model.model_files import check_files, check_folder

if TYPE_CHECKING:
    import torch

CAUSAL = "AutoModelForCausalLM"
CLASSIFIER = "AutoModelForSequenceClassification"
_COLORS = re.compile(r"\x1b\[[0-9;]*m")

_configs: dict[tuple[object, ...], Any] = {}
_checked: set[tuple[object, ...]] = set()


def place_of(path: str, setting: str = "model.path") -> Repo:
    """Where the model `path` is: a folder of this machine, or a repository of the hub.

    Raises RecipeError where it is neither, in seconds (`grpo/model/hub.py`), and for a folder or
    file that is no model.
    """
    local = Path(path).expanduser()
    if local.exists():
        return Repo(path=str(check_folder(local, f"{setting} = {path!r}")))
    told = f"{setting} = {path!r}: there is no such folder"
    if local.is_absolute() or path.startswith(("./", "../", "~")) or path.count("/") > 1:
        raise RecipeError(f"{told}.{near(str(local))}")
    try:
        return find_repo(path, "model")
    except LookupError as error:
        raise RecipeError(f"{told}, {error}.{near(path)}") from None


def config(path: str, setting: str = "model.path") -> Any:
    """The configuration, read once while its file is the same; not to be changed."""
    where = place_of(path, setting)
    key = _identity(where)
    if key not in _configs:
        from transformers import AutoConfig

        with _sentences(path, setting, where):
            found: Any = _load(AutoConfig, where)
            check_no_kernels(found, f"{setting} = {path!r}")
        _configs[key] = found
    return _configs[key]


def text_config(path: str, setting: str = "model.path") -> Any:
    """The part of the configuration that describes the language model."""
    return text_part(config(path, setting), f"{setting} = {path!r}")


def positions(path: str, setting: str = "model.path") -> int | None:
    """The number of positions that the model was made for; None where it names none."""
    return getattr(text_config(path, setting), "max_position_embeddings", None)


def generation_config(path: str, setting: str = "model.path") -> Any:
    """The generation config; None where the model has no such file."""
    from transformers import GenerationConfig

    where = place_of(path, setting)
    local = Path(where.path)
    if local.is_dir() and not (local / "generation_config.json").is_file():
        return None
    with _sentences(path, setting, where):
        try:
            return _load(GenerationConfig, where)
        except OSError:
            if local.is_dir():  # the file exists, and cannot be read
                raise
            return None


def tokenizer(path: str, setting: str = "model.path", chat_template: str = "") -> Any:
    """A tokenizer of its own for the caller, with `chat_template` as its template if that is given.

    Raises RecipeError, also for a template that does not work
    (`grpo/outside/templates/chat_templates.py`).
    """
    from transformers import AutoTokenizer

    where = place_of(path, setting)
    with _sentences(path, setting, where, "tokenizer"):
        found: Any = _load(AutoTokenizer, where)
    if chat_template:
        from grpo.outside.templates.chat_templates import check_template

        found.chat_template = chat_template
        check_template(found)
    return found


def load_model(
    path: str,
    dtype: torch.dtype | None = None,
    *,
    setting: str = "model.path",
    kind: str = CAUSAL,
    trained: bool = False,
) -> Any:
    """The model with every one of its tensors from the checkpoint, and all of them finite.

    kind: the class of transformers that makes it. dtype: of its weights; None: the checkpoint's.
    trained: whether it is to learn, which weights in four or eight bits cannot. Raises RecipeError,
    naming the tensors, for a checkpoint that lacks some, has some of another shape or some that
    the model has no place for, or holds NaN or infinity.
    """
    model = _made(path, setting, kind, **({} if dtype is None else {"dtype": dtype}))
    check_finite(model, f"{setting} = {path!r}")
    if trained:
        check_trainable(model, f"{setting} = {path!r}")
    return model


def check_model(
    path: str, setting: str = "model.path", kind: str = CAUSAL, *, weights: bool = True
) -> None:
    """What can be known of a model without its weights in memory. Raises RecipeError.

    Its files are whole, its tensors are those of the architecture (the library's own loading, with
    all its conversions of names, on a device that holds no data), and the tokenizer writes in
    tokens that it has. What is right is not looked at again while its files are the same.
    weights: whether they are needed; an engine elsewhere has its own.
    """
    where = place_of(path, setting)
    key = (*_identity(where), kind, weights)
    if key in _checked:
        return
    found = config(path, setting)
    if kind == CAUSAL:
        check_text_model(found, f"{setting} = {path!r}")
    folder = Path(where.path)
    if weights and folder.is_dir():  # one of the hub is checked when it is loaded
        packed = getattr(found, "quantization_config", None) is not None
        check_files(folder, f"{setting} = {path!r}", packed)
        if not packed:  # those are unpacked with their data, and checked when they are loaded
            _made(path, setting, kind, device_map="meta")
    check_vocabulary(tokenizer(path, setting), text_config(path, setting), f"{setting} = {path!r}")
    _checked.add(key)


def _made(path: str, setting: str, kind: str, **options: Any) -> Any:
    """The model as `kind` makes it, every tensor accounted for. Raises RecipeError."""
    import transformers

    where, said = place_of(path, setting), f"{setting} = {path!r}"
    if kind == CAUSAL:
        check_text_model(config(path, setting), said)
    with _sentences(path, setting, where), without_bars():
        model, report = _load(
            getattr(transformers, kind),
            where,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they come by name; they are refused below
            weights_only=True,  # a pickle's tensors and no other objects
            **options,
        )
    check_tensors(model, report, said)
    return model


def _load(kind: Any, where: Repo, **options: Any) -> Any:
    """`kind.from_pretrained`; code that comes with a model is never run, nor asked about."""
    if where.revision is not None:
        options["revision"] = where.revision
    if kind.__name__ != "GenerationConfig":
        options["trust_remote_code"] = False
    return kind.from_pretrained(where.path, **options)


def _identity(where: Repo) -> tuple[object, ...]:
    """What changes when the files of a model do."""
    folder = Path(where.path)
    if not folder.is_dir():
        return (where.path, where.revision)
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    stats = [(file.name, file.stat()) for file in files]
    return (str(folder.resolve()), *((n, s.st_mtime_ns, s.st_size, s.st_ino) for n, s in stats))


@contextmanager
def _sentences(path: str, setting: str, where: Repo, what: str = "model") -> Iterator[None]:
    """What the libraries raise, as RecipeError."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # they raise whatever their readers raise
        memory = any(words in str(error) for words in ("out of memory", "can't allocate memory"))
        if memory or isinstance(error, MemoryError):
            raise
        raise RecipeError(_unreadable(path, setting, where, error, what)) from error


def _unreadable(path: str, setting: str, where: Repo, error: Exception, what: str = "model") -> str:
    said, folder = f"{setting} = {path!r}", Path(where.path)
    text = _COLORS.sub("", str(error))
    if "trust_remote_code" in text:
        return (
            f"{said} brings code of its own (auto_map in its configuration), which is not run, and "
            "no setting says otherwise: name a model whose architecture transformers has, or "
            "install its code as a package that registers it (AutoConfig.register)"
        )
    if what == "tokenizer" and folder.is_dir() and not any(folder.glob("*token*")):
        return f"{said} holds no tokenizer: save one there with tokenizer.save_pretrained({path!r})"
    lines = [line for line in text.strip().splitlines() if line.strip()]
    reason = (lines[0] if lines else type(error).__name__).strip().rstrip(". ")
    if reason.endswith(":") and len(lines) > 1:
        reason = f"{reason} {lines[1].strip()}".rstrip(". ")
    if not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    cached = f"; it is from the local cache, since {where.unreachable}" if where.unreachable else ""
    part = "" if what == "model" else f"the {what} of "
    return f"{part}{said} could not be loaded: {reason}{cached}"


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the library's bars and its table of tensors, which our own sentences replace."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def own_config(path: str, setting: str = "model.path") -> Any:
    """A copy of the configuration, which the caller may change."""
    return copy.deepcopy(config(path, setting))
