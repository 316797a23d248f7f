"""What a learner's step and a decoded token ask of a card that is not here.

    python benchmarks/standin/count.py --python PYTHON

PYTHON is an interpreter with a CUDA build of torch (`build.py`), pytest and transformers. The same
steps and tokens as in tests/device, which counts on `meta`: here it is the calls of PyTorch's CUDA
build to the runtime, of kernels too. Nothing is computed. Written to
benchmarks/results/standin.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "standin.json"
KINDS = ("launches", "waits", "blocking_copies", "copies", "to_host", "within")  # as in runtime.c


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, help="an interpreter with torch for CUDA")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps({"learner": learner(), "engine": engine()}))
        return
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from build import environment
    from record import merge, origin, versions

    started = time.time()
    told = environment(arguments.python)
    done = subprocess.run(
        [arguments.python, __file__, "--python", "", "--inside"],
        env={**told, "PYTHONPATH": f"{HERE / 'told'}:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for of, kinds in found.items():
        for name, calls in kinds.items():
            print(f"{of}, {name}: {calls}")
    packages = versions(("torch", "transformers"), arguments.python)
    said = "python benchmarks/standin/count.py --python PYTHON"
    merge(RESULTS, "counts", found, origin(said, time.time() - started, packages))


def counts() -> dict[str, int]:
    """Calls since the process began."""
    found = (ctypes.c_long * len(KINDS))()
    ctypes.CDLL(None).standin_counts(found)
    return dict(zip(KINDS, found, strict=True))


def since(before: dict[str, int], steps: int = 1) -> dict[str, float]:
    """Calls after `before`, of one step."""
    return {kind: (count - before[kind]) / steps for kind, count in counts().items()}


def learner() -> dict[str, dict[str, float]]:
    """Of the second step, by kind of step; runs on the stand-in."""
    import torch

    from grpo.attention import interface
    from grpo.config.schema import Algorithm
    from grpo.config.schema import Learner as Config
    from grpo.learner.learner import TorchLearner
    from tests.device.card import MODELS, SIZES
    from tests.device.learner_counts import CUT, SCENARIOS, some_rows

    by_flex = interface.uses_flex
    found: dict[str, dict[str, float]] = {}
    for name, scenario in SCENARIOS.items():
        settings = dict(scenario)
        flex = settings.pop("flex", False)
        interface.uses_flex = by_flex if flex else lambda *_: False
        kind, sized = MODELS[settings.pop("model", "llama")]
        with torch.device("cuda"):
            model = kind(sized(**SIZES))
        made = TorchLearner(
            model,
            algorithm=Algorithm(**settings.pop("algorithm", {})),
            config=Config(**{**CUT, **settings.pop("config", {})}),
            **settings,
        )
        rows = some_rows(made.algorithm.loss_type)
        made.step(rows)
        before = counts()
        metrics = made.step(rows)
        found[name] = {"micro_batches": metrics["learner/micro_batches"], **since(before)}
    return found


def engine() -> dict[str, dict[str, float]]:
    """Of a token of all rows, by kind of sampling; runs on the stand-in."""
    from grpo.rollout.embedded import torch_engine
    from tests.device.engine_counts import (
        BLOCK,
        DECODERS,
        KINDS,
        MODELS,
        SCENARIOS,
        slots,
        some_requests,
    )
    from tests.rollout.tiny_models import V0, Letters, tiny

    class Whatever(Letters):
        """Also text of tokens that nobody drew."""

        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            return "a" * len(ids)

    found: dict[str, dict[str, float]] = {}
    for name in SCENARIOS:
        kind = DECODERS.get(name, slots)
        torch_engine.make_decoder = lambda model, ways, kind=kind, **_: kind(model, ways)
        model = tiny(MODELS.get(name, "llama")).bfloat16().to("cuda")
        made = torch_engine.TorchEngine(model, Whatever(), version=V0, max_rows=16)
        made.submit(some_requests(KINDS.get(name, [{}])))
        made.poll(timeout=0)
        before = counts()
        for _ in range(BLOCK):
            made.poll(timeout=0)
        found[name] = since(before, BLOCK)
    return found


if __name__ == "__main__":
    main()
