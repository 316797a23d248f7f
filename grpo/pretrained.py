"""The one door to pretrained models: configuration, tokenizer, generation config and weights.

Everything that Hugging Face's libraries would answer with a traceback, with minutes of waiting, or
with random numbers in place of a tensor is one sentence here, which names the setting.
`check_model` says it without the weights in memory. Nothing is imported before it is needed, so
that a path that leads nowhere is refused before torch is loaded.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.errors import RecipeError
from grpo.hub import Repo, find_repo, near
from grpo.model_files import check_files, check_folder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

CAUSAL = "AutoModelForCausalLM"
CLASSIFIER = "AutoModelForSequenceClassification"
_SHOWN = 3  # tensors that a message names
# Scales of a cache in eight bits, which some servers write beside the weights: no weights.
_HARMLESS = re.compile(r"(^|\.)(k|v|q|kv|prob)_scale$")

_COLORS = re.compile(r"\x1b\[[0-9;]*m")

_configs: dict[tuple[object, ...], Any] = {}
_checked: set[tuple[object, ...]] = set()
_told: set[str] = set()


def place_of(path: str, setting: str = "model.path") -> Repo:
    """Where the model `path` is: a folder of this machine, or a repository of the hub.

    Raises RecipeError where it is neither, in seconds (`grpo/hub.py`), and for a folder or file
    that is no model.
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
            _check_no_kernels(found, f"{setting} = {path!r}")
        _configs[key] = found
    return _configs[key]


def text_config(path: str, setting: str = "model.path") -> Any:
    """The part of the configuration that describes the language model."""
    return _text_part(config(path, setting), f"{setting} = {path!r}")


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
    try:
        return _load(GenerationConfig, where)
    except OSError as error:
        if local.is_dir():  # it is there, and cannot be read
            raise RecipeError(_unreadable(path, setting, where, error)) from error
        return None
    except (ValueError, TypeError) as error:
        raise RecipeError(_unreadable(path, setting, where, error)) from error


def tokenizer(path: str, setting: str = "model.path", chat_template: str = "") -> Any:
    """A tokenizer of its own for the caller, with `chat_template` as its template if that is given.

    Raises RecipeError, also for a template that does not work (`grpo/chat_templates.py`).
    """
    from transformers import AutoTokenizer

    where = place_of(path, setting)
    with _sentences(path, setting, where, "tokenizer"):
        found: Any = _load(AutoTokenizer, where)
    if chat_template:
        from grpo.chat_templates import check_template

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
    _check_finite(model, f"{setting} = {path!r}")
    if trained:
        _check_trainable(model, f"{setting} = {path!r}")
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
        _check_text_model(found, f"{setting} = {path!r}")
    folder = Path(where.path)
    if weights and folder.is_dir():  # one of the hub is checked when it is loaded
        packed = getattr(found, "quantization_config", None) is not None
        check_files(folder, f"{setting} = {path!r}", packed)
        if not packed:  # those are unpacked with their data, and checked when they are loaded
            _made(path, setting, kind, device_map="meta")
    _check_vocabulary(tokenizer(path, setting), text_config(path, setting), f"{setting} = {path!r}")
    _checked.add(key)


# Loading


def _made(path: str, setting: str, kind: str, **options: Any) -> Any:
    """The model as `kind` makes it, every tensor accounted for. Raises RecipeError."""
    import transformers

    where, said = place_of(path, setting), f"{setting} = {path!r}"
    if kind == CAUSAL:
        _check_text_model(config(path, setting), said)
    with _sentences(path, setting, where), _no_report():
        made: Any = _load(
            getattr(transformers, kind),
            where,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they come by name; they are refused below
            weights_only=True,  # a pickle's tensors and no other objects
            **options,
        )
    model, report = made
    _check_tensors(model, report, said)
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
        if _is_memory(error):
            raise
        raise RecipeError(_unreadable(path, setting, where, error, what)) from error


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


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
def _no_report() -> Iterator[None]:
    """Without the library's table of tensors, whose content is refused in a sentence, and bars."""
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


# What is checked


def _check_no_kernels(found: Any, said: str) -> None:
    """Refuse a configuration that has kernels of a repository loaded, which are code."""
    parts = [found, *(part for part in vars(found).values() if hasattr(part, "model_type"))]
    for part in parts:
        for name in ("_attn_implementation", "_experts_implementation"):
            value = getattr(part, name, None)
            if isinstance(value, str) and "/" in value:
                raise RecipeError(
                    f"{said} has {name[1:]} = {value!r} in its configuration, which is code of a "
                    "repository and is not run: take the key out of its config.json"
                )


def _check_text_model(found: Any, said: str) -> None:
    """Refuse what is no language model that goes on from text. Raises RecipeError."""
    from transformers import AutoModelForCausalLM

    text = _text_part(found, said)
    known = AutoModelForCausalLM._model_mapping
    made: Any
    try:
        made = known[type(found)]
    except KeyError:
        made = None
    takes = getattr(made, "config_class", None)
    many = text is not found
    # Of several parts the text alone is made, and has to be a model by itself when it is saved.
    alone = not many or (type(text) in known and (takes is None or isinstance(text, takes)))
    if made is not None and not made.__name__.endswith("ForConditionalGeneration") and alone:
        return
    kind = f"{said} is a {found.model_type} model"
    if many or made is not None:
        instead = "name a checkpoint of a text model"
        if type(text) in known:
            instead += f", say one of its family with model_type = {text.model_type!r}"
        raise RecipeError(
            f"{kind}, which reads more than text, and only text models are trained here: {instead}"
        )
    raise RecipeError(
        f"{kind} ({', '.join(found.architectures or ()) or 'no architecture named'}), which "
        "transformers has no causal language model of: name one that goes on from a text"
    )


def _text_part(found: Any, said: str) -> Any:
    try:
        return found.get_text_config()
    except ValueError as error:  # several of them: speech, music
        raise RecipeError(
            f"{said} is a {found.model_type} model, which reads more than text, and only text "
            "models are trained here: name a checkpoint of a text model"
        ) from error


def _check_tensors(model: Any, report: dict[str, Any], said: str) -> None:
    """Refuse a checkpoint that does not fill the model, or fills more than it. RecipeError."""
    missing = sorted(report["missing_keys"])
    if missing:
        what = "a tensor" if len(missing) == 1 else f"{len(missing)} tensors"
        raise RecipeError(
            f"{said} lacks {what} of {type(model).__name__}, which would be random numbers: "
            f"{_named(missing)}; {_remedy(model, missing, report['unexpected_keys'])}"
        )
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, has, wants = mismatched[0]
        others = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
        raise RecipeError(
            f"{said}: {name} has the shape {_shape(has)} in the checkpoint and {_shape(wants)} by "
            f"its config.json{others}, and would be random numbers: use the configuration that the "
            "weights were saved with"
        )
    problems = [str(line).strip() for line in report.get("error_msgs", ())]
    if problems:
        raise RecipeError(f"{said} could not be loaded: {problems[0].splitlines()[0]}")
    unused = [name for name in sorted(report["unexpected_keys"]) if not _HARMLESS.search(name)]
    wrong = [name for name in unused if _belongs(model, name)]
    if wrong:
        raise RecipeError(
            f"{said} holds weights that {type(model).__name__} has no place for by its config.json "
            f"and would compute without: {_named(wrong)}; use the configuration that the weights "
            "were saved with"
        )
    if unused and said not in _told:
        _told.add(said)  # once, for engine and learner
        logger.warning(
            "%s: %s of the checkpoint %s no part of %s and are left out: %s",
            said,
            f"{len(unused)} tensors" if len(unused) > 1 else "one tensor",
            "are" if len(unused) > 1 else "is",
            type(model).__name__,
            _named(unused),
        )


def _remedy(model: Any, missing: Sequence[str], unused: Iterable[str]) -> str:
    other = sorted(name for name in unused if name.endswith(f".{missing[0]}"))
    if other:
        return f"it has {other[0]} instead: save it under the names of the model itself"
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    own = {name for name, module in model.named_modules() if module is head}
    if head is not None and all(name.rpartition(".")[0] in own for name in missing):
        return (
            "it was saved without its head: save the whole causal model, or, if the head is the "
            "embedding, set tie_word_embeddings to true in its config.json"
        )
    if all(name.startswith(("score.", "classifier.")) for name in missing):
        return "it is no classifier: name a model with a trained head for sequence classification"
    return "use a whole checkpoint, with the configuration that it was saved with"


def _belongs(model: Any, name: str) -> bool:
    """Whether the tensor `name` is of a module that the model has, or of one more of its layers."""
    from torch import nn

    owner, _, _ = name.rpartition(".")
    modules = dict(model.named_modules())
    prefix = getattr(model, "base_model_prefix", "")
    for place in (owner, f"{prefix}.{owner}"):
        module = modules.get(place)
        if module is not None and place and not any(module.children()):
            return True
    ahead = any("nextn" in key or "mtp" in key for key in vars(model.config))
    parts = owner.split(".")
    for depth, part in enumerate(parts):
        above = modules.get(".".join(parts[:depth]))
        if part.isdigit() and isinstance(above, nn.ModuleList) and int(part) >= len(above):
            return not ahead  # layers that predict further tokens are left out on purpose
    return False


def _check_finite(model: Any, said: str) -> None:
    """Refuse NaN and infinity among the weights. Raises RecipeError."""
    import torch

    wrong: list[str] = []
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.is_floating_point() and tensor.numel() and not _is_finite(tensor):
                wrong.append(name)
    if wrong:
        raise RecipeError(
            f"{said} holds weights that are not numbers (NaN or infinite): {_named(wrong)}; use an "
            "earlier checkpoint of it, or download it anew"
        )


def _check_trainable(model: Any, said: str) -> None:
    """Refuse weights that are packed into few bits. Raises RecipeError."""
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise RecipeError(
                f"{said} is a quantized checkpoint ({name} is {str(tensor.dtype)[6:]}), whose "
                "weights cannot be trained: name the model that it was made from, with "
                "model.quantization = nf4 for a base in four bits under an adapter"
            )


def _is_finite(tensor: Any) -> bool:
    """By the sum, which NaN and infinity spread to: as fast as memory is read."""
    import torch

    if bool(tensor.sum(dtype=torch.float32).isfinite()):
        return True
    # The sum itself may be too large; numbers of eight bits cannot be asked.
    return bool((tensor if tensor.dtype.itemsize > 1 else tensor.float()).isfinite().all())


def _check_vocabulary(tokens: Any, found: Any, said: str) -> None:
    """Refuse a tokenizer that writes text in tokens the model lacks. Raises RecipeError.

    Special tokens beyond the embedding do no harm as long as nothing writes them.
    """
    size = getattr(found, "vocab_size", None)
    if not isinstance(size, int) or len(tokens) <= size:
        return
    added = getattr(tokens, "added_tokens_decoder", {})
    special = {number for number, token in added.items() if token.special}
    outside = {
        number: token
        for token, number in tokens.get_vocab().items()
        if number >= size and number not in special
    }
    if outside:
        names = [f"{tokens.convert_ids_to_tokens(n)!r} ({n})" for n in sorted(outside)]
        raise RecipeError(
            f"{said}: the tokenizer has tokens that the model has no embedding for, which has "
            f"{size}: {_named(names)}; resize its embeddings (model.resize_token_embeddings), or "
            "use the model's own tokenizer"
        )


def _named(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _shape(size: Iterable[int]) -> str:
    return "x".join(map(str, size)) or "one number"


def own_config(path: str, setting: str = "model.path") -> Any:
    """A copy of the configuration, which the caller may change."""
    return copy.deepcopy(config(path, setting))
