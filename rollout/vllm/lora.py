"""LoRA adapters in vLLM: registered anew for every version, read back, and proven to be in use.

The base is never merged or touched. vLLM takes adapters from a folder only, so each is written to
memory-backed storage where there is some, and removed once vLLM has read it. vLLM keeps `lora_B`
multiplied by `LoraSpec.scaling` in the type it computes in. That is exact for a power of two, as by
default; any other factor rounds B once more than in the learner.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import typing
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grpo.errors import EngineError, WeightsError, unknown_name
from grpo.model.adapter_config import NO_DORA
from grpo.rollout.vllm import compat
from grpo.types import LoraSpec, Version

_PREFIX = "base_model.model."


def engine_arguments(spec: LoraSpec) -> dict[str, Any]:
    """vLLM's settings for one adapter. Raises EngineError for one that vLLM does not serve."""
    if spec.use_dora:
        raise EngineError(f"model.lora.use_dora = true: {NO_DORA}")
    rank = spec.rank
    valid = sorted(typing.get_args(compat.module("config.lora").MaxLoRARanks))
    room = [r for r in valid if r >= rank]
    if not room:
        raise EngineError(
            f"model.lora.rank = {rank} is more than vLLM serves; valid: 1 to {valid[-1]}"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room[0]}


class Adapter:
    """The adapter of one engine: `request` is what every sample has to be asked for with."""

    def __init__(self, spec: LoraSpec) -> None:
        self.spec = spec
        self.request: Any = None  # a LoRARequest, once weights have come
        self._folder = ""
        self._serial = 0
        self._names: set[str] = set()  # of the first adapter; the later ones have the same

    def load(
        self, llm: Any, sent: Mapping[str, Tensor], version: Version, *, running: bool
    ) -> None:
        """Register `sent` (peft's state-dict names) as the one adapter, and read it back.

        With samples `running`, the new tensors take the place of the old ones under the same id, so
        that these go on with them. Raises WeightsError.
        """
        self._check_complete(set(sent))
        request_type = compat.module("lora.request").LoRARequest
        old = self.request
        if old is None or not running:
            self._serial += 1
        name = f"v{version.step}-{version.hash}" if not (running and old) else old.lora_name
        folder = self._write(sent)
        shared = {"lora_name": name, "lora_int_id": self._serial, "lora_path": folder}
        try:
            if old is not None and not running:
                llm.remove_lora(old.lora_int_id)
            with compat.undisturbed():
                llm.add_lora(request_type(**shared, load_inplace=True))
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(f"vLLM refused the adapter {version}: {reason}") from error
        self._drop_folder()
        self._folder = folder
        self.request = request_type(**shared)
        if llm.vllm_config.parallel_config.tensor_parallel_size == 1:
            runner = compat.worker(llm).model_runner
            wrong = find_difference(runner.lora_manager, self._serial, sent, self.spec.scaling)
            if wrong is not None:
                raise WeightsError(
                    f"{wrong} of the adapter is not what was sent: vLLM holds other values after "
                    f"loading {version}"
                )

    def _check_complete(self, names: set[str]) -> None:
        """Refuse half pairs, and sets other than the first one. Raises WeightsError."""
        paired = {n.replace(f".lora_{a}.", f".lora_{b}.") for n in names for a, b in ("AB", "BA")}
        self._names = self._names or names | paired
        if missing := sorted(self._names - names):
            raise WeightsError(
                f"{len(missing)} tensors of the adapter did not arrive, among them {missing[:3]}"
            )
        if extra := sorted(names - self._names):
            raise WeightsError(unknown_name("adapter tensor", extra[0], self._names))

    def check(self, output: Any) -> None:
        """Refuse an output that was sampled without the adapter. Raises WeightsError."""
        used = output.lora_request
        if self.request is not None and (
            used is None or used.lora_int_id != self.request.lora_int_id
        ):
            raise WeightsError(
                f"the adapter {self.request.lora_name} is registered but unused: vLLM sampled "
                f"request {output.request_id} with {used.lora_name if used else 'the base alone'}"
            )

    def close(self) -> None:
        """Remove the adapter's folder."""
        self._drop_folder()
        self.request = None

    def _write(self, sent: Mapping[str, Tensor]) -> str:
        from safetensors.torch import save_file

        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        folder = tempfile.mkdtemp(prefix="grpo-adapter-", dir=memory)
        targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in sent})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.spec.rank,
            "lora_alpha": self.spec.lora_alpha,
            "use_rslora": self.spec.use_rslora,
            "target_modules": targets,
            "bias": "none",
        }
        with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        tensors = {name: tensor.contiguous() for name, tensor in sent.items()}
        save_file(tensors, os.path.join(folder, "adapter_model.safetensors"))
        return folder

    def _drop_folder(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


def find_difference(
    manager: Any, adapter: int, sent: Mapping[str, Tensor], scaling: float
) -> str | None:
    """The first tensor of `sent` that vLLM's stacks do not hold, or None.

    `manager` is the worker's LoRA manager, `scaling` what it multiplies B by. What is read is the
    memory the matrix products use.
    """
    inner = manager._adapter_manager
    slots: list[int | None] = list(inner.lora_index_to_id)
    if adapter not in slots:
        return next(iter(sent))
    slot = slots.index(adapter)
    fused: dict[str, list[str]] = inner.packed_modules_mapping or {}
    place = {part: (whole, i) for whole, parts in fused.items() for i, part in enumerate(parts)}
    for name, tensor in sent.items():
        path, _, kind = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        head, _, leaf = path.rpartition(".")
        whole, index = place.get(leaf, (leaf, 0))
        layer = inner.modules.get(f"{head}.{whole}")
        if layer is None:
            return name
        stacks = layer.lora_a_stacked if kind == "lora_A" else layer.lora_b_stacked
        held = stacks[index][slot, 0]
        want = tensor.to(device=held.device, dtype=held.dtype)
        if kind == "lora_B":
            want = want * scaling
        rows, columns = want.shape
        rest = held.clone()
        rest[:rows, :columns] = 0
        if not torch.equal(held[:rows, :columns], want) or bool(rest.any()):
            return name
    return None
