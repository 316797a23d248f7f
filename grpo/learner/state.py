"""What a learner needs besides its weights to go on bit for bit: safetensors and JSON, no pickle.

optimizer.safetensors   step and moments of every parameter, by name
reference.safetensors   the reference model's weights, where it is refreshed during the run
rng.safetensors         torch's generators
learner.json            step counts and the loss scaler
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grpo.errors import RunError
from grpo.learner.saved import load_saved
from grpo.model.adapter_config import WEIGHTS as ADAPTER
from grpo.model.ranks import laid_out_as, whole

if TYPE_CHECKING:
    from grpo.learner.learner import TorchLearner


@torch.no_grad()
def copy(policy: Mapping[str, nn.Parameter], reference: Mapping[str, nn.Parameter]) -> None:
    """Make the reference what the policy is now; each rank copies the part it holds."""
    for name, parameter in reference.items():
        parameter.copy_(policy[name])


def save(path: str, learner: TorchLearner) -> None:
    """Write the state beside the model in the folder `path` (collective)."""
    held = learner.optimizer.state
    moments = {
        f"{key}.{name}": _tensor(value).detach().cpu().contiguous()
        for name, parameter in learner.trained.items()
        for key, value in held.get(parameter, {}).items()
    }
    # bitsandbytes' tables are one tensor for all parameters, which a file may hold only once.
    moments = {n: t.clone() if n.startswith("qmap") else t for n, t in moments.items()}
    reference = {n: whole(p).detach().cpu().contiguous() for n, p in learner.refreshed.items()}

    def write() -> None:
        folder = Path(path)
        save_file(moments, folder / "optimizer.safetensors")
        if reference:
            save_file(reference, folder / "reference.safetensors")
        generators = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            generators["cuda"] = torch.cuda.get_rng_state()
        save_file(generators, folder / "rng.safetensors")
        counts = {"steps": learner.steps, "updates": learner.updates}
        state = {**counts, "scaler": learner.scaler.state_dict()}
        (folder / "learner.json").write_text(json.dumps(state), encoding="utf-8")

    learner.ranks.on_first(write)


def load(path: str, learner: TorchLearner) -> None:
    """Put weights, moments, reference, scaler, generators and step counts back.

    Raises RunError when the folder is not a learner's, or is that of another model. Every rank
    reads the whole files and keeps its part.
    """
    trained, reference, optimizer = learner.trained, learner.refreshed, learner.optimizer
    folder = Path(path)
    try:
        state = json.loads((folder / "learner.json").read_text(encoding="utf-8"))
        if learner.lora:
            weights = load_file(folder / "adapter" / ADAPTER)
        else:  # by the model's own names, which need not be those in the files
            weights = load_saved(path, "auto").state_dict()
        tensors = load_file(folder / "optimizer.safetensors")
        generators = load_file(folder / "rng.safetensors")
        kept = load_file(folder / "reference.safetensors") if reference else {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not a whole learner checkpoint: {error}.") from error

    for name, parameter in trained.items():
        if name not in weights or weights[name].shape != parameter.shape:
            raise RunError(f"{path} holds the weights of another model: {name} does not match.")
    by_name: dict[str, dict[str, Tensor]] = {}
    for place, tensor in tensors.items():
        key, _, name = place.partition(".")
        by_name.setdefault(name, {})[key] = tensor
    others = set(by_name) - set(trained)
    if others:
        raise RunError(
            f"{path} was written by a learner of other parameters, {min(others)} among them: set "
            "model.lora as it was."
        )
    for name, parameter in trained.items():
        with torch.no_grad():
            parameter.copy_(laid_out_as(parameter, weights[name]))
        if found := by_name.get(name):
            optimizer.state[parameter] = {
                key: _restored(value, parameter) for key, value in found.items()
            }
        else:
            optimizer.state.pop(parameter, None)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(laid_out_as(parameter, kept[name]))
    learner.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])
    learner.steps, learner.updates = state["steps"], state["updates"]


def _tensor(value: Tensor | int) -> Tensor:
    return whole(value) if isinstance(value, Tensor) else torch.tensor(value)


def _restored(value: Tensor, parameter: nn.Parameter) -> Tensor | int:
    """A value of an optimizer's state as it was: bitsandbytes counts steps in a plain number."""
    if value.ndim:
        return laid_out_as(parameter, value)
    if not value.is_floating_point():
        return int(value)
    return value.to(parameter.device)  # where the step counter of a fused optimizer lives
