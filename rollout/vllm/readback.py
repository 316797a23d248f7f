"""Reads back what a vLLM model holds, and compares it with the tensors that were sent.

vLLM fuses checkpoint tensors (q, k, v into one) and, on CPUs, packs linear layers into a layout of
the matrix library: their `weight` is then empty. A packed layer is read through its own matrix
product: the rows of an identity matrix give the columns of its weight, to the bit, since every
other term of the sum is a product with 0. Where embedding and head are tied, vLLM's CPU head
computes with a packed copy of its own, and both are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grpo.errors import WeightsError, unknown_name
from grpo.rollout.vllm import compat

# Reading all columns through the layers is a forward pass of `input width` tokens per layer. Above
# this many multiply-adds (seconds on a core) only a sample is read.
READ_ALL = 1e12
SAMPLED_COLUMNS = 32
_CHUNK = 512  # columns read at once: bounds the memory of a wide output
_TINY = 1e-37  # matrix products may flush smaller numbers to zero


@dataclass(frozen=True, kw_only=True)
class Resident:
    """One parameter of a vLLM model and the checkpoint tensors it is made of, in row order."""

    name: str
    module: nn.Module
    attribute: str
    parts: tuple[str, ...]
    packed: bool  # whether the layer computes with a packed copy of it

    @property
    def tensor(self) -> Tensor:
        """The parameter as it lies in the module; empty where the layer has packed it."""
        return getattr(self.module, self.attribute).data


def residents(model: Any) -> list[Resident]:
    """Every parameter of a vLLM model, with the checkpoint names behind it.

    A tied parameter comes once for each module that has it: each may have packed a copy.
    """
    fused: dict[str, Sequence[str]] = getattr(model, "packed_modules_mapping", None) or {}
    modules = dict(model.named_modules())
    has_head = any(type(m).__name__ == "ParallelLMHead" for m in modules.values())
    found: list[Resident] = []
    origin: dict[int, tuple[str, ...]] = {}  # of tied parameters: the names they come under
    for path, module in modules.items():
        head, _, leaf = path.rpartition(".")
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            names = tuple(
                ".".join(filter(None, (head, part, attribute))) for part in fused.get(leaf, (leaf,))
            )
            parts = origin.setdefault(id(parameter), names)
            # An embedding has a packed copy too, and computes with it only where it is the head.
            computes = not (has_head and type(module).__name__ == "VocabParallelEmbedding")
            packed = attribute == "weight" and computes and hasattr(module, "cpu_linear")
            found.append(
                Resident(
                    name=f"{path}.{attribute}",
                    module=module,
                    attribute=attribute,
                    parts=parts,
                    packed=packed,
                )
            )
    return found


def rename(model: Any, name: str) -> str:
    """The name a checkpoint tensor has inside a vLLM model, before q, k and v are fused."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return name
    # Since 0.3x the mapper fuses too; the rename mapper is what it is without that.
    plain = mapper.get_rename_mapper() if hasattr(mapper, "get_rename_mapper") else mapper
    return plain._map_name(name) or name


def check_complete(model: Any, sent: dict[str, Tensor]) -> None:
    """Refuse a set of weights with tensors missing, unknown or misshaped. Raises WeightsError.

    Shapes of matrices are left to vLLM, which fuses, packs and pads them, and so is a vector as
    long as the vocabulary, which it pads too.
    """
    wanted = {part: held for held in residents(model) for part in held.parts}
    came = {rename(model, name): tensor for name, tensor in sent.items()}
    optional = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
    if missing := sorted(wanted.keys() - came.keys()):
        raise WeightsError(f"{len(missing)} weights did not arrive, among them {missing[:3]}")
    if unknown := sorted(came.keys() - wanted.keys() - optional):
        raise WeightsError(unknown_name("weight", unknown[0], wanted))
    for name, held in wanted.items():
        shape, here = tuple(came[name].shape), tuple(held.tensor.shape)
        whole = held.parts == (name,) and not hasattr(held.module, "num_embeddings_per_partition")
        if whole and len(here) == 1 and here[0] and shape != here:
            raise WeightsError(f"weight {name!r} has shape {shape}, the engine's has {here}")


def columns_read(model: Any, seed: str) -> tuple[int, int]:
    """(every how many-th column is read, the first one): (1, 0) where all of them are cheap."""
    cost = 0
    for resident in residents(model):
        if resident.packed:
            width = _width(resident.module)
            cost += width * width * _height(resident.module)
    if cost <= READ_ALL:
        return 1, 0
    widest = max(_width(r.module) for r in residents(model) if r.packed)
    stride = max(1, widest // SAMPLED_COLUMNS)
    return stride, int(seed, 16) % stride if seed else 0


def find_difference(model: Any, sent: dict[str, Tensor], seed: str) -> str | None:
    """The first checkpoint tensor that the model does not hold as it was sent, or None.

    `seed` (hex digits, the version's hash) chooses the columns where not all are read. Values are
    compared exactly, after the cast of `sent` to the model's type.
    """
    named = {rename(model, name): (name, tensor) for name, tensor in sent.items()}
    stride, first = columns_read(model, seed)
    with torch.no_grad():
        for resident in residents(model):
            views: list[tuple[Tensor, Tensor | None]] = []
            if resident.tensor.numel():
                views.append((resident.tensor, None))
            if resident.packed:
                at = torch.arange(first, _width(resident.module), stride)
                views.append((_through(resident.module, at), at))
            for held, at in views:
                row = 0
                for part in resident.parts:
                    name, tensor = named[part]
                    rows = held[row : row + len(tensor)]
                    row += len(tensor)
                    want = tensor if at is None else tensor[:, at.to(tensor.device)]
                    if not _same(rows, want, resident):
                        tied = len(resident.parts) == 1 and part != resident.name
                        return f"{name} (as {resident.name})" if tied else name
    return None


def _width(layer: Any) -> int:
    """Input width of a linear layer, or of an embedding used as one."""
    return int(getattr(layer, "input_size_per_partition", 0) or layer.embedding_dim)


def _height(layer: Any) -> int:
    """Output width of a linear layer, or the rows of an embedding."""
    return int(getattr(layer, "output_size_per_partition", 0) or layer.num_embeddings_per_partition)


def _through(layer: Any, at: Tensor) -> Tensor:
    """Columns `at` of a packed layer's weight [rows, len(at)], read by its own matrix product."""
    dtype = layer.weight.dtype
    columns: list[Tensor] = []
    for some in at.split(_CHUNK):
        one_hot = torch.zeros(len(some), _width(layer), dtype=dtype)
        one_hot[torch.arange(len(some)), some] = 1
        columns.append(layer.quant_method.apply(layer, one_hot, None))
    return torch.cat(columns).t()


def _same(held: Tensor, want: Tensor, resident: Resident) -> bool:
    """Whether `held` is `want` in the model's type, numbers below `_TINY` aside."""
    module: Any = resident.module
    dtype = module.weight.dtype if resident.attribute == "bias" else held.dtype
    cast = want.to(device=held.device, dtype=dtype).to(held.dtype)
    if held.shape != cast.shape:
        return False
    if torch.equal(held, cast):
        return True
    differ = held != cast
    return not bool((torch.maximum(held.abs(), cast.abs())[differ] > _TINY).any())


def load(worker: Any, sent: dict[str, Tensor]) -> None:
    """Inside a worker: load `sent`, named as in a checkpoint, into its model."""
    runner = worker.model_runner
    runner.reload_weights(weights_iterator=iter(sent.items()), is_checkpoint_format=True)
    compat.refresh_tied_heads(runner.get_model())
