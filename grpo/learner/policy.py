"""The policy as the learner holds it: loaded, made ready, its parts by name, and written out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grpo.errors import RecipeError
from grpo.learner.forward import disable_dropout
from grpo.learner.layers import fuse_layers
from grpo.model.adapter import adapter_parameters, add_adapter, merged
from grpo.model.adapter_files import check_peft
from grpo.model.devices import Choices, choices
from grpo.model.pretrained import load_model
from grpo.model.quantize import quantize_base
from grpo.model.ranks import whole
from grpo.types import LoraSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_policy(
    model: str | PreTrainedModel, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A causal LM without dropout from a Hugging Face folder or id, or the one given, as it is."""
    # See rollout/embedded/ways.py. For the process and not for a forward pass, as activations may
    # be computed again outside it. Says nothing where there is no GPU.
    torch.backends.cuda.enable_cudnn_sdp(False)
    loaded: PreTrainedModel = (
        model if isinstance(model, nn.Module) else load_model(model, dtype, trained=True)
    )
    disable_dropout(loaded)
    return loaded.eval()


def load_with_adapter(
    model: str | PreTrainedModel,
    lora: LoraSpec,
    compute_dtype: torch.dtype,
    seed: int,
    quantization: str = "none",
) -> PreTrainedModel:
    """The same with a LoRA adapter; the frozen base needs no more than the compute type.

    `quantization`: nf4 keeps the base in four bits (QLoRA). Raises RecipeError for a model whose
    adapter could not be loaded again, and as `add_adapter`.
    """
    base = load_policy(model, compute_dtype)
    if quantization == "nf4":
        quantize_base(base)
    torch.manual_seed(seed)  # the same adapter on every rank
    add_adapter(base, lora)
    check_peft(base, lora)
    return base


def load_trained(
    model: str | PreTrainedModel,
    device: torch.device,
    lora: LoraSpec | None,
    compute_dtype: torch.dtype,
    seed: int,
    quantization: str,
) -> PreTrainedModel:
    """A policy to be trained, on the device: all of it, or with `lora` an adapter's part."""
    found = (
        load_with_adapter(model, lora, compute_dtype, seed, quantization)
        if lora
        else load_policy(model)
    )
    put_on(found, device)
    add_up_embedding(found, choices(device))
    return found


def trained_parameters(model: PreTrainedModel, has_adapter: bool) -> dict[str, nn.Parameter]:
    """What is trained, by the names that engines and checkpoints know.

    Under FSDP2 these are the shards; the model's own attributes are whole tensors for the time of a
    forward pass.
    """
    return adapter_parameters(model) if has_adapter else dict(model.named_parameters())


def frozen_copy(source: str | PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A policy that is only scored with, on the device; of a module a copy."""
    model = load_policy(copy.deepcopy(source) if isinstance(source, nn.Module) else source)
    model.requires_grad_(False)
    put_on(model, device)
    return model


def put_on(model: PreTrainedModel, device: torch.device) -> None:
    """Move the model, and give it the layers that are fast there."""
    nn.Module.to(model, device)
    if choices(device).fused_layers:
        fuse_layers(model)


def add_up_embedding(model: PreTrainedModel, choices: Choices) -> None:
    """Where it is the head as well, add the embedding's gradient to the head's row by row.

    Otherwise a second tensor of the weight's size is made for each micro-batch. Not with several
    ranks: data-parallel wrappers would expect the sum to be sparse. And on a CPU only, by
    `choices`: a card adds rows up in whatever order its threads arrive (`index_add_` in
    `SparseCUDATensorMath.cu`), so that a seed gives another model each time, and with a padding
    token it waits for a mask.
    """
    if not choices.sparse_embedding:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and getattr(embedding, "weight", None) is head.weight
    if type(embedding) is nn.Embedding and tied and not torch.distributed.is_initialized():
        embedding.sparse = True


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that are sharded one by one; none where the model does not name them."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass instead of keeping them. Raises RecipeError."""
    # renamed in transformers 5.2x; the old name warns there
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise RecipeError(
            f"learner.gradient_checkpointing = true: {type(model).__name__} cannot recompute its "
            "activations; set it to false and lower learner.tokens_per_micro_batch instead"
        ) from error
    # Hugging Face recomputes in training mode only. Not `model.train()`: routers and other parts
    # of a layer would then add noise that the engine does not.
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def full_state(
    model: PreTrainedModel, has_adapter: bool
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Every tensor of the plain model by name, made when called (collective under FSDP2)."""
    if has_adapter:
        yield from merged(model, whole)
        return
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights come once
            yield name, lambda t=tensor: whole(t).detach()
        seen.add(id(tensor))
