"""How weights reach an engine's module: a private copy of the model, and a checked copy into it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from grpo.errors import WeightsError, unknown_name
from grpo.model.adapter import adapter_parameters
from grpo.model.content_hash import content_hash


def private_copy(model: nn.Module, dtype: torch.dtype | None, share_storage: bool) -> nn.Module:
    """A copy of `model` for inference: eval mode, no gradients, its own configuration.

    Floating-point parameters are cast to `dtype` (None: as they are). With `share_storage`,
    parameters already in that dtype are not copied: both modules then read the same memory.
    """
    memo: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        data = parameter.detach()
        if dtype is not None and data.is_floating_point() and data.dtype != dtype:
            data = data.to(dtype)
        elif not share_storage:
            data = data.clone()
        memo[id(parameter)] = nn.Parameter(data, requires_grad=False)
    return copy.deepcopy(model, memo).eval()


def own_weights(model: nn.Module, has_adapter: bool) -> dict[str, Tensor]:
    """The tensors of `model` that a learner sends, by name: all of them, or its adapter's."""
    return dict(adapter_parameters(model) if has_adapter else model.state_dict(keep_vars=True))


def copy_weights(
    own: Mapping[str, Tensor], weights: Iterable[tuple[str, Tensor]]
) -> dict[str, torch.dtype]:
    """Copy `weights` into the tensors `own` by name, casting; what came, with its type.

    Tied parameters need only one of their names. Persistent buffers are taken where given.
    Raises WeightsError for a name that is not in `own`, another shape, or a parameter that
    did not come; the model then holds a mixture, and the caller must not sample from it.
    """
    missing: dict[int, str] = {}
    for name, tensor in own.items():
        if isinstance(tensor, nn.Parameter):
            missing.setdefault(id(tensor), name)
    came: dict[str, torch.dtype] = {}
    with torch.no_grad():
        for name, tensor in weights:
            target = own.get(name)
            if target is None:
                raise WeightsError(unknown_name("weight", name, own))
            if target.shape != tensor.shape:
                raise WeightsError(
                    f"weight {name!r} has shape {tuple(tensor.shape)}, "
                    f"the engine's has {tuple(target.shape)}"
                )
            # Shared storage: the tensor is there already.
            if target.data_ptr() != tensor.data_ptr() or target.dtype != tensor.dtype:
                target.copy_(tensor)
            missing.pop(id(target), None)
            came[name] = tensor.dtype
    if missing:
        raise WeightsError(
            f"{len(missing)} weights did not arrive, among them {sorted(missing.values())[:3]}"
        )
    return came


def resident_hash(own: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> str:
    """Content hash of the named tensors as they now lie in `own`, seen in the types they came in.

    Equal to the sender's hash if and only if every value arrived and none lost precision.
    """
    return content_hash((name, own[name].detach().to(dtype)) for name, dtype in dtypes.items())
