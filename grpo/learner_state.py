"""What a learner needs besides its weights to go on bit for bit: safetensors and JSON, no pickle.

optimizer.safetensors   step, exp_avg and exp_avg_sq of every parameter, by name
rng.safetensors         torch's generators
learner.json            step counts and the loss scaler
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from grpo.errors import RunError
from grpo.ranks import laid_out_as, whole

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def moments(trained: Mapping[str, nn.Parameter], optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of every parameter by name, whole and on the CPU (collective)."""
    return {
        f"{key}.{name}": whole(value).detach().cpu().contiguous()
        for name, parameter in trained.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def save(
    path: str,
    moments: dict[str, Tensor],
    scaler: torch.amp.GradScaler,
    steps: int,
    updates: int,
) -> None:
    """Write the state beside the model in the folder `path`."""
    folder = Path(path)
    save_file(moments, folder / "optimizer.safetensors")
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    save_file(generators, folder / "rng.safetensors")
    state = {"steps": steps, "updates": updates, "scaler": scaler.state_dict()}
    (folder / "learner.json").write_text(json.dumps(state), encoding="utf-8")


def load(
    path: str,
    files: str,
    trained: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
) -> tuple[int, int]:
    """Put weights, moments, scaler and generators back; returns (steps, updates).

    `files`: the weights' files as a pattern inside `path`. Raises RunError when the folder is not a
    learner's, or is that of another model. Every rank reads the whole files and keeps its part.
    """
    folder = Path(path)
    try:
        state = json.loads((folder / "learner.json").read_text(encoding="utf-8"))
        weights: dict[str, Tensor] = {}
        for file in sorted(folder.glob(files)):
            weights |= load_file(file)
        tensors = load_file(folder / "optimizer.safetensors")
        generators = load_file(folder / "rng.safetensors")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not a whole learner checkpoint: {error}.") from error

    for name, parameter in trained.items():
        if name not in weights or weights[name].shape != parameter.shape:
            raise RunError(f"{path} holds the weights of another model: {name} does not match.")
    others = {key.partition(".")[2] for key in tensors} - set(trained)
    if others:
        raise RunError(
            f"{path} was written by a learner of other parameters, {min(others)} among them: set "
            "model.lora_rank as it was."
        )
    for name, parameter in trained.items():
        with torch.no_grad():
            parameter.copy_(laid_out_as(parameter, weights[name]))
        found = {key: tensors[f"{key}.{name}"] for key in MOMENTS if f"{key}.{name}" in tensors}
        if found:
            optimizer.state[parameter] = {
                # the step counter of a fused optimizer lives on the parameter's device
                key: laid_out_as(parameter, value) if value.ndim else value.to(parameter.device)
                for key, value in found.items()
            }
        else:
            optimizer.state.pop(parameter, None)
    scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])
    return state["steps"], state["updates"]
