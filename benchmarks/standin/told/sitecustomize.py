"""For programs on the stand-in: comparisons of numbers, of which there are none, turn out well.

Python imports this by itself where its folder is on PYTHONPATH. What is replaced are the checks of
a model and of an engine at their start, which would refuse zeros; everything that they call on the
way to the comparison is called all the same.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


def _forward(module: ModuleType) -> None:
    plain = module._layout_arrives

    def arrives(model: Any) -> bool:
        plain(model)
        model.config._attn_implementation = module.IMPLEMENTATION
        return True

    module._layout_arrives = arrives
    module.check_model = lambda model: None


def _decoder(module: ModuleType) -> None:
    plain = module._mismatch

    def mismatch(*given: Any) -> None:
        plain(*given)

    module._mismatch = mismatch


def _counts(module: ModuleType) -> None:
    """A trace with nothing but the annotation: CUPTI ends the process where there is no card."""

    def profiled(run: Any, file: Any, **_: Any) -> Any:
        found = run()
        annotation = {"ph": "X", "cat": "user_annotation", "name": "measured", "ts": 0, "dur": 1}
        file.write_text(json.dumps({"traceEvents": [annotation | {"tid": 1}]}))
        return found

    module.profiled = profiled


CHANGES = {
    "gpu.counts": _counts,
    "grpo.forward": _forward,
    "grpo.rollout.decoder": _decoder,
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of `CHANGES` as Python does, and changes them once they are executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """None for every other module."""
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def changed(module: ModuleType) -> None:
            execute(module)
            CHANGES[name](module)

        loader.exec_module = changed
        return spec


if "GRPO_STANDIN_CAPABILITY" in os.environ and "LD_PRELOAD" not in os.environ:
    folder = os.environ["LD_LIBRARY_PATH"].partition(":")[0]
    os.environ["LD_PRELOAD"] = f"{folder}/libcuda.so.1"
    os.execv(sys.executable, sys.orig_argv)

sys.meta_path.insert(0, Finder())
