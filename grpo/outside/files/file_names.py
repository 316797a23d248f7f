"""Names from outside that become files: one word, in the folder that it is meant for."""

from __future__ import annotations

import os
import re
from pathlib import Path

from grpo.errors import RecipeError

LONGEST = 100  # bytes; file systems take 255, and suffixes follow
# Letters of any script; no separator, nothing hidden, no option of a command.
_NAME = re.compile(r"[^\W_][\w.+@=-]*")


def check_file_name(name: str, what: str) -> str:
    """`name` itself, if it can be a file's name; `what` says of what. Raises RecipeError."""
    if not _NAME.fullmatch(name) or name.isspace():
        raise RecipeError(
            f"{what} {name!r} becomes the name of a file, so it begins with a letter or digit and "
            "goes on with letters, digits and . _ - + @ ="
        )
    if len(os.fsencode(name)) > LONGEST:
        raise RecipeError(
            f"{what} {name[:40]!r}… becomes the name of a file and has more than {LONGEST} bytes"
        )
    return name


def folder_name(path: str) -> str:
    """A file's name for what a path leads to: NAME of `…/NAME/model`, else its last part."""
    place = Path(path)
    if place.name in ("", ".."):
        place = place.resolve()
    name = place.parent.name if place.name == "model" and place.parent.name else place.name
    return name if name not in ("", "..") else "model"
