"""What is said of one field of TRL's `GRPOConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["honored", "ignored", "refused"]
Kind = Literal["whole number", "number", "true or false", "text", "mapping", "list", "value"]

INT: Kind = "whole number"
NUMBER: Kind = "number"
BOOL: Kind = "true or false"
TEXT: Kind = "text"
DICT: Kind = "mapping"
LIST: Kind = "list"
ANY: Kind = "value"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field.

    default  TRL's, None included
    kind     what a value may be; None is one where it is the default
    fate     honored: it sets `setting`. ignored: it changes no number, and a value that is not the
             default is named in a note. refused: any such value is an error, but those in `same`
    setting  honored: the recipe's settings that it decides
    copied   honored: whether the value goes to `setting` as it is
    why      honored: how it is converted; ignored: why it changes nothing; refused: what to do
    same     refused: values that mean the default
    """

    default: Any
    kind: Kind
    fate: Fate
    why: str = ""
    setting: str = ""
    copied: bool = False
    same: tuple[Any, ...] = ()


def copied(default: Any, kind: Kind, setting: str, why: str = "") -> Field:
    """A field whose value is a setting's value."""
    return Field(default=default, kind=kind, fate="honored", setting=setting, copied=True, why=why)


def honored(default: Any, kind: Kind, setting: str, why: str) -> Field:
    """A field that `convert` turns into settings."""
    return Field(default=default, kind=kind, fate="honored", setting=setting, why=why)


def ignored(default: Any, kind: Kind, why: str) -> Field:
    """A field that changes no number of a run here."""
    return Field(default=default, kind=kind, fate="ignored", why=why)


def refused(default: Any, kind: Kind, why: str, same: tuple[Any, ...] = ()) -> Field:
    """A field that has to be left at its default."""
    return Field(default=default, kind=kind, fate="refused", why=why, same=same)
