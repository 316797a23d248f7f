"""Whether a model can be trained here: a text model, with every tensor it needs, all finite.

transformers fills what the checkpoint lacks with random numbers and leaves out what the model has
no place for, with a line in its log. Here both are refused with a sentence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from grpo.errors import RecipeError

logger = logging.getLogger(__name__)

_SHOWN = 3  # tensors that a message names
# Scales of an 8-bit KV cache, which some servers write beside the weights.
_HARMLESS = re.compile(r"(^|\.)(k|v|q|kv|prob)_scale$")
_told: set[str] = set()


def check_tensors(model: Any, report: dict[str, Any], said: str) -> None:
    """Refuse a checkpoint with too few or too many tensors for the model. Raises RecipeError."""
    missing = sorted(report["missing_keys"])
    if missing:
        what = "a tensor" if len(missing) == 1 else f"{len(missing)} tensors"
        raise RecipeError(
            f"{said} lacks {what} of {type(model).__name__}, which would be random numbers: "
            f"{named(missing)}; {_remedy(model, missing, report['unexpected_keys'])}"
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
            f"and would compute without: {named(wrong)}; use the configuration that the weights "
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
            named(unused),
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
    """Whether the tensor `name` belongs to a module of the model, or to a layer beyond its last."""
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


def _shape(size: Iterable[int]) -> str:
    return "x".join(map(str, size)) or "one number"


def check_finite(model: Any, said: str) -> None:
    """Refuse NaN and infinity among the weights. Raises RecipeError."""
    import torch

    wrong: list[str] = []
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.is_floating_point() and tensor.numel() and not _is_finite(tensor):
                wrong.append(name)
    if wrong:
        raise RecipeError(
            f"{said} holds weights that are not numbers (NaN or infinite): {named(wrong)}; use an "
            "earlier checkpoint of it, or download it anew"
        )


def _is_finite(tensor: Any) -> bool:
    """By the sum, which is NaN or infinite if any number is: as fast as memory is read."""
    import torch

    if bool(tensor.sum(dtype=torch.float32).isfinite()):
        return True
    # The sum itself may overflow. Types of eight bits have no isfinite.
    return bool((tensor if tensor.dtype.itemsize > 1 else tensor.float()).isfinite().all())


def check_trainable(model: Any, said: str) -> None:
    """Refuse weights that are packed into few bits. Raises RecipeError."""
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise RecipeError(
                f"{said} is a quantized checkpoint ({name} is {str(tensor.dtype)[6:]}), whose "
                "weights cannot be trained: name the model that it was made from, with "
                "model.quantization = nf4 for a base in four bits under an adapter"
            )


def named(names: Iterable[str]) -> str:
    """The first few of many names, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def check_no_kernels(found: Any, said: str) -> None:
    """Refuse a configuration that names kernels of a repository: loading them would run code."""
    parts = [found, *(part for part in vars(found).values() if hasattr(part, "model_type"))]
    for part in parts:
        for name in ("_attn_implementation", "_experts_implementation"):
            value = getattr(part, name, None)
            if isinstance(value, str) and "/" in value:
                raise RecipeError(
                    f"{said} has {name[1:]} = {value!r} in its configuration, which is code of a "
                    "repository and is not run: take the key out of its config.json"
                )


def check_text_model(found: Any, said: str) -> None:
    """Refuse a model that does not continue text. Raises RecipeError."""
    from transformers import AutoModelForCausalLM

    text = text_part(found, said)
    known = AutoModelForCausalLM._model_mapping
    made: Any = known.get(type(found), None)
    takes = getattr(made, "config_class", None)
    many = text is not found
    # Of a model of several parts only the text model is made, which has to work when saved alone.
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


def text_part(found: Any, said: str) -> Any:
    """The part of a configuration that describes the language model. Raises RecipeError."""
    try:
        return found.get_text_config()
    except ValueError as error:  # several of them: speech, music
        raise RecipeError(
            f"{said} is a {found.model_type} model, which reads more than text, and only text "
            "models are trained here: name a checkpoint of a text model"
        ) from error


def check_vocabulary(tokens: Any, found: Any, said: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for. Raises RecipeError.

    Special tokens are exempt: they do no harm as long as no prompt uses them.
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
            f"{size}: {named(names)}; resize its embeddings (model.resize_token_embeddings), or "
            "use the model's own tokenizer"
        )
