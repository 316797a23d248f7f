"""What runs inside the vLLM server that `grpo serve` starts: how weights arrive there.

`ServerWorker` is mixed into vLLM's worker (`--worker-extension-cls`); importing this module
registers the weight-transfer backend `BACKEND` in the worker's process, as none of vLLM's own works
without CUDA. The backend reads tensors from shared memory (`segments.py`), has vLLM load them as
a checkpoint, and keeps a report of what arrived for the client to compare. Written for vLLM 0.32.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngineFactory,
)
from vllm.model_executor.model_loader.reload import (  # pyright: ignore[reportMissingImports]
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from grpo.model.content_hash import content_hash
from grpo.model.transfer import wait_for
from grpo.rollout.remote.segments import read_segment
from grpo.rollout.vllm.readback import find_difference

BACKEND = "grpo_shared_memory"
_INSTANCE = secrets.token_hex(8)  # tells a restarted server from the one before


@dataclass
class NoInit(WeightTransferInitInfo):
    """There is nothing to agree on beforehand."""


@dataclass
class WeightBucket(WeightTransferUpdateInfo):
    """One bucket of weights: the path of its file."""

    segment: str


class SharedMemoryTransfer(WeightTransferEngine):
    """Weights from files in memory, in checkpoint format, bucket by bucket."""

    init_info_cls = NoInit
    update_info_cls = WeightBucket
    supports_draft_weight_update = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.arrived: dict[str, Tensor] = {}
        self.loaded: set[str] = set()
        self.report: dict[str, Any] = {}

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Open the model for a full set of weights. Layers still open from before stay so."""
        self.arrived, self.loaded, self.report = {}, set(), {}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take one bucket. (The base class synchronizes an accelerator that need not exist.)"""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: WeightBucket) -> None:
        """Map the bucket's file and load its tensors."""
        named = read_segment(update_info.segment)
        self.arrived.update(named)
        # To the model's device first: vLLM buffers the tensors of a layer until it is complete.
        self.loaded |= self.model.load_weights((n, t.to(self.device)) for n, t in named.items())

    def finish_weight_update(self) -> None:
        """Process what was loaded; note what came, what did not, and what is not as it was sent."""
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied(self.model)
        wait_for(self.device)
        own = {name for name, _ in self.model.named_parameters()}
        missing = sorted(own - self.loaded)
        arrived = content_hash(self.arrived.items())
        different = None
        # Reading back knows no shards; those are left to the hash and the canary.
        if not missing and self.parallel_config.world_size == 1:
            different = find_difference(self.model, self.arrived, arrived)
        self.report = {
            "hash": arrived,
            "tensors": len(self.arrived),
            "missing": missing,
            "different": different,
        }
        self.arrived = {}

    def shutdown(self) -> None:
        """Let go of tensors of an unfinished update."""
        self.arrived = {}


def repack_tied(model: Any) -> None:
    """Pack the weights of tied heads again, where a CPU computes with packed copies.

    vLLM packs a layer when its tensors are loaded. A tied head has none of its own in a checkpoint,
    so after an update it would go on computing with the packed copy of the first weights.
    """
    seen: set[int] = set()
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is None or not weight.numel():
            continue
        if weight.data_ptr() in seen and hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)
        seen.add(weight.data_ptr())


class ServerWorker:
    """Methods for vLLM's worker, called by name over `/collective_rpc`; they give plain data."""

    weight_transfer_engine: Any
    model_config: Any
    device: Any

    def grpo_hello(self) -> dict[str, Any]:
        """Who this server is and what it can hold."""
        config = self.model_config
        return {
            "instance": _INSTANCE,
            "model": str(config.model),
            "dtype": str(config.dtype).removeprefix("torch."),
            "vocab_size": int(config.get_vocab_size()),
            "max_length": int(config.max_model_len),
            "device": str(self.device),
        }

    def grpo_begin(self) -> None:
        """Forget an update that its sender never finished; vLLM refuses to start another."""
        self._weight_update_active = False

    def grpo_report(self) -> dict[str, Any]:
        """What the last weight update brought."""
        return dict(self.weight_transfer_engine.report)


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryTransfer)
