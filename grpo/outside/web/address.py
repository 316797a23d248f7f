"""The address of a server, the key it wants, and the way there.

A key is never part of a URL, since URLs are written into the records of a run. It comes from an
environment variable or from a file that only the user may read.

`https` uses the proxy that HTTPS_PROXY or ALL_PROXY names, unless NO_PROXY excludes the host; the
key stays inside TLS. Plain `http` goes straight to its server, whatever HTTP_PROXY says: a proxy
would read the key. So does everything on this machine, whose loopback addresses no proxy reaches.
"""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.request
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import SplitResult, urlsplit

from grpo.errors import RecipeError, RunError
from grpo.outside.web import private

USUAL_KEY = "OPENAI_API_KEY"
_PRINTABLE = re.compile(r"[\x21-\x7e]*")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server, checked.

    url       with the prefix of its routes, say http://127.0.0.1:8000/v1
    key       sent as a bearer token; "" for none
    key_file  a file with the key, read for each call: a server that restarts has a new key
    setting   the setting in which the user wrote the URL

    Raises RecipeError if the URL is not an address, or has a password in it.
    """

    url: str
    key: str = field(default="", repr=False)
    key_file: str = ""
    setting: str = "rollout.engine_args.url"

    def __post_init__(self) -> None:
        shown = re.sub(r"//.*@", "//***@", self.url, flags=re.S)
        try:
            parts = self.parts
            valid = parts.scheme in _PORTS and parts.hostname and parts.port != 0
        except ValueError:  # brackets, or a port that is no number
            parts, valid = None, False
        if parts is not None and "@" in parts.netloc:
            raise RecipeError(
                f"{self.setting} = {shown!r} has a name or a password in it, which would be "
                "kept in the run's records; leave them out, and name a key by api_key_env"
            )
        if not valid or not _PRINTABLE.fullmatch(self.url):
            raise RecipeError(
                f"{self.setting} = {shown!r} is not an address like http://127.0.0.1:8000"
            )
        if parts is not None and (parts.query or parts.fragment):
            raise RecipeError(
                f"{self.setting} = {shown!r} has a query or a fragment in it: routes are added "
                "behind the address, so it ends with its path, say /v1"
            )

    @cached_property
    def parts(self) -> SplitResult:
        """The URL taken apart."""
        return urlsplit(self.url.rstrip("/"))

    @property
    def host(self) -> str:
        """Name or number of the machine, without brackets."""
        return self.parts.hostname or ""

    @property
    def port(self) -> int:
        """The port, said or usual."""
        return self.parts.port or _PORTS[self.parts.scheme]

    @cached_property
    def is_loopback(self) -> bool:
        """Whether it is a loopback address, which is always this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def called(self) -> str:
        """The host to connect to.

        "localhost" may mean ::1, where another user could wait for the token of our own server,
        which is at 127.0.0.1.
        """
        return "127.0.0.1" if self.key_file and self.host == "localhost" else self.host

    def bearer(self) -> str:
        """The key of the next call. Raises RunError, FileNotFoundError for a key file."""
        key = private.read_key(self.key_file) if self.key_file else self.key
        if not _PRINTABLE.fullmatch(key):
            raise RunError(f"{self.key_file or self.setting} holds something else than one key")
        return key

    def proxy(self) -> str:
        """The proxy's address, "" for none."""
        if self.parts.scheme != "https" or self.is_loopback:
            return ""
        if urllib.request.proxy_bypass(self.host):
            return ""
        found = urllib.request.getproxies()
        return found.get("https") or found.get("all") or ""


def key_from(variable: str, setting: str) -> str:
    """The key in the environment variable `variable`, "" for none.

    The usual variable may be unset, since a user's own server needs no key. Raises RecipeError if
    any other variable is: whoever names one wants its key sent.
    """
    key = os.environ.get(variable, "").strip()
    if variable and variable != USUAL_KEY and not key:
        raise RecipeError(
            f"{setting} = {variable!r}: that environment variable is empty or not set; export it, "
            f"or leave {setting} out where no key is wanted"
        )
    if not _PRINTABLE.fullmatch(key):
        raise RecipeError(
            f"the key in the environment variable {variable} has a character in it that no key "
            "has, a space or a line break say; export it again"
        )
    return key


def checked_file(path: str, setting: str) -> str:
    """`path` made absolute, if the file holds a key. Raises RecipeError if it does not."""
    whole = os.path.abspath(os.path.expanduser(path))
    try:
        key = private.read_key(whole)
    except FileNotFoundError as error:
        raise RecipeError(
            f"{setting} = {path!r}: there is no such file; `grpo serve` writes its own at its "
            "start and removes it at its end"
        ) from error
    except RunError as error:
        raise RecipeError(f"{setting}: {error}") from error
    if not key or not _PRINTABLE.fullmatch(key):
        raise RecipeError(f"{setting} = {path!r}: the file does not hold a key and nothing else")
    return whole
