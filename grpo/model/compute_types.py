"""The type that a stage computes in: what `auto` means, and which types a device lacks.

    CPU                                    float32
    GPU of compute capability >= 8.0, AMD  bfloat16
    older GPU (T4, V100)                   float16; the learner scales its loss
    another accelerator                    float32

`torch.cuda.is_bf16_supported()` is true on a T4 too, where torch emulates bfloat16 at a fraction of
float32's speed; hence the capability. A product of float32 matrices is of full precision on every
device: torch leaves TF32 off unless asked (`torch.get_float32_matmul_precision()` is "highest"),
and nothing here asks.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, TypeVar, cast

from grpo.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

AUTO = "auto"
BFLOAT16_SINCE = (8, 0)  # compute capability, of Ampere

R = TypeVar("R", bound="BaseModel")


def chosen(name: str, device: torch.device | None = None) -> str:
    """`name`, or for "auto" the type of this process's device (None: the one it would compute on).

    float32, bfloat16 or float16.
    """
    if name != AUTO:
        return name
    device = device or here()
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if has_bfloat16(device) else "float16"


def narrow() -> str:
    """The type of half the size that this machine computes in."""
    return "float16" if chosen(AUTO) == "float16" else "bfloat16"


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` has bfloat16 of its own, not an emulation of it."""
    import torch

    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE


def here() -> torch.device:
    """The kind of device that accelerate would give this process, found without starting it."""
    import torch

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y")
    return torch.device("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")


def computer() -> str:
    """What this process computes on, and in which type where a recipe says `auto`; a line."""
    import torch

    device = here()
    kind = chosen(AUTO, device)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)} with {memory:.0f} GiB, compute type {kind}"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"no GPU: {usable} CPU cores, compute type {kind}"


def settled(recipe: R, device: torch.device | None = None) -> R:
    """`recipe` with the type of `device` wherever a stage says auto, as runs are recorded."""
    stages = [_settled(stage, device) for stage in cast(Any, recipe).stages]
    return recipe.model_copy(update={"stages": tuple(stages)})


def _settled(stage: BaseModel, device: torch.device | None) -> BaseModel:
    changed: dict[str, Any] = {}
    for section, owner in _typed(stage):
        if owner.dtype == AUTO:
            update = {"dtype": chosen(AUTO, device)}
            changed |= {section: owner.model_copy(update=update)} if section else update
    return stage.model_copy(update=changed)


def _typed(stage: BaseModel) -> list[tuple[str, Any]]:
    """The sections of a stage that have a setting `dtype`, by name; "" is the stage itself."""
    named = [("", stage), *((name, getattr(stage, name, None)) for name in ("model", "rollout"))]
    return [(name, owner) for name, owner in named if hasattr(owner, "dtype")]


def check(stage: BaseModel, where: str = "", device: torch.device | None = None) -> None:
    """Refuse a type that the device (None: that of this process) does not compute in. RecipeError.

    where: what a person writes before a setting of the stage. An engine elsewhere has a device of
    its own, which is not checked.
    """
    for section, owner in _typed(stage):
        elsewhere = section == "rollout" and (
            owner.backend != "local" or owner.engine in ("server", "endpoint")
        )
        if owner.dtype is not None and not elsewhere:
            check_type(
                f"{where}{section}.dtype" if section else f"{where}dtype", owner.dtype, device
            )


def check_type(setting: str, name: str, device: torch.device | None = None) -> None:
    """The same of one setting, by its name and value."""
    device = device or here()
    if name != "bfloat16" or has_bfloat16(device):
        return
    raise RecipeError(
        f"{setting} = bfloat16, which {_described(device)} can only emulate; set {setting}=float16 "
        f"or {setting}={AUTO}. A run that was started in bfloat16 goes on on a GPU of 8.0 or newer"
    )


def check_supervised(name: str, device: torch.device) -> None:
    """Refuse float16 for a stage that fine-tunes on a CPU, where its loss is not scaled."""
    if name == "float16" and device.type == "cpu":
        raise RecipeError("model.dtype = float16 needs an accelerator; on a CPU use float32")


def check_kernels() -> None:
    """Refuse a GPU that this PyTorch was not compiled for: every operation on it would fail.

    Raises RecipeError.
    """
    import torch

    device = here()
    if device.type != "cuda" or torch.version.hip is not None:
        return
    capability, known = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(known)):
        # Machine code (sm) runs on later GPUs of its generation, PTX (compute) on all later ones.
        same = kind == "compute" or int(major) == capability[0]
        if same and (int(major), int(minor)) <= capability:
            return
    raise RecipeError(
        f"PyTorch {torch.__version__} has no code for {_described(device)}, only for "
        f"{', '.join(known)}; install a PyTorch that has, or compute on the CPU by "
        "ACCELERATE_USE_CPU=true"
    )


def _described(device: torch.device) -> str:
    import torch

    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return f"{torch.cuda.get_device_name(device)} (compute capability {capability})"
