"""A command of `grpo` from nothing to its end, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from perf.worker import Settings, serve

MAIN = "import sys; from grpo.cli import main; sys.exit(main())"


def prepare(settings: Settings) -> Any:
    """A repetition starts the command with the code of the folder `tree`, and waits for its end."""
    command = [sys.executable, "-c", MAIN, *settings["arguments"]]
    environment = {**os.environ, "PYTHONPATH": settings["tree"]}

    def repetition() -> dict[str, Any]:
        started = time.perf_counter()
        subprocess.run(
            command,
            cwd=settings["tree"],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return {"seconds": time.perf_counter() - started}

    return repetition


if __name__ == "__main__":
    serve(prepare)
