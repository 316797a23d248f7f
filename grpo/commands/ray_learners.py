"""Learner ranks as Ray actors: `ray.learners=N` does what `accelerate launch` does, on a cluster.

Each actor gets the variables that a launcher sets (RANK, WORLD_SIZE, MASTER_ADDR …) and then runs
the recipe like any rank; `ranks.py` takes it from there. The ranks share a file system: the first
writes the run directory, all read it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from grpo.config.schema import Recipe
from grpo.errors import GrpoError, RecipeError, RunError
from grpo.outside.terminal.console import Console
from grpo.rollout.pool.ray_pool import connect

Work = Callable[[dict[str, Any], Console], Any]  # (settings of the recipe, console) -> summary
_PLACEMENT = 60.0  # seconds the cluster has for finding room


class _Rank:
    """One learner process."""

    def address(self) -> tuple[str, int]:
        """Where the first rank can be reached by the others: its node, and a port free now."""
        import ray  # pyright: ignore[reportMissingImports]

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def run(self, environment: Mapping[str, str], work: Work, settings: dict[str, Any]) -> Any:
        """`work` as one rank; the last summary."""
        os.environ |= environment
        quiet = environment["RANK"] != "0"
        return work(settings, Console(stderr=True, highlight=False, quiet=quiet))


def run_ranks(recipe: Recipe, work: Work, *, threads: int) -> dict[str, Any]:
    """Start the ranks, let each do `work` with the recipe's settings, and wait for all.

    threads: of each rank. Raises RecipeError where the cluster has no room, RunError where a rank
    died, and whatever of ours a rank raised. The other ranks are ended then: they would wait for
    it for ever.
    """
    ray = connect(recipe.ray.address, show_logs=True)
    count = recipe.ray.learners
    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if ray.cluster_resources().get("GPU", 0) else {})
    group = ray.util.placement_group([bundle] * count, strategy="PACK")
    actors: list[Any] = []
    try:
        if not group.wait(_PLACEMENT):
            raise RecipeError(
                f"ray.learners = {count} needs {count} x {bundle}, and the Ray cluster found no "
                f"room for it in {_PLACEMENT:g} s; take fewer, or add nodes"
            )
        from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
            PlacementGroupSchedulingStrategy,
        )

        # Bound to the driver: ranks are gone when it is.
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        variables = dict.fromkeys(names, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}
        remote = ray.remote(_Rank)
        for index in range(count):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            actor = remote.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=place,
                runtime_env={"env_vars": variables},
            ).remote()
            actors.append(actor)
        host, port = ray.get(actors[0].address.remote())
        print(f"{count} learner ranks on Ray; the first is on {host}", file=sys.stderr)
        shared = recipe.run.model_copy(update={"threads": threads})
        settings = recipe.model_copy(update={"run": shared}).model_dump(mode="json")
        futures = [
            actor.run.remote(_environment(index, count, host, port), work, settings)
            for index, actor in enumerate(actors)
        ]
        return _await(ray, futures)
    finally:
        for actor in actors:
            ray.kill(actor)
        ray.util.remove_placement_group(group)
        ray.shutdown()


def _environment(rank: int, count: int, host: str, port: int) -> dict[str, str]:
    """What torch's and accelerate's launchers set; a rank sees its own device alone, as number 0.

    FSDP2 is asked for by accelerate's own variables, where the driver has them.
    """
    asked = {k: v for k, v in os.environ.items() if k.startswith(("ACCELERATE_", "FSDP_"))}
    return asked | {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }


def _await(ray: Any, futures: list[Any]) -> dict[str, Any]:
    """The first rank's answer once all are done; the first error otherwise."""
    left = list(futures)
    while left:
        done, left = ray.wait(left, num_returns=1)
        for future in done:
            rank = futures.index(future)
            try:
                ray.get(future)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, GrpoError | KeyboardInterrupt):
                    raise cause from error
                raise RunError(f"learner rank {rank} failed: {cause!r}") from error
            except ray.exceptions.RayError as error:
                raise RunError(
                    f"learner rank {rank} was lost ({type(error).__name__}); continue the run "
                    "with grpo train --resume from its last checkpoint"
                ) from error
    return ray.get(futures[0])
