"""Generation by the embedded engine; log-probs of every token included."""

from __future__ import annotations

import os
from typing import Any

from grpo.kernels import native
from grpo.rollout.embedded import torch_engine
from grpo.rollout.embedded.decoder import make_decoder
from grpo.rollout.embedded.own_cache import OwnCacheDecoder
from grpo.rollout.embedded.rows import RunningRows
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.rollout.settings import TorchSettings
from grpo.types import EngineSpec, Request, Sampling
from perf import work
from perf.worker import Settings, now, serve


def prepare(settings: Settings) -> Any:
    """An engine; a repetition samples everything once."""
    if settings.get("own_cache"):  # ablation: the model's own cache, one group at a time
        torch_engine.make_decoder = lambda model, ways, **_: OwnCacheDecoder(model, ways)
    if settings.get("plain_layers"):  # ablation: the model's own code over the slot cache
        torch_engine.make_decoder = lambda model, ways, **_: make_decoder(model, ways, packed=False)
    if settings.get("torch_only"):  # ablation: no compiled kernel
        os.environ["GRPO_NATIVE"] = "0"
    if settings.get("no_tiles"):  # ablation: kernels that know no matrix tiles
        native.FLAGS = (*native.FLAGS, "-mno-amx-bf16")
    limit = settings["completion"]
    spec = EngineSpec(
        model=settings["model"], dtype=settings["dtype"], max_length=settings["prompt"] + limit
    )
    options = {key: settings[key] for key in ("max_rows", "compile") if key in settings}
    engine = TorchEngine.from_spec(spec, TorchSettings(**options))
    config: Any = engine.model.config
    ids = work.prompts(settings["prompts"], settings["prompt"], config.vocab_size)
    samples = settings["samples"]
    planned = work.lengths(len(ids) * samples, limit, settings["kind"])
    sampling = Sampling(max_tokens=limit)
    one_by_one = settings.get("one_by_one", False)  # ablation: nobody shares a prompt
    requests: list[tuple[tuple[int, ...], int]] = []
    for prompt in ids:
        requests += [(tuple(prompt), 1)] * samples if one_by_one else [(tuple(prompt), samples)]
    wanted: dict[tuple[str, int], int] = {}
    for uid, (_, n) in enumerate(requests):
        for index in range(n):
            wanted[str(uid), index] = planned[len(wanted)]
    plant(wanted)
    turn = 0

    def repetition() -> dict[str, Any]:
        nonlocal turn
        turn += 1
        started = now(settings)
        engine.submit(
            [
                Request(uid=str(uid), ids=prompt, n=n, sampling=sampling, key=(0, 0, uid, turn))
                for uid, (prompt, n) in enumerate(requests)
            ]
        )
        done = []
        while len(done) < len(wanted):
            done += engine.poll()
        seconds = now(settings) - started
        made = {(c.request, c.index): len(c) for c in done}
        if made != wanted:
            raise RuntimeError("completions do not have the planted lengths")
        return {"seconds": seconds, "tokens": sum(planned)}

    return repetition


def plant(wanted: dict[tuple[str, int], int]) -> None:
    """Let every sample end at its own length, as if it had drawn its end-of-sequence token there.

    A request has one limit for all its samples, and the samples of a group differ in length.
    """
    plain = RunningRows.set

    def planted(self: RunningRows, row: int, job: Any, index: int, version: Any) -> None:
        plain(self, row, job, index, version)
        self.limit[row] = wanted[job.request.uid, index]

    RunningRows.set = planted


if __name__ == "__main__":
    serve(prepare)
