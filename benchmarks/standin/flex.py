"""Can FlexAttention be compiled, forward and backward, for cards that are not here?

    python benchmarks/standin/flex.py --python PYTHON [--capabilities 80 90]

PYTHON is an interpreter with a CUDA build of torch (`build.py`). Every case is compiled by Triton
down to the card's machine code, and the shared memory that a kernel asks for is compared with what
the card has. Nothing is computed. Written to benchmarks/results/standin.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "standin.json"
# (head size, type, heads of queries and of keys)
CASES = [
    *((size, "bfloat16", (9, 3)) for size in (16, 64, 80, 128)),
    *((size, "float32", (9, 3)) for size in (64, 128)),
    (64, "float16", (9, 3)),
    *((64, "bfloat16", heads) for heads in ((4, 4), (16, 2))),
]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, help="an interpreter with torch for CUDA")
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(compiled()))
        return
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from build import environment
    from record import merge, origin, versions

    started = time.time()
    found: dict[str, Any] = {}
    for capability in arguments.capabilities:
        done = subprocess.run(
            [arguments.python, __file__, "--python", "", "--inside"],
            env={**environment(arguments.python, capability), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[str(capability)] = json.loads(done.stdout.splitlines()[-1])
        failed = {case: said for case, said in found[str(capability)].items() if said != "compiled"}
        count = len(found[str(capability)])
        print(
            f"sm_{capability}: {count - len(failed)} of {count} compiled", failed or "", flush=True
        )
    packages = versions(("torch", "triton"), arguments.python)
    said = "python benchmarks/standin/flex.py --python PYTHON"
    merge(RESULTS, "flex", {"capabilities": found}, origin(said, time.time() - started, packages))


def compiled() -> dict[str, str]:
    """{case: "compiled", or why not}; runs on the stand-in."""
    import torch
    import torch._inductor.config

    from grpo.attention.flex import attend_in_blocks, make_blocks
    from grpo.attention.layout import Pack

    torch._inductor.config.force_disable_caches = True
    device = torch.device("cuda")
    packs = (Pack(start=0, prompt=400, completions=((400, 192), (592, 192))),)
    found: dict[str, str] = {}
    for D, dtype, (H, K) in CASES:
        torch._dynamo.reset()
        tensors = [
            torch.empty((1, n, 784, D), device=device, dtype=getattr(torch, dtype))
            for n in (H, K, K)
        ]
        leaves = [tensor.requires_grad_() for tensor in tensors]
        name = f"{dtype}, {H} heads of {D} on {K}"
        try:
            attend_in_blocks(*leaves, make_blocks(packs, device), 0.1).sum().backward()
            found[name] = "compiled"
        except Exception as error:  # whatever the compiler raises is the answer
            found[name] = str(error.__cause__ or error).strip().partition("\n")[0][:300]
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
