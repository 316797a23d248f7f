"""The folder of a model, looked at from outside: what it is, and whether its files are whole."""

from __future__ import annotations

import json
from pathlib import Path

from grpo.errors import RecipeError

# In the order in which transformers takes them.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WHOLE_NUMBERS = ("I8", "U8", "I16", "I32", "I64")
_CONFIG, _ADAPTER = "config.json", "adapter_config.json"


def check_folder(place: Path, said: str) -> Path:
    """`place` itself, if it is the folder of a model. Raises RecipeError, beginning with `said`."""
    if place.is_file():
        if place.suffix == ".gguf":
            raise RecipeError(f"{said} {_GGUF}")
        inside = (place.parent / _CONFIG).is_file()
        hint = f"; did you mean {str(place.parent)!r}?" if inside else ""
        raise RecipeError(f"{said} is a file, and a model is a folder{hint}")
    if (place / _ADAPTER).is_file():
        raise RecipeError(f"{said} {_adapter(place)}")
    if (place / _CONFIG).is_file():
        return place
    try:
        entries = list(place.iterdir())
    except OSError as error:
        raise RecipeError(f"{said} cannot be read: {error.strerror}") from error
    if not entries:
        raise RecipeError(f"{said} is an empty folder")
    inside = models_in(place)
    if inside:
        shown = " or ".join(repr(str(found)) for found in inside[:2])
        raise RecipeError(f"{said} is a folder without {_CONFIG}; did you mean {shown}?")
    if any(entry.suffix == ".gguf" for entry in entries):
        raise RecipeError(f"{said} {_GGUF}")
    raise RecipeError(f"{said} is a folder without {_CONFIG}, so it holds no model")


def models_in(place: Path) -> list[Path]:
    """Folders of models inside `place`: first what runs leave as `model`, the newest first."""
    found: dict[Path, tuple[bool, float]] = {}
    for pattern in ("*", "*/*", "*/*/*"):
        for file in place.glob(f"{pattern}/{_CONFIG}"):
            found[file.parent] = (file.parent.name == "model", file.stat().st_mtime)
    return sorted(found, key=lambda folder: found[folder], reverse=True)


def check_files(folder: Path, said: str, packed: bool = False) -> None:
    """Every file of weights that transformers will read is there and whole. Raises RecipeError.

    packed: whether the configuration says how weights in few bits are to be read.
    """
    first = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        have = sorted(file.name for file in folder.iterdir() if file.suffix in (".pt", ".pth"))
        other = f" ({have[0]} is none that transformers reads)" if have else ""
        raise RecipeError(
            f"{said} has a {_CONFIG} and no weights{other}: there should be model.safetensors"
        )
    for name in _shards(folder, first, said):
        file = folder / name
        if not file.is_file():
            raise RecipeError(f"{said}: {first} names {name}, which is not there")
        if file.suffix == ".safetensors":
            _check_safetensors(file, said, packed)


def _shards(folder: Path, first: str, said: str) -> list[str]:
    if not first.endswith(".index.json"):
        return [first]
    try:
        index = json.loads((folder / first).read_text(encoding="utf-8"))
        return sorted(set(map(str, index["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{said}: {first} is no index of weights: {error}") from error


def _check_safetensors(file: Path, said: str, packed: bool) -> None:
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as opened:
        if opened.read(11) == b"version htt":
            raise RecipeError(
                f"{said}: {file.name} is a pointer of Git LFS, not the weights: fetch them with "
                "`git lfs pull`"
            )
    try:
        with safe_open(file, framework="np") as opened:
            names = list(opened.keys())
            types = {name: opened.get_slice(name).get_dtype() for name in names}
    except SafetensorError as error:
        raise RecipeError(
            f"{said}: {file.name} is cut short or damaged ({error}); copy or download it anew"
        ) from error
    for name, kind in types.items():
        if not packed and name.endswith(".weight") and kind in _WHOLE_NUMBERS:
            raise RecipeError(
                f"{said}: {name} holds whole numbers ({kind}), and config.json has no "
                "quantization_config that says what they stand for; name the model that it was "
                "made from"
            )


_GGUF = (
    "holds weights in the GGUF format, which is for inference: name the folder or hub id of the "
    "model that it was made from"
)


def _adapter(place: Path) -> str:
    """What to do about a folder that peft wrote."""
    try:
        settings = json.loads((place / _ADAPTER).read_text(encoding="utf-8"))
        base = settings.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    of = f" of {base!r}" if base else ""
    if (place.parent / _CONFIG).is_file():
        return f"is an adapter{of}, no model; {str(place.parent)!r} beside it has it merged in"
    return (
        f"is an adapter{of}, no model: merge it (PeftModel.from_pretrained(base, adapter)"
        ".merge_and_unload().save_pretrained(folder), and the tokenizer beside it) and name that "
        "folder"
    )
