"""Names from outside that become file names: one word, which cannot lead to another folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from grpo.errors import RecipeError

LONGEST = 100  # bytes; file systems take 255, and suffixes follow
# Letters of any script; no separator, nothing hidden, no option of a command.
_NAME = re.compile(r"[^\W_][\w.+@=-]*")


def check_file_name(name: str, what: str) -> str:
    """`name`, if it can be a file's name; `what` names it in the RecipeError otherwise."""
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
    """A file name for a model's path: NAME for `…/NAME/model`, else the path's last part."""
    place = Path(path)
    if place.name in ("", ".."):
        place = place.resolve()
    name = place.parent.name if place.name == "model" and place.parent.name else place.name
    return name if name not in ("", "..") else "model"
