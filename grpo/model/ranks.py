"""Several learner ranks: what `accelerate launch` set up, and what a learner needs of it.

    --num_processes 2                              every rank holds the model (DDP)
    --num_processes 2 --use_fsdp --fsdp_version 2  every rank holds a part of it (FSDP2)

accelerate makes the processes and reads the settings. The wrappers are torch's own: accelerate
shards on accelerators only, so tests on CPUs would run other code. We change two settings. Mixed
precision stays off, since the learner has its own autocast and the shards are float32 master
weights. RAM-efficient loading stays off too: until the model is sharded, it leaves the weights of
all ranks but the first empty, and those of engines as well.

Every function here is collective: all ranks have to call it, in the same order.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from grpo.errors import GrpoError, LearnerError, RecipeError

T = TypeVar("T")

# The other ranks wait at a barrier while the first one evaluates or writes, so this is long.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes that learn together; one of them where nothing was launched."""

    accelerator: Accelerator
    sharding: FullyShardedDataParallelPlugin | None  # FSDP2's settings; None: no sharding

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self.accelerator.process_index

    @property
    def count(self) -> int:
        """How many there are."""
        return self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    def wrap(
        self, policy: nn.Module, layers: Sequence[nn.Module], passes: Sequence[str] = ()
    ) -> nn.Module:
        """`policy` wrapped so that its gradients are averaged over ranks; FSDP2 shards its layers.

        From then on use only the forward pass of what is returned and, without gradient, the
        methods of `unwrapped` that `passes` names.
        """
        if self.sharding is None:
            if self.count == 1 or not any(p.requires_grad for p in policy.parameters()):
                return policy
            # Buffers are constants here; sending them would make every forward pass collective.
            known = inspect.signature(DistributedDataParallel.__init__).parameters
            flag = (
                "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            )
            options: dict[str, Any] = {flag: False}
            if self.device.type == "cuda":
                options["device_ids"] = [self.device.index]
            return DistributedDataParallel(policy, **options)
        from torch.distributed import fsdp
        from torch.distributed.device_mesh import init_device_mesh

        shard: Any = partial(
            cast(Any, fsdp.fully_shard),  # its overloads do not survive `partial`
            mesh=init_device_mesh(self.device.type, (self.count,)),
            offload_policy=self.sharding.cpu_offload,
        )
        for layer in layers:
            shard(layer, reshard_after_forward=self.sharding.reshard_after_forward)
        shard(policy)
        for name in passes:
            fsdp.register_fsdp_forward_method(policy, name)
        return policy

    def no_sync(self, policy: nn.Module) -> contextlib.AbstractContextManager[object]:
        """For a backward pass whose gradients need not be averaged yet.

        FSDP2 averages them all the same: unreduced gradients are not sharded, and would take the
        memory that sharding saves.
        """
        if isinstance(policy, DistributedDataParallel):
            return policy.no_sync()
        return contextlib.nullcontext()

    def release(self, policy: nn.Module) -> None:
        """Drop the gathered weights that a forward pass without a backward pass leaves behind.

        They would keep old values when the shards change.
        """
        if self.sharding is not None:
            from torch.distributed.fsdp import FSDPModule

            for module in policy.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks."""
        return cast(Tensor, self.accelerator.reduce(tensor, reduction="sum"))

    def gather(self, objects: Sequence[T]) -> list[T]:
        """The lists of all ranks in rank order, pickled on the way."""
        if self.count == 1:
            return list(objects)
        return cast(list[T], gather_object(list(objects)))

    def on_first(self, act: Callable[[], T]) -> T:
        """The result of `act`, which runs on the first rank only; all ranks wait for it.

        An error of ours or an OSError there (a full disk, say) is raised on every rank.
        """
        if self.count == 1:
            return act()
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer = [act(), None]
            except (GrpoError, OSError) as error:
                answer = [None, error]
        result, error = broadcast_object_list(answer)
        if error is not None:
            raise error
        return result


def join() -> Ranks:
    """The ranks that were launched; the first call of a process sets the process group up.

    To be called before any model is loaded. Raises RecipeError for a launch that is neither DDP
    nor FSDP2, LearnerError if the processes did not find one another.
    """
    if _on("ACCELERATE_USE_DEEPSPEED") or _on("ACCELERATE_USE_MEGATRON_LM"):
        raise RecipeError("the learner runs under DDP or FSDP2; launch it without DeepSpeed")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    sharding = None
    if _on("ACCELERATE_USE_FSDP"):
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise RecipeError(
                f"accelerate was launched with --fsdp_version {version}; the learner shards with "
                "FSDP2: launch it with --fsdp_version 2"
            )
        sharding = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False)
    accelerator = Accelerator(
        # Precision is handled by the learner: accelerate would autocast only `forward`, and
        # refuses float16 without a GPU.
        mixed_precision="no",
        # accelerate takes torchrun's processes on a CPU for unrelated ones unless told so
        cpu=launched > 1 and not torch.accelerator.is_available(),
        fsdp_plugin=sharding,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    if accelerator.num_processes != launched:
        raise LearnerError(
            f"{launched} processes were launched, but accelerate connected "
            f"{accelerator.num_processes}: something used accelerate before the learner did"
        )
    return Ranks(
        accelerator=accelerator, sharding=sharding if accelerator.num_processes > 1 else None
    )


def _on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def unwrapped(policy: nn.Module) -> Any:
    """The module that `Ranks.wrap` was given, for its other passes. FSDP2 does not wrap it."""
    return policy.module if isinstance(policy, DistributedDataParallel) else policy


def whole(tensor: Tensor) -> Tensor:
    """The full tensor if `tensor` is this rank's shard of one, else `tensor` itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_as(parameter: Tensor, values: Tensor) -> Tensor:
    """`values` (whole, the same on all ranks) on the device of `parameter`, sharded as it is."""
    if not isinstance(parameter, DTensor):
        return values.to(parameter.device)
    on_mesh = values.to(parameter.device_mesh.device_type)
    return distribute_tensor(on_mesh, parameter.device_mesh, parameter.placements)
