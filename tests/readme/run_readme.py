"""Run every ```bash and ```python block of a README, in order, in one scratch folder.

    python tests/readme/run_readme.py README.md

A block under `<!-- not run: reason -->` is skipped, and the reason is printed. The scratch folder
holds links to the checkout's files, so that the commands read as they do for a newcomer and leave
nothing behind. A block that fails ends the run with its output and its line in the README.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<skip>.+?) -->[ \t]*\n(?:[ \t]*\n)?)?"
    r"^```(?P<language>bash|python)[ \t]*\n(?P<code>.*?)^```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
TIMEOUT_S = 900


class Block(NamedTuple):
    line: int
    language: str
    code: str
    skip: str | None


def blocks(text: str) -> list[Block]:
    """The blocks of a README with the line each starts on."""
    return [
        Block(
            line=text.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            code=match["code"],
            skip=match["skip"],
        )
        for match in BLOCK.finditer(text)
    ]


def command(block: Block) -> list[str]:
    """The interpreter for a block; a console prompt at the start of a line is dropped."""
    if block.language == "python":
        return [sys.executable, "-W", "default", "-c", block.code]
    code = re.sub(r"^\$ ", "", block.code, flags=re.MULTILINE)
    return ["bash", "-euo", "pipefail", "-c", code]


def main(readme: Path) -> int:
    """Exit status: 0 when every block ran, 1 when one failed or none was found."""
    root = readme.resolve().parent
    found = blocks(readme.read_text(encoding="utf-8"))
    ran = 0
    bin_dir = str(Path(sys.executable).parent)
    path = f"{bin_dir}{os.pathsep}{os.environ['PATH']}"
    # make finds this environment and does not install a second one
    env = {**os.environ, "PATH": path, "VENV": sys.prefix, "COLUMNS": "100"}
    with tempfile.TemporaryDirectory(prefix="readme-") as scratch:
        for entry in root.iterdir():
            if not entry.name.startswith(".") and entry.name != "runs":
                (Path(scratch) / entry.name).symlink_to(entry)
        for block in found:
            where = f"{readme.name}:{block.line} ({block.language})"
            if block.skip:
                print(f"{where}: not run: {block.skip}", flush=True)
                continue
            print(f"{where}: running", flush=True)
            done = subprocess.run(
                command(block),
                cwd=scratch,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
            if done.returncode:
                print(f"{where}: exit {done.returncode}\n{block.code}", file=sys.stderr)
                print(done.stdout[-4000:] + done.stderr[-4000:], file=sys.stderr)
                return 1
            ran += 1
    print(f"{ran} of {len(found)} blocks ran")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")))
