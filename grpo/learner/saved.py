"""A policy on disk: written, read again, and compared with what the learner holds.

    policy ── full_state ──> model/ (Hugging Face layout, float32; an adapter is merged)
                   │            │ read as any user would
                   │            v
                   └──== every tensor ==── loaded ──== logits of the canary tokens ==── policy

Files and runtime differ in more than place: transformers splits a model's experts when it writes
and stacks them when it reads, renames weights, ties and drops others. A model that comes back as
another is no model to keep, so every save is checked. Tensors have to be equal, merged ones up to
rounding; the logits also see what is in no tensor, such as the tables of rotary embeddings.

At any time there is one copy of the weights besides the policy's own: what was gathered for writing
is dropped before the files are read.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo.errors import LearnerError, RunError
from grpo.kernels.fingerprint import fingerprints
from grpo.learner.policy import full_state
from grpo.model.adapter import adapter_parameters
from grpo.model.adapter_files import write_adapter
from grpo.model.canary import canary_logits
from grpo.model.devices import free_memory
from grpo.model.ranks import Ranks, whole
from grpo.types import LoraSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDING = 1e-6  # of a weight's largest value: a merged one is summed up again for the comparison
SAME = {True: 1e-4, False: 0.1}  # of the largest logit; False: a policy in a half type
HALF = 4  # times what a half type makes of the saved model itself, whose rounding grows with depth


def save_policy(
    model: PreTrainedModel,
    path: str,
    ranks: Ranks,
    logits: Tensor,
    *,
    lora: LoraSpec | None = None,
    base: str | None = None,
) -> None:
    """Write the model alone (float32), as `AutoModelForCausalLM.from_pretrained` loads it.

    An adapter is merged into what is written, and lies beside it under `adapter/`; `base` is the
    folder or id it belongs to. logits: the policy's, of the canary tokens. Collective. Raises
    LearnerError or RunError where what is read back is not the policy.
    """
    adapter = {
        name: whole(p).detach().cpu().contiguous()  # on all ranks
        for name, p in (adapter_parameters(model) if lora else {}).items()
    }
    state: dict[str, Tensor] = {}
    for name, make in full_state(model, lora is not None):
        tensor = make()  # on all ranks, kept on one
        if ranks.rank == 0:
            state[name] = tensor.cpu()

    def write() -> None:
        write_model(model, state, path, has_adapter=lora is not None)
        if lora:
            write_adapter(model, adapter, lora, base, Path(path) / "adapter")

    ranks.on_first(write)
    state.clear()
    check_saved(model, path, ranks, logits, lora=lora)


def write_model(
    model: PreTrainedModel, state: dict[str, Tensor], path: str, has_adapter: bool
) -> None:
    """The model in Hugging Face layout with the tensors of `state` instead of its own."""
    plain: Any = model
    if has_adapter:  # its names and the base's type must not reach the files
        dtype = next(t.dtype for t in state.values() if t.is_floating_point())
        with torch.device("meta"):
            plain = type(model)(copy.deepcopy(model.config))
        plain.to(dtype=dtype)
        plain.generation_config = model.generation_config
        if hasattr(model, "_weight_conversions"):  # how the base was read: its files' own names
            plain._weight_conversions = model._weight_conversions
    with quiet():
        plain.save_pretrained(path, state_dict=dict(state))


def check_saved(
    model: PreTrainedModel, path: str, ranks: Ranks, logits: Tensor, *, lora: LoraSpec | None = None
) -> None:
    """Compare the model in `path` with `model`. Collective. Raises LearnerError, RunError."""
    read: list[PreTrainedModel] = []  # on the first rank
    ranks.on_first(lambda: read.append(load_saved(path)))
    loaded = read[0].state_dict() if read else {}
    wrong = ""
    for name, make in full_state(model, lora is not None):
        tensor = make()
        if read and not wrong:
            wrong = _difference(name, tensor, loaded.get(name))

    def verdict() -> None:
        found = wrong or _other_logits(model, read.pop(), logits, path)
        if found:
            raise LearnerError(
                f"the model saved in {path} is not the policy: {found}. The files are not to be "
                "trusted; the run's last checkpoint is that of an earlier step"
            )

    ranks.on_first(verdict)


def load_saved(path: str, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """The model in `path` on the CPU, every tensor of it from the files.

    dtype: "auto" for that of the files. Raises RunError.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            found: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"the model saved in {path} cannot be loaded: {reason}") from error
    model, report = found
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report.get(kind):
            names = ", ".join(sorted(map(str, report[kind]))[:3])
            raise RunError(
                f"the model saved in {path} does not load whole: {len(report[kind])} "
                f"{kind.replace('_', ' ')}, among them {names}"
            )
    return model.eval()


def _difference(name: str, held: Tensor, read: Tensor | None) -> str:
    """What is wrong with a tensor that was read; "" if nothing is."""
    if read is None:
        return f"it has no {name}"
    if read.shape != held.shape:
        return f"{name} is {list(read.shape)} and should be {list(held.shape)}"
    if not held.numel() or _same(held.to(read.dtype), read):
        return ""
    held = held.cpu()
    apart = float((read.double() - held.double()).abs().max())
    if apart <= ROUNDING * float(held.double().abs().max()):
        return ""
    return f"{name} differs by {apart:.2g}"


def _same(held: Tensor, read: Tensor) -> bool:
    """Whether two tensors are equal, the first wherever it lies: of a GPU's, 16 bytes are fetched.

    They went to the host a moment ago, to be written; copying them again takes as long.
    """
    if held.device == read.device:
        return read.equal(held)
    first, second = fingerprints([held, read])
    return first == second


def _other_logits(model: PreTrainedModel, read: PreTrainedModel, logits: Tensor, path: str) -> str:
    """How the logits of what was read differ, at the canary's median position; "" if not by much.

    The median, because an expert that is chosen by a hair may be another after rounding.
    """

    def between(one: Tensor, other: Tensor) -> float:
        return float((one - other).abs().amax(1).median())

    if 2 * sum(p.nbytes for p in read.parameters()) > free_memory(logits.device):
        return ""  # the tensors are equal, and there is no room for a second model
    torch.nn.Module.to(read, logits.device)
    half = {p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize < 4}
    found = canary_logits(read)
    apart, limit = between(found, logits), SAME[not half] * max(1.0, float(logits.abs().max()))
    if apart > limit and half:
        del read  # one copy at a time
        rounded = load_saved(path, half.pop())
        torch.nn.Module.to(rounded, logits.device)
        limit = max(limit, HALF * between(canary_logits(rounded), found))
    if apart <= limit:
        return ""
    return f"its logits of a fixed text differ by {apart:.2g} (at most {limit:.2g} is rounding)"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
