"""Files that only this user may read: keys, tokens, logs of servers.

They are not in a folder for all users such as /tmp, where another user could make a file or link
of the same name first.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from grpo.errors import RunError

_LONGEST = 4096  # bytes of a key
_GROUP_AND_OTHERS = 0o077


def folder() -> Path:
    """The folder of this user's private files, in the cache (XDG).

    XDG_RUNTIME_DIR is removed when the user logs out, and a server may outlive that.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")) / "grpo"


def make(path: Path) -> None:
    """Make the folder `path` below `folder()`, mode 0700. Raises RunError where it is not ours."""
    top = folder()
    if not top.is_absolute():
        raise RunError("this user has no home folder; set XDG_CACHE_HOME to a folder of your own")
    try:
        top.parent.mkdir(parents=True, exist_ok=True)
        for each in (top, path):
            each.mkdir(mode=0o700, exist_ok=True)
            found = os.lstat(each)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise RunError(
                    f"{each} is not a folder of your own; remove it, or set XDG_CACHE_HOME"
                )
            each.chmod(0o700)
    except OSError as error:
        raise RunError(
            f"the folder {path} cannot be made ({error.strerror}); set XDG_CACHE_HOME to a folder "
            "that you may write"
        ) from error


def create(path: Path) -> int:
    """A descriptor of the new file `path`, mode 0600, in place of any file or link of that name."""
    path.unlink(missing_ok=True)
    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def lock(path: Path) -> int | None:
    """A descriptor that holds the lock file `path`; None if another process holds it.

    The lock ends with its process, however that ends. On a file system without locks everybody
    gets a descriptor.
    """
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass
    return descriptor


def read_key(path: str | Path) -> str:
    """The key in a file that nobody else may read. Raises RunError, FileNotFoundError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"the key file {path} cannot be read: {error.strerror}") from error
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise RunError(f"the key file {path} is not a file of your own")
        if found.st_mode & _GROUP_AND_OTHERS:
            raise RunError(f"others may read the key file {path}; first: chmod 600 {path}")
        return file.read(_LONGEST).decode(errors="replace").strip()
