"""Which configurations and tokenizers belong to models that can be trained here: text models."""

from __future__ import annotations

from typing import Any

from grpo.errors import RecipeError
from grpo.model.tensors import named


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
