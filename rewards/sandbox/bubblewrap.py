"""The zygote under bubblewrap (bwrap): a root that holds what it needs to read and nothing else."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.errors import RewardError
from grpo.rewards.sandbox import readable

SCRATCH = "/.scratch"  # where libraries may write while the zygote loads them (Matplotlib must)


def command(shown: Sequence[str]) -> list[str]:
    """The command prefix that runs the zygote under bubblewrap. Raises RewardError without it.

    shown: what there is to read inside, for the zygote as for guests.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise RewardError("bubblewrap (bwrap) is not installed")
    binds: list[str] = []
    links, files = _interpreter()
    for path in readable.cover([*shown, *files]):
        binds += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    shown_folders = tuple(place + "/" for place in binds[2::3])
    links = [link for link in links if not (link[1] + "/").startswith(shown_folders)]
    # bwrap would make the folders on the way there unreadable for the guests' user
    places = [*binds[2::3], *(path for _, path in links)]
    ways = {str(parent) for place in places for parent in Path(place).parents} - {"/"}
    folders = [word for way in sorted(ways) for word in ("--perms", "0755", "--dir", way)]
    made = [word for target, path in links for word in ("--symlink", target, path)]
    # Root keeps its user namespace, and just the rights it needs to become nobody later.
    apart = ["--unshare-all"]
    if os.geteuid() == 0:
        apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        for right in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"):
            apart += ["--cap-add", right]
    # The zygote has no /proc to write this to (`linux.die_first`). What bwrap made itself, the
    # root and folders in it, belongs to the guests' user and would be theirs to fill.
    first = ["/bin/sh", "-c", 'echo 1000 2>&- >/proc/self/oom_score_adj; exec "$@"', "sh"]
    last = ["--perms", "0700", "--tmpfs", SCRATCH, "--setenv", "TMPDIR", SCRATCH]
    last += ["--remount-ro", "/", "--chdir", "/", "--"]
    return [*first, program, *apart, "--die-with-parent", *folders, *binds, *made, *last]


def _interpreter() -> tuple[list[tuple[str, str]], list[str]]:
    """What it takes to start this Python where nothing else is: links (target, path), and files.

    Not the folders they lie in: whoever keeps secrets beside an interpreter keeps them.
    """
    program = os.path.abspath(sys.executable)
    links: list[tuple[str, str]] = []
    while os.path.islink(program) and len(links) < 40:
        target = os.readlink(program)
        links.append((target, program))
        program = os.path.join(os.path.dirname(program), target)
    return links, [os.path.join(sys.prefix, "pyvenv.cfg"), program]


def close_scratch() -> None:
    """Empty it and close it for good: guests may be its owner, but cannot change its mode."""
    for entry in os.scandir(SCRATCH):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    os.chmod(SCRATCH, 0o500)
    del os.environ["TMPDIR"]
