"""LoRA: a pair of small trained matrices beside linear layers (Hu et al. 2021, 2106.09685).

    y = W x + s B A x     W frozen; A [r, in] random, B [out, r] zero at first; s = lora_alpha / r

With rsLoRA s = lora_alpha / sqrt(r) (Kalajdzievski 2023, 2312.03732). DoRA has a third part, a norm
m for each row of the weight (Liu et al. 2024, 2402.09353): y = m (W + s B A) / |W + s B A| x, and m
is |W| at first. The norm that is divided by counts as a constant in the gradient.

Learner and engines put the same adapter on the same base, so only A, B and m are sent between them,
under the names of peft's own files. The base is never merged in place: every update would round it
once more, and the reference of a KL term is the base itself.

The adapter is on layers that compute W x + b and nothing else: queries, keys, values, output, dense
and shared MLPs, or on those of them that `target_modules` names, by peft's rule. peft's own
"all-linear" goes by names, and in a mixture of experts includes routers and experts. These are left
out, so that what is merged is what was trained:

  embeddings and the head
  routers, and the gates of shared experts: they choose experts, and compute no part of the output
  experts that a model keeps as one tensor of three dimensions
  layers whose weights a fused kernel of a state-space mixer reads directly: all but its `in_proj`
  weights that several layers share: one merged weight cannot serve each of them
  the encoders of a multimodal model: there is only text to train them on
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.errors import LearnerError, RecipeError
from grpo.model.adapter_config import ALL, PREFIX, WEIGHTS, matches
from grpo.model.quantize import FourBitLinear
from grpo.types import LoraSpec

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

NAME = "default"  # peft's name for the only adapter; not part of the names in its files
PARTS = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.")
ROUTERS = {"gate", "router", "shared_expert_gate"}  # the modules' names, in every family
LINEAR = ("Linear", "FourBitLinear", "Conv1D", "FalconLinear")  # classes of W x + b alone


def adapted_layers(model: nn.Module, spec: LoraSpec) -> list[str]:
    """Names of the layers that an adapter goes on. The model may be on `meta`.

    Raises RecipeError if there is none, for a target that matches nothing, and for one that matches
    what an adapter cannot be on.
    """
    linear = _linear_layers(model)
    if not linear:
        raise RecipeError(
            f"model.lora.rank: {type(model).__name__} has no plain linear layer for an adapter to "
            "go on; set model.lora.rank=0 to train its weights"
        )
    targets = spec.target_modules
    if targets == ALL:
        return linear
    setting = "model.lora.adapter" if spec.adapter else "model.lora.target_modules"
    words = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    text = _text_part(model)
    names = [name for name, _ in model.named_modules() if name and f"{name}.".startswith(text)]
    for target in [targets] if isinstance(targets, str) else [[one] for one in targets]:
        said = f"{setting}: {target if isinstance(target, str) else target[0]!r}"
        found = [name for name in names if matches(name, target)]
        if not found:
            raise RecipeError(
                f"{said} matches no layer of {type(model).__name__}; valid: {ALL}, or of {words}"
            )
        if other := next((name for name in found if name not in linear), ""):
            raise RecipeError(
                f"{said} matches {other!r}, which is no plain linear layer that could be merged "
                f"(heads, routers and shared weights are none); valid: {ALL}, or of {words}"
            )
    return [name for name in linear if matches(name, targets)]


def adapter_size(model: nn.Module, spec: LoraSpec) -> int:
    """How many numbers an adapter has. The model may be on `meta`. Raises RecipeError."""
    layers: list[Any] = [model.get_submodule(name) for name in adapted_layers(model, spec)]
    pairs = sum(spec.rank * sum(layer.weight.shape) for layer in layers)
    outputs = [layer.weight.shape[type(layer).__name__ == "Conv1D"] for layer in layers]
    return pairs + (sum(outputs) if spec.use_dora else 0)


def _linear_layers(model: nn.Module) -> list[str]:
    """Names of the layers of `model` that an adapter can be on."""
    named: Any = model
    head = named.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    text = _text_part(model)
    return [
        f"{owner}.{leaf}".removeprefix(".")
        for owner, parent in model.named_modules()
        for leaf, child in parent.named_children()
        if type(child).__name__ in LINEAR
        and child is not head
        and f"{owner}.".startswith(text)
        and not ROUTERS & {*owner.split("."), leaf}
        and not (leaf != "in_proj" and hasattr(parent, "A_log") and hasattr(parent, "D"))
        and uses[id(child.weight)] == 1
    ]


def described(model: nn.Module) -> str:
    """A sentence: which layers of `model` its adapter is on, and which weights stay as they are."""
    on, off = set[str](), set[str]()
    layers = adapter_layers(model)
    for name, parameter in model.named_parameters():
        place, _, leaf = name.rpartition(".")
        if parameter.ndim < 2 or ".lora_" in name:
            continue
        owner = place.removesuffix(".base_layer")
        word = owner.rpartition(".")[2]
        if owner in layers:
            on.add(word)
        else:
            off.add(word if leaf == "weight" else f"{word}.{leaf}")
    return f"the adapter is on {', '.join(sorted(on))}; as they are: {', '.join(sorted(off))}"


def _text_part(model: nn.Module) -> str:
    """What names in a multimodal model's language model begin with; "" for a text model."""
    named: Any = model
    config = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or named.config.get_text_config() is config:
        return ""
    decoder = named.get_decoder()
    return next(f"{name}." for name, module in model.named_modules() if module is decoder)


def adapter_settings(spec: LoraSpec) -> dict[str, Any]:
    """Arguments of `peft.LoraConfig` for an adapter, without the layers' names."""
    return {
        "r": spec.rank,
        "lora_alpha": spec.lora_alpha,
        "use_rslora": spec.use_rslora,
        "use_dora": spec.use_dora,
        "lora_dropout": 0.0,  # with dropout the learner scores a policy that never sampled
        "bias": "none",
    }


def add_adapter(model: nn.Module, spec: LoraSpec) -> None:
    """Put an adapter on `model` in place and freeze the rest.

    A new one changes no output at first: A is drawn from torch's generator, B is zero. With
    `spec.adapter` it is the one in that folder. It has its layer's type, or float32 where that is a
    half type. Raises RecipeError if peft is not installed, if the model has no layer for it, or if
    the adapter in the folder is not one of this model.
    """
    with _names_as_they_are(model):
        peft().inject_adapter_in_model(_new(model, spec), model, adapter_name=NAME)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()
    _start(model, spec)


def peft_model(model: PreTrainedModel, spec: LoraSpec) -> PeftModel:
    """As `add_adapter`, in peft's own wrapper, which TRL's trainers expect. Raises RecipeError."""
    with _names_as_they_are(model):
        wrapped = peft().get_peft_model(model, _new(model, spec))
    _start(model, spec)
    return wrapped


def _start(model: nn.Module, spec: LoraSpec) -> None:
    """Give the adapter on `model` the values in `spec.adapter`, if there is one. RecipeError."""
    if not spec.adapter:
        return
    import torch
    from safetensors.torch import load_file

    said = f"model.lora.adapter = {spec.adapter!r}"
    tensors = load_file(Path(spec.adapter).expanduser() / WEIGHTS)
    own = adapter_parameters(model)
    if other := sorted(own.keys() ^ tensors.keys()):
        has = "has no" if other[0] in own else "has, and the model has not,"
        raise RecipeError(f"{said} {has} {other[0]}; it belongs to another model")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise RecipeError(
                    f"{said} belongs to another model: {name} is {list(tensors[name].shape)}, and "
                    f"{list(parameter.shape)} here"
                )
            parameter.copy_(tensors[name])


def peft() -> Any:
    """The package. Raises RecipeError where it is not installed."""
    try:
        found = importlib.import_module("peft")
    except ImportError as error:
        raise RecipeError("model.lora needs peft: pip install 'grpo-toolkit[lora]'") from error
    _ignore_old_torchao()
    return found


def _ignore_old_torchao() -> None:
    """Let peft work beside a torchao that is too old for it, as Colab has.

    peft then refuses every layer, although no model is quantized by torchao here.
    """
    asks: Any = importlib.import_module("peft.tuners.lora.torchao")
    try:
        asks.is_torchao_available()
    except ImportError:
        asks.is_torchao_available = lambda: False


def _new(model: nn.Module, spec: LoraSpec) -> LoraConfig:
    layers = adapted_layers(model, spec)
    return peft().LoraConfig(
        **adapter_settings(spec),
        task_type="CAUSAL_LM",
        target_modules=layers,
        fan_in_fan_out=any(type(model.get_submodule(n)).__name__ == "Conv1D" for n in layers),
    )


@contextmanager
def _names_as_they_are(model: nn.Module) -> Iterator[None]:
    """Within it peft finds layers by the names they have.

    For some types of model it takes `gate_proj` and `down_proj` for experts, as checkpoints from
    before transformers 5 name them.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "model_type"):
        yield
        return
    config.model_type = "any"  # in front of the class's own
    try:
        yield
    finally:
        del config.model_type


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter by the names of peft's files: base_model.model. ... .q_proj.lora_A.weight."""
    return {
        PREFIX + _in_files(name): parameter
        for name, parameter in model.named_parameters()
        if any(part in name for part in PARTS)
    }


def _in_files(name: str) -> str:
    """A parameter's name without the adapter's; a norm's, also without `weight`."""
    head, part, _ = name.partition(PARTS[2])
    return head + part.rstrip(".") if part else name.replace(f".{NAME}.", ".")


@contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """Within it the model computes without its adapter.

    Of peft's own switch only the part that a forward pass reads: all of it would turn
    `requires_grad` off and on too, which breaks wrappers that hold gradients.
    """
    layers = list(adapter_layers(model).values())
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merged(
    model: nn.Module, whole: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name in the plain model, a function that makes the tensor with the adapter merged in).

    `model` stays as it is, and one tensor exists at a time. The sum is computed in float64 and
    rounded once to the adapter's type, which all floating-point tensors have. `whole` makes a full
    tensor of a shard. Raises LearnerError, after the last tensor, if a part of the adapter was
    merged into none of them.
    """
    import torch

    layers = adapter_layers(model)
    packed = {name: m for name, m in model.named_modules() if isinstance(m, FourBitLinear)}
    left = set(layers)
    dtype = next(iter(adapter_parameters(model).values())).dtype

    def made(tensor: Tensor, layer: Any, base: FourBitLinear | None) -> Tensor:
        found = whole(tensor).detach() if base is None else base.values()
        if found.is_floating_point():
            found = found.to(dtype)
        if layer is None:
            return found
        down, up = whole(layer.lora_A[NAME].weight), whole(layer.lora_B[NAME].weight)
        wide = torch.float32 if found.device.type == "mps" else torch.float64  # which has no wider
        delta = (up.to(wide) @ down.to(wide)).detach() * layer.scaling[NAME]
        rows = (found.T if layer.fan_in_fan_out else found).to(wide) + delta
        if NAME in layer.lora_magnitude_vector:
            norms = whole(layer.lora_magnitude_vector[NAME].weight).detach().to(wide)
            rows *= (norms / rows.norm(dim=1))[:, None]
        return (rows.T if layer.fan_in_fan_out else rows).to(dtype).contiguous()

    for name, tensor in model.state_dict(keep_vars=True).items():
        if any(part in name for part in PARTS):
            continue
        place, _, leaf = name.rpartition(".")
        if place in packed and leaf == "scales":
            continue
        is_weight = leaf == "weight"
        base = packed.get(place) if is_weight else None
        owner = place.removesuffix(".base_layer")
        layer = layers[owner] if is_weight and owner != place else None
        left.discard(owner if layer else "")
        yield name.replace(".base_layer.", "."), lambda t=tensor, on=layer, b=base: made(t, on, b)
    if left:
        raise LearnerError(
            f"the adapter of {min(left)!r} is on no weight that it can be merged into; set "
            "model.lora.rank=0 to train the weights themselves"
        )


def adapter_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that have an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
