"""LoRA: a pair of small trained matrices beside linear layers (Hu et al. 2021, 2106.09685).

    y = W x + (lora_alpha / r) * B A x        W frozen; A [r, in] random, B [out, r] zero at first

Learner and engines put the same adapter on the same base, so only A and B are sent between them,
under the names of peft's own files. The base is never merged in place: every update would round it
once more, and the reference of a KL term is the base itself.

The adapter is on layers that compute W x + b and nothing else: queries, keys, values, output, dense
and shared MLPs. peft's own "all-linear" goes by names, and in a mixture of experts includes routers
and experts. These are left out, so that what is merged is what was trained:

  embeddings and the head
  routers, and the gates of shared experts: they choose experts, and compute no part of the output
  experts that a model keeps as one tensor of three dimensions
  layers whose weights a fused kernel of a state-space mixer reads directly: all but its `in_proj`
  weights that several layers share: one merged weight cannot serve each of them
  the encoders of a multimodal model: there is only text to train them on
"""

from __future__ import annotations

import copy
import importlib
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.errors import LearnerError, RecipeError
from grpo.model.quantize import FourBitLinear

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

NAME = "default"  # peft's name for the only adapter; not part of the names in its files
PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
ROUTERS = {"gate", "router", "shared_expert_gate"}  # the modules' names, in every family
# peft takes these for experts of checkpoints from before transformers 5, in any part of the model
OF_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
LINEAR = ("Linear", "FourBitLinear", "Conv1D", "FalconLinear")  # classes of W x + b alone


def adapted_layers(model: nn.Module) -> list[str]:
    """Names of the layers that an adapter goes on. The model may be on `meta`.

    Raises RecipeError if there is none.
    """
    named: Any = model
    head = named.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    text = _text_part(model)
    found = [
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
    if not found:
        raise RecipeError(
            f"model.lora_rank: {type(model).__name__} has no plain linear layer for an adapter to "
            "go on; set model.lora_rank=0 to train its weights"
        )
    return found


def described(model: nn.Module) -> str:
    """A sentence: which layers of `model` its adapter is on, and which weights stay as they are."""
    on, off = set[str](), set[str]()
    layers = _layers(model)
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


def adapter_settings(rank: int) -> dict[str, Any]:
    """Arguments of `peft.LoraConfig` for an adapter of rank `rank`, without the layers' names."""
    return {
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,  # with dropout the learner scores a policy that never sampled
        "bias": "none",
    }


def add_adapter(model: nn.Module, rank: int) -> None:
    """Put a new adapter on `model` in place and freeze the rest. At first it changes no output.

    The adapter has its layer's type, or float32 where that is a half type. A is drawn from torch's
    generator. Raises RecipeError if peft is not installed, or if the model has no layer for it.
    """
    from_peft = _peft(rank)
    with _names_as_they_are(model):
        from_peft.inject_adapter_in_model(_new(model, rank), model, adapter_name=NAME)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()


def peft_model(model: PreTrainedModel, rank: int) -> PeftModel:
    """As `add_adapter`, in peft's own wrapper, which TRL's trainers expect.

    Raises RecipeError, also if peft could not load the adapter again.
    """
    with _names_as_they_are(model):
        wrapped = _peft(rank).get_peft_model(model, _new(model, rank))
    check_peft(model, rank)
    return wrapped


def _peft(rank: int) -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise RecipeError(
            f"model.lora_rank = {rank} needs peft: pip install 'grpo-toolkit[lora]'"
        ) from error


def _new(model: nn.Module, rank: int) -> LoraConfig:
    layers = adapted_layers(model)
    return _peft(rank).LoraConfig(
        **adapter_settings(rank),
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
        PREFIX + name.replace(f".{NAME}.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


@contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """Within it the model computes without its adapter, whose term is multiplied by 0.

    peft's own switch also turns `requires_grad` off and on, which breaks wrappers that hold
    gradients.
    """
    layers = list(_layers(model).values())
    scales = [layer.scaling[NAME] for layer in layers]
    try:
        for layer in layers:
            layer.scaling[NAME] = 0.0
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling[NAME] = scale


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

    layers = _layers(model)
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
        return (found.to(wide) + (delta.T if layer.fan_in_fan_out else delta)).to(dtype)

    for name, tensor in model.state_dict(keep_vars=True).items():
        if ".lora_A." in name or ".lora_B." in name:
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
            "model.lora_rank=0 to train the weights themselves"
        )


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and configuration, with zeros for weights that take no memory."""
    import torch

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        plain = type(model)(copy.deepcopy(model.config))
    for module in plain.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    return plain


def check_peft(model: PreTrainedModel, rank: int) -> None:
    """Find settings with which peft loads the adapter of `model` from files, and keep them with it.

    Each is tried on a skeleton. Raises RecipeError if none works.
    """
    tensors = {name: p.detach().cpu() for name, p in adapter_parameters(model).items()}
    short = _short_names(sorted(_layers(model)), model)
    taken = {name for name in short if name.rpartition(".")[2] in OF_EXPERTS}
    problem = ""
    # A layer of such a name is found by the name of its weight, which nothing else is read into.
    for by_weight in (set[str](), taken):
        settings = adapter_settings(rank) | {
            "fan_in_fan_out": any(layer.fan_in_fan_out for layer in _layers(model).values()),
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "target_modules": sorted(short - by_weight),
        }
        if by_weight:
            settings["target_parameters"] = sorted(f"{name}.weight" for name in by_weight)
        found = _trial(model, tensors, settings)
        if not found:
            named: Any = model
            named.adapter_files = settings
            return
        problem = problem or found
    raise RecipeError(
        f"model.lora_rank = {rank}: peft could not load an adapter of {type(model).__name__} again "
        f"({problem}); set model.lora_rank=0 to train the weights themselves"
    )


def write_adapter(
    model: PreTrainedModel, tensors: dict[str, Tensor], rank: int, base: str | None, folder: Path
) -> None:
    """Write the adapter for `PeftModel.from_pretrained`; `base`: folder or hub id of its base.

    Raises RecipeError as `check_peft`, LearnerError if the file does not hold `tensors`.
    """
    from safetensors.torch import load_file

    if not hasattr(model, "adapter_files"):
        check_peft(model, rank)
    named: Any = model
    _write(tensors, named.adapter_files, base, folder)
    read = load_file(folder / WEIGHTS)
    if wrong := _unlike(tensors, read):
        raise LearnerError(f"{folder / WEIGHTS} holds another {wrong!r} than was trained")


def _write(
    tensors: dict[str, Tensor], settings: dict[str, Any], base: str | None, folder: Path
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    config = _peft(settings["r"]).LoraConfig(**settings)
    config.base_model_name_or_path = base
    config.save_pretrained(str(folder))


def _trial(model: PreTrainedModel, tensors: dict[str, Tensor], settings: dict[str, Any]) -> str:
    """What peft gets wrong when it loads the adapter's files with `settings`; "" if nothing."""
    import torch

    plain = skeleton(model)
    peft = _peft(settings["r"])
    with (
        tempfile.TemporaryDirectory(prefix="grpo-adapter-") as folder,
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")  # what peft and transformers say to one another
        try:
            _write(tensors, settings, None, Path(folder))
            peft.PeftModel.from_pretrained(plain, folder, torch_device="cpu")
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            return " ".join(str(error).split())[:200]
    read = adapter_parameters(plain)
    if extra := sorted(read.keys() - tensors.keys()):
        return f"it would put one on {extra[0]!r} as well"
    wrong = _unlike(tensors, read)
    return wrong and f"it takes {wrong!r} for another name"


def _unlike(tensors: dict[str, Tensor], read: Mapping[str, Tensor]) -> str:
    """The first name under which `read` differs from `tensors`; "" if there is none."""
    for name, tensor in tensors.items():
        found = read.get(name)
        if found is None or not tensor.equal(found.to(tensor.dtype)):
            return name
    return ""


def _short_names(layers: Iterable[str], model: nn.Module) -> set[str]:
    """The layers by the last word of their names, or in full where others have that word too."""
    layers = set(layers)
    inner = tuple(f"{name}." for name in layers)
    others = {
        name.rpartition(".")[2]
        for name, _ in model.named_modules()
        if name not in layers and not name.startswith(inner)
    }
    return {n if (leaf := n.rpartition(".")[2]) in others else leaf for n in layers}


def _layers(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
