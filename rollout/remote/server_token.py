"""Where `grpo serve` keeps the token of a server, and where a learner beside it looks for it."""

from __future__ import annotations

import os
import re
import secrets
import socket
from pathlib import Path

from grpo.outside.web import private
from grpo.outside.web.address import Address

TOKEN_BYTES = 32
_LOOPBACK = "127.0.0.1"


def folder_of(address: Address) -> Path:
    """The folder of the server at `address`: of this user, this machine, this host and port.

    The machine is part of it as home folders are often shared by many.
    """
    host = _LOOPBACK if address.is_loopback else address.host
    name = re.sub(r"[^0-9A-Za-z.-]", "_", f"serve-{socket.gethostname()}-{host}-{address.port}")
    return private.folder() / name


def token_of(address: Address) -> Path:
    """The file with the token of the server at `address`."""
    return folder_of(address) / "token"


def write_token(address: Address) -> Path:
    """A new token for the server at `address`, in its file. Raises RunError."""
    path = token_of(address)
    private.make(path.parent)
    aside = path.with_name("token.new")
    with open(private.create(aside), "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(TOKEN_BYTES))
    os.replace(aside, path)  # a learner that reads it meanwhile gets the old one whole
    return path


def found_token(address: Address) -> str:
    """The file with the token of a server that this user started here, "" where there is none.

    Only for loopback addresses: a name may lead to another machine tomorrow, and the token with it.
    """
    path = token_of(address)
    return str(path) if address.is_loopback and os.path.isfile(path) else ""
