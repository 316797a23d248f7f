"""Rollout engines as Ray actors: any engine of `ENGINES`, on this machine or across a cluster.

Weights travel as buckets of bytes through Ray's object store: put once, read by all workers,
each of which copies one bucket at a time. They keep the type they are given in; the hash a worker
acknowledges is its engine's own, taken from what it then holds.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo.errors import EngineError
from grpo.outside.code import plugins
from grpo.rollout.buckets import in_buckets
from grpo.rollout.pool.engine_pool import PoolEngine
from grpo.rollout.settings import TorchSettings, VllmSettings
from grpo.types import Ack, Completion, Engine, EngineSpec, InFlight, Request, Version

if TYPE_CHECKING:
    from torch import Tensor

_BUCKET_BYTES = 64 * 2**20
_GATHER = 0.05  # seconds of decoding that a call should be worth
_CONNECT = 10.0  # seconds a cluster's address has for answering
_PLACEMENT = 60.0  # seconds the cluster has for finding room

# What accelerate's launcher leaves in the environment; an engine that found it would wait for the
# learner's other ranks.
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Bucket = tuple[list[str], np.ndarray]  # names in order; a file in the safetensors format


def ray_pool(
    *,
    engine: str,
    engine_args: Mapping[str, Any],
    spec: EngineSpec,
    workers: int,
    address: str,
    timeout: float,
    placement_timeout: float = _PLACEMENT,
) -> PoolEngine:
    """`workers` engines, each an actor with its own share of `spec.threads`.

    `engine` and `engine_args` are `rollout.engine` and `rollout.engine_args`. An `address` joins a
    cluster; without one Ray starts on this machine, and ends with the pool. Where Ray runs already
    in this process, that is used. On a cluster with GPUs each worker gets
    `engine_args["tensor_parallel_size"]` (1) of them. `timeout` (seconds) is the longest a worker
    may owe an answer (600 at least while it starts).

    Raises EngineError without Ray, where the cluster has no room (after `placement_timeout`
    seconds), or where an engine cannot be made.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        connect(address)
    release: list[Callable[[], Any]] = [ray.shutdown] if started else []
    try:
        # Two threads on one core spin against each other: shares are explicit.
        share = spec.threads // workers or 1
        gpus = (
            engine_args.get("tensor_parallel_size", VllmSettings.tensor_parallel_size)
            if _has_gpus(ray)
            else 0
        )
        places = _Places(ray, workers, {"CPU": share, **({"GPU": gpus} if gpus else {})})
        release.insert(0, places.release)
        places.wait(placement_timeout)
        recipe = (_absolute(engine), dict(engine_args), dataclasses.replace(spec, threads=share))

        def start(index: int) -> RayWorker:
            name = f"ray worker {index + 1} ({engine})"
            return RayWorker(name, places.actor(index, _environment(share)), recipe)

        return PoolEngine(
            start,
            workers,
            timeout,
            version=spec.version,
            # More than an engine decodes at once would only wait there.
            window=engine_args.get("max_rows")
            or engine_args.get("max_num_seqs")
            or TorchSettings.max_rows,
            publish=lambda weights: [ray.put(bucket) for bucket in buckets(weights)],
            release=lambda: _release(release),
        )
    except BaseException:
        _release(release)
        raise


class EngineHost:
    """The actor: an engine, and the little that lies between it and the pool."""

    def __init__(self) -> None:
        for name in _LAUNCHER:
            os.environ.pop(name, None)

    def start(self, engine: str, engine_args: Mapping[str, Any], spec: EngineSpec) -> None:
        """Make the engine."""
        arguments = {**engine_args, "spec": spec}
        self._engine: Engine = plugins.load("engine", engine, arguments)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, whose deadlines are given in seconds from now."""
        self._engine.submit([_shift_deadline(r, time.monotonic()) for r in requests])

    def poll(self, timeout: float) -> list[Completion]:
        """As the engine's; decodes a little further, so that a call is worth its overhead."""
        end = time.monotonic() + _GATHER
        done = more = self._engine.poll(timeout)
        while more and (left := end - time.monotonic()) > 0:
            more = self._engine.poll(left)
            done = done + more
        return done

    def load_weights(self, refs: Sequence[Any], version: Version, in_flight: InFlight) -> Ack:
        """As the engine's, from buckets in the object store, one after another."""
        return self._engine.load_weights(_unpacked(refs), version, in_flight)

    def run(self, method: str, *args: Any) -> Any:
        """What the engine's own `method` says, for those that are as the engine's."""
        return getattr(self._engine, method)(*args)


class RayWorker:
    """A `Worker` (see `PoolEngine`) whose engine is made by `recipe` in the actor."""

    def __init__(self, name: str, actor: Any, recipe: tuple[Any, ...]) -> None:
        self.name = name
        self._actor = actor
        self._recipe = recipe

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Begin a call of the actor, which takes one after another."""
        if method == "start":
            args = self._recipe
        elif method == "submit":
            # Machines do not share a monotonic clock.
            args = ([_shift_deadline(r, -time.monotonic()) for r in args[0]],)
        answer: Future[Any] = Future()

        def forward(done: Future[Any]) -> None:
            error = done.exception()
            if error is None:
                answer.set_result(done.result())
            else:  # an engine's own error comes wrapped with a traceback in its text
                answer.set_exception(getattr(error, "cause", None) or _lost(error))

        if not hasattr(EngineHost, method):
            method, args = "run", (method, *args)
        getattr(self._actor, method).remote(*args).future().add_done_callback(forward)
        return answer

    def kill(self) -> None:
        """Kill the actor's process."""
        _ray().kill(self._actor)


def _lost(error: BaseException) -> ConnectionError:
    """Ray's account of a lost actor without its identifiers and advice."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    last = lines[-1].partition(" Some common causes")[0] if len(lines) > 1 else ""
    return ConnectionError(f"{lines[0]} {last}".strip())


class _Places:
    """Where workers run: a bundle each, spread over the nodes."""

    def __init__(self, ray: Any, workers: int, bundle: Mapping[str, float]) -> None:
        from ray.util.placement_group import (  # pyright: ignore[reportMissingImports]
            placement_group,
        )

        self._ray = ray
        self._bundle = bundle
        self._taken: set[int] = set()
        self._group: Any = placement_group([dict(bundle)] * workers, strategy="SPREAD")

    def wait(self, timeout: float) -> None:
        """Until every bundle has its place. Raises EngineError after `timeout` seconds."""
        if self._group.wait(timeout):
            return
        names = ("CPU", "GPU")
        nodes = [
            ", ".join(f"{n} {node['Resources'].get(n, 0):g}" for n in names)
            for node in self._ray.nodes()
            if node["Alive"]
        ]
        asked = ", ".join(f"{name} {amount:g}" for name, amount in self._bundle.items())
        raise EngineError(
            f"rollout.workers = {self._group.bundle_count} needs {self._group.bundle_count} x "
            f"({asked}) and the Ray cluster found no room for it in {timeout:g} s; its "
            f"{len(nodes)} nodes have ({'), ('.join(nodes)}) in all. Take fewer workers or "
            "run.threads, or add nodes"
        )

    def actor(self, index: int, environment: dict[str, str]) -> Any:
        """An actor at place `index`: in its bundle the first time, later wherever there is room."""
        from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
            PlacementGroupSchedulingStrategy,
        )

        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
        options["runtime_env"] = {"env_vars": environment}
        gpus = self._bundle.get("GPU", 0)
        if index not in self._taken or (gpus and self._stands()):
            options["num_cpus"], options["num_gpus"] = self._bundle["CPU"], gpus
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=index
            )
        else:
            # The bundle may lie on a node that is gone. CPUs are only accounted for, and the
            # nodes that are left may have none free on paper; GPUs have to be there.
            options["num_cpus"], options["num_gpus"] = 0, gpus
            options["scheduling_strategy"] = "SPREAD"
        self._taken.add(index)
        return self._ray.remote(EngineHost).options(**options).remote()

    def _stands(self) -> bool:
        """Whether every bundle lies on a node that is there, as far as Ray has noticed."""
        from ray.util import placement_group_table  # pyright: ignore[reportMissingImports]

        return placement_group_table(self._group)["state"] == "CREATED"

    def release(self) -> None:
        """Give the bundles back."""
        from ray.util import remove_placement_group  # pyright: ignore[reportMissingImports]

        remove_placement_group(self._group)


def buckets(weights: Iterable[tuple[str, Tensor]], size: int = _BUCKET_BYTES) -> Iterator[Bucket]:
    """Tensors in buckets of about `size` bytes, larger ones in one of their own.

    Tensors keep their type.
    """
    from safetensors.torch import save

    for bucket in in_buckets(weights, size):
        yield list(bucket), np.frombuffer(save(bucket), np.uint8)


def unpack(bucket: Bucket) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a bucket, in the order in which they were given."""
    from safetensors.torch import load

    names, data = bucket
    found = load(data.tobytes())
    return ((name, found[name]) for name in names)


def _unpacked(refs: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    ray = _ray()
    for ref in refs:
        yield from unpack(ray.get(ref))


def _shift_deadline(request: Request, seconds: float) -> Request:
    if request.deadline is None:
        return request
    return dataclasses.replace(request, deadline=request.deadline + seconds)


def _environment(threads: int) -> dict[str, str]:
    """Variables that OpenMP, MKL and tokenizers read when their libraries are loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


def _absolute(engine: str) -> str:
    """A plug-in's file by its whole path: workers may run in another folder."""
    file = plugins.split_file(engine)
    return f"{file[0].expanduser().resolve()}:{file[1]}" if file else engine


def _has_gpus(ray: Any) -> bool:
    return ray.cluster_resources().get("GPU", 0) > 0


def connect(address: str, *, show_logs: bool = False) -> Any:
    """Ray, joined to the cluster at `address` or started here. Raises EngineError.

    `show_logs`: whether what actors print appears here.
    """
    ray = _ray()
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": show_logs}
    if not address:
        # Ray lowers its workers' priority, but here they are the run itself.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # "local": not whatever cluster someone else has running on this machine
        ray.init(address="local", include_dashboard=False, **quiet)
        return ray
    try:
        host, _, port = address.rpartition("/")[2].rpartition(":")
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT).close()
        ray.init(address=address, **quiet)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError, by kind of address
        raise EngineError(
            f"ray.address = {address!r} could not be joined: {error}. Leave it empty to run on "
            "this machine"
        ) from error
    return ray


def _release(steps: list[Callable[[], Any]]) -> None:
    """Call each of `steps` once."""
    while steps:
        steps.pop(0)()


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise EngineError(
            "the recipe needs Ray, which is not installed: pip install 'grpo-toolkit[ray]'"
        ) from error
    return ray
