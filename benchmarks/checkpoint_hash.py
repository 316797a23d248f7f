"""What does hashing cost a checkpoint of the size of SmolLM2-135M's?

    python benchmarks/checkpoint_hash.py [--repeats 7] [--folder runs/checkpoint-hash]

Random weights of its shapes (float32, tied embedding) and AdamW's two moments, 1.6 GB in all, are
saved by `grpo.rundir.checkpoint` as it is, and with the hash of every file left out, in turns.
Written: how long training waits for either, when the checkpoint is whole, and what a check of it
takes, to benchmarks/results/checkpoint_hash.json.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from record import merge, origin, versions
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from grpo.outside.files import hashes, manifest
from grpo.rundir import checkpoint

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "checkpoint_hash.json"
SHAPES: dict[str, Any] = {  # of HuggingFaceTB/SmolLM2-135M
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def saved(
    model: Any, moments: dict[str, torch.Tensor], folder: Path, hashed: bool
) -> tuple[float, float]:
    """Seconds until training goes on, and until the checkpoint is whole; with its hashes or not."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def write(aside: Path) -> None:
        model.save_pretrained(aside)
        save_file(moments, aside / "optimizer.safetensors")

    def none(files: Any) -> list[str]:
        return ["0" * 64 for _ in files]

    made = hashes.hashes_of if hashed else none
    began = time.perf_counter()
    with mock.patch.object(hashes, "hashes_of", made), checkpoint.Saver(folder) as saver:
        saver.save(1, write, {"step": 1})
        waited = time.perf_counter() - began
    return waited, time.perf_counter() - began


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "checkpoint-hash")
    asked = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPES))
    moments = {
        f"{name}.{key}": torch.randn_like(parameter)
        for name, parameter in model.named_parameters()
        for key in ("exp_avg", "exp_avg_sq")
    }
    waited: dict[bool, list[float]] = {True: [], False: []}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    alone: list[float] = []
    saved(model, moments, asked.folder, True)  # the first one allocates
    for number in range(2 * asked.repeats):
        hashed = number % 4 in (0, 3)  # neither always goes first
        before, in_all = saved(model, moments, asked.folder, hashed)
        waited[hashed].append(before)
        seconds[hashed].append(in_all)
        if hashed:
            [made] = (asked.folder / "checkpoints").iterdir()
            began = time.perf_counter()
            manifest.check_sealed(made)
            alone.append(time.perf_counter() - began)
    size = sum(path.stat().st_size for path in asked.folder.rglob("*") if path.is_file())
    shutil.rmtree(asked.folder)
    wait, whole = ({h: _median(found[h]) for h in (True, False)} for found in (waited, seconds))
    found = {
        "bytes": size,
        "seconds that training waits": {
            "with hashes": wait[True],
            "without": wait[False],
            "added by hashing": round(wait[True]["median"] / wait[False]["median"] - 1, 4),
        },
        "seconds until it is whole, nothing beside it": {
            "with hashes": whole[True],
            "without": whole[False],
            "added by hashing": round(whole[True]["median"] / whole[False]["median"] - 1, 4),
        },
        "seconds to check": _median(alone),
        "threads": hashes.THREADS,
    }
    command = f"python benchmarks/checkpoint_hash.py --repeats {asked.repeats}"
    packages = versions(["torch", "transformers", "safetensors"])
    merge(OUT, "SmolLM2-135M", found, origin(command, time.perf_counter() - started, packages))
    print(found)


def _median(values: list[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(values), 3), "all": [round(v, 3) for v in values]}


if __name__ == "__main__":
    main()
