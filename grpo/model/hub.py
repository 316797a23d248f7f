"""The Hugging Face hub: asked once and briefly, before a library asks it file by file.

Libraries ask for each file separately, and ask again for 23 s where there is no answer: a
misspelled path would fail after minutes. Here one question settles where a model or a data set is.
With its answer, a commit, libraries use their cache without asking again.
"""

from __future__ import annotations

import difflib
import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
# This also limits the lookup of the host's name. HF_HUB_ETAG_TIMEOUT sets another number.
SECONDS = 5.0
_SHOWN = 2  # names that a message offers


@dataclass(frozen=True, kw_only=True)
class Repo:
    """Where a library is to look: a hub id at a commit, or without the hub what the cache holds."""

    path: str  # hub id, or the folder in the cache
    revision: str | None = None  # commit; None: the cache's
    unreachable: str = ""  # why the hub was not asked, or did not answer


_found: dict[tuple[str, str, str | None], Repo] = {}
_refused: dict[tuple[str, str, str | None], str] = {}


def find_repo(name: str, kind: Kind, revision: str | None = None) -> Repo:
    """The repository `name`, by one question of at most `SECONDS` seconds in a process.

    Without an answer, what the local cache holds. Raises LookupError, whose text continues "there
    is no such folder, ": what the cache holds, and what the hub answered.
    """
    key = (name, kind, revision)
    if key in _refused:
        raise LookupError(_refused[key])
    if key not in _found:
        try:
            _found[key] = _find(name, kind, revision)
        except LookupError as error:
            _refused[key] = str(error)
            raise
    return _found[key]


def _find(name: str, kind: Kind, revision: str | None) -> Repo:
    # seconds to import, and local folders do not need it
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = "data set" if kind == "dataset" else kind
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    else:
        answer = _asked(name, kind, revision)
        if isinstance(answer, str):
            return Repo(path=name, revision=answer)
        if isinstance(answer, HFValidationError):
            raise LookupError("and no id of the hub looks like that")
        if isinstance(answer, GatedRepoError):
            raise LookupError(
                f"and the {what} of this name on the hub is gated: accept its terms at "
                f"{constants.ENDPOINT}/{name} and log in with `hf auth login`"
            )
        status = getattr(getattr(answer, "response", None), "status_code", None)
        if isinstance(answer, RevisionNotFoundError):
            raise LookupError(f"and the {what} of this name on the hub has no revision {revision}")
        if isinstance(answer, RepositoryNotFoundError) or status in (401, 404):
            raise LookupError(
                f"and the hub has no {what} of this name (or a private one: log in with "
                "`hf auth login`)"
            )
        if isinstance(answer, HfHubHTTPError) and status is not None and status < 500:
            raise LookupError(f"and the hub refuses the request with status {status}")
        host = constants.ENDPOINT.partition("://")[2] or constants.ENDPOINT
        why = str(answer).strip().partition("\n")[0] or type(answer).__name__
        said = why if status is None else f"status {status}"
        reason = f"the hub at {host} could not be reached ({said})"
    cached = _cached(name, kind, revision)
    if cached is None:
        raise LookupError(f"no copy of that name in the local cache, and {reason}")
    logger.warning("%s: %s, so the copy in the local cache is used", name, reason)
    return Repo(path=cached, unreachable=reason)


def _asked(name: str, kind: Kind, revision: str | None) -> str | Exception:
    """The commit of a repository, or what kept the hub from saying it."""
    from huggingface_hub import HfApi

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or SECONDS)
    answers: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found: Any = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=seconds)
            answers.put(str(found.sha))
        except Exception as error:  # whatever the network and its libraries raise
            answers.put(error)

    # A thread: no timeout of a request covers the resolving of its host's name.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return TimeoutError(f"no answer within {seconds:g} s")


def _cached(name: str, kind: Kind, revision: str | None) -> str | None:
    """The folder of a model in the cache; of a data set its id, for `offline` to find it by."""
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache
    from huggingface_hub.errors import CacheNotFound, HFValidationError

    if kind == "model":
        try:
            found = try_to_load_from_cache(name, "config.json", revision=revision)
        except HFValidationError:
            return None
        return str(Path(found).parent) if isinstance(found, str) else None
    from datasets import config

    prepared = Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if prepared.is_dir():
        return name
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return None
    return name if any(r.repo_id == name and r.repo_type == kind for r in repos) else None


def without_scripts() -> dict[str, bool]:
    """What `datasets.load_dataset` is told so that no script of a data set runs.

    Versions before 4 run them, and ask on standard input; later ones know no such option.
    """
    import datasets

    settings = getattr(datasets, "config", None)
    asks = hasattr(settings, "HF_DATASETS_TRUST_REMOTE_CODE")
    return {"trust_remote_code": False} if asks else {}


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Within it (where wanted) Hugging Face's libraries take what their caches hold."""
    if not wanted:
        yield
        return
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def near(path: str) -> str:
    """' Did you mean …?' with folders beside `path` that are spelled much like it; or ''."""
    place = Path(path)
    try:
        beside = [entry.name for entry in place.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(place.name, beside, n=_SHOWN, cutoff=0.6)
    shown = " or ".join(repr(str(place.parent / name)) for name in close)
    return f" Did you mean {shown}?" if close else ""
