"""The sections `rollout` and `algorithm` of a recipe, from a `GRPOConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grpo.config.trl.batches import Batches
from grpo.config.trl.grpo_fields import FIELDS
from grpo.config.trl.settings import GRPOConfig, same
from grpo.errors.sampling_settings import reason
from grpo.method.table import OBJECTIVES

Tree = dict[str, Any]
ADVANTAGES = {"group": "grpo", "batch": "batch", "none": "dr_grpo"}
CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
# Keys of generation_kwargs that are settings of their own; they go before the fields, as in TRL.
OWN = ("temperature", "top_p", "top_k", "min_p", "stop", "stop_strings")
SAME = {"do_sample": True, "repetition_penalty": 1.0, "num_beams": 1, "n": 1}  # what is done anyway


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is said of a config besides the recipe: notes, and field -> why it is refused."""

    notes: list[str] = field(default_factory=list[str])
    refused: dict[str, str] = field(default_factory=dict[str, str])

    def refuse(self, config: GRPOConfig, name: str, why: str) -> None:
        """Record that the value of a field is refused; the first reason stands."""
        self.refused.setdefault(name, f"{name} = {getattr(config, name)!r}: {why}")

    def note(self, config: GRPOConfig, name: str, why: str) -> None:
        """Record what a value does not do."""
        self.notes.append(f"{name} = {getattr(config, name)!r}: {why}")


def changes(config: GRPOConfig, name: str) -> bool:
    """Whether a field is not at its default."""
    return not same(getattr(config, name), FIELDS[name].default)


def rollout(config: GRPOConfig, batches: Batches, found: Found) -> Tree:
    """How completions are sampled."""
    given = dict(config.generation_kwargs or {})
    drawn = {name: given.get(name, getattr(config, name)) for name in OWN[:4]}
    others = [n for n, value in given.items() if n not in OWN and not same(SAME.get(n), value)]
    if others:
        found.refuse(config, "generation_kwargs", ". ".join(map(reason, others)))
    tree: Tree = {
        "prompts_per_step": batches.prompts,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_completion_length,
        "temperature": drawn["temperature"],
        "top_p": drawn["top_p"],
        "top_k": max(0, drawn["top_k"] or 0),
        "min_p": drawn["min_p"] or 0.0,
        **_engine(config, found),
    }
    stop = given.get("stop", given.get("stop_strings"))
    if stop:
        tree["stop"] = [stop] if isinstance(stop, str) else list(stop)
    return tree


def _engine(config: GRPOConfig, found: Found) -> Tree:
    """The engine; its arguments are those that TRL would read."""
    colocated = {
        "vllm_gpu_memory_utilization": "gpu_memory_utilization",
        "vllm_tensor_parallel_size": "tensor_parallel_size",
        "vllm_enable_sleep_mode": "enable_sleep_mode",
        "vllm_max_model_length": "max_model_len",
    }
    of_server = (
        "vllm_server_base_url",
        "vllm_server_host",
        "vllm_server_port",
        "vllm_server_timeout",
    )
    unread: tuple[str, ...] = ()
    if not config.use_vllm:
        unread = ("vllm_mode", *colocated, *of_server)
        tree: Tree = {"engine": "torch"}
    elif config.vllm_mode == "colocate":
        unread = of_server
        args = {ours: getattr(config, theirs) for theirs, ours in colocated.items()}
        args = {name: value for name, value in args.items() if value is not None}
        tree = {"engine": "vllm", "engine_args": args}
    else:
        if config.vllm_mode != "server":
            found.refuse(config, "vllm_mode", "valid: colocate, server")
        unread = tuple(colocated)
        host = {"0.0.0.0": "127.0.0.1"}.get(config.vllm_server_host, config.vllm_server_host)
        url = config.vllm_server_base_url or f"http://{host}:{config.vllm_server_port}"
        tree = {
            "engine": "server",
            "engine_args": {"url": url, "wait": float(config.vllm_server_timeout)},
        }
        found.note(config, "vllm_mode", "start the server with `grpo serve`, not `trl vllm-serve`")
    for name in unread:
        if changes(config, name):
            found.note(config, name, "changes nothing here, as TRL does not read it in this mode")
    return tree


def algorithm(config: GRPOConfig, batches: Batches, found: Found) -> Tree:
    """The estimator of the policy's gradient."""
    loss = _loss_type(config, found)
    tree: Tree = {
        "advantage": _advantage(config, found),
        "loss_type": loss,
        "loss_args": _loss_args(config, loss, found),
        "beta": config.beta,
        "epsilon": config.epsilon,
        "num_iterations": config.num_iterations,
        "num_minibatches": batches.minibatches,
        "mask_truncated_completions": config.mask_truncated_completions,
        **_correction(config, found),
        **_reference(config, batches, found),
    }
    unused = OBJECTIVES[loss].unused
    for name in ("epsilon_high", "delta"):
        value = getattr(config, name)
        if name == "epsilon_high" and value is None and OBJECTIVES[loss].caps_ratio:
            tree[name] = config.epsilon
        elif value is not None and name in unused:
            found.note(config, name, f"changes nothing, as loss_type={loss!r} does not use it")
        elif value is not None:
            tree[name] = value
    if batches.minibatches > 1:
        found.notes.append(
            f"a rollout batch has {batches.minibatches} optimizer steps in a pass: whole groups "
            "are dealt to them and each is divided by its own tokens, where TRL deals single "
            "completions and divides by the mean"
        )
    return tree


def _advantage(config: GRPOConfig, found: Found) -> str:
    if config.multi_objective_aggregation == "normalize_then_sum":
        if changes(config, "scale_rewards"):
            found.note(config, "scale_rewards", "changes nothing with normalize_then_sum")
        return "gdpo"
    if config.multi_objective_aggregation != "sum_then_normalize":
        found.refuse(
            config, "multi_objective_aggregation", "valid: sum_then_normalize, normalize_then_sum"
        )
    if config.scale_rewards not in ADVANTAGES:
        found.refuse(config, "scale_rewards", f"valid: {', '.join(ADVANTAGES)}, True, False")
    return ADVANTAGES.get(config.scale_rewards, "grpo")


def _loss_type(config: GRPOConfig, found: Found) -> str:
    loss, level = config.loss_type, config.importance_sampling_level
    known = tuple(name for name in OBJECTIVES if name != "gspo")
    if loss not in known:
        why = "TRL's name for it is 'grpo' with importance_sampling_level='sequence'"
        found.refuse(config, "loss_type", why if loss == "gspo" else f"valid: {', '.join(known)}")
        return "dapo"
    if level not in ("token", "sequence"):
        found.refuse(config, "importance_sampling_level", "valid: token, sequence")
    elif loss == "luspo" and level != "sequence":
        found.refuse(config, "loss_type", "needs importance_sampling_level='sequence', its own")
    elif loss == "vespo" and level != "token":
        found.refuse(config, "importance_sampling_level", "vespo has its own ratio; leave it out")
    if loss != "bnpo":
        return loss
    if config.gradient_accumulation_steps > 1:
        why = "it depends on how a step is cut into micro-batches, here by tokens; use dapo"
        found.refuse(config, "loss_type", why)
    return "dapo"  # one micro-batch is the whole step, and so is its number of tokens


def _loss_args(config: GRPOConfig, loss: str, found: Found) -> Tree:
    """The constants of the loss that are not at TRL's defaults, which are ours."""
    own = OBJECTIVES[loss].arguments
    tree: Tree = {}
    for name in FIELDS:
        if FIELDS[name].setting != "algorithm.loss_args" or not changes(config, name):
            continue
        if name.startswith(("sapo_", "vespo_")) and name not in own:
            found.note(config, name, f"changes nothing with loss_type={config.loss_type!r}")
        elif name != "importance_sampling_level" or name not in OBJECTIVES[loss].fixed:
            tree[name] = getattr(config, name)
    return tree


def _correction(config: GRPOConfig, found: Found) -> Tree:
    """Importance weights for the sampler's errors, which TRL has with vLLM alone."""
    named, capped, old = (
        f"vllm_importance_sampling_{part}" for part in ("mode", "clip_max", "cap")
    )
    if not (config.use_vllm and config.vllm_importance_sampling_correction):
        for name in (named, capped, old):
            if changes(config, name):
                found.note(config, name, "changes nothing without use_vllm and its correction")
        return {"sampling_correction": "none"}
    mode = config.vllm_importance_sampling_mode
    if mode not in CORRECTIONS:
        found.refuse(config, named, f"valid: {', '.join(CORRECTIONS)}")
        mode = "none"
    cap = config.vllm_importance_sampling_cap or config.vllm_importance_sampling_clip_max
    return {"sampling_correction": mode, "sampling_correction_cap": cap}


def _reference(config: GRPOConfig, batches: Batches, found: Found) -> Tree:
    """When the policy becomes the reference."""
    if not config.sync_ref_model:
        for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
            if changes(config, name):
                found.note(config, name, "changes nothing without sync_ref_model")
        return {}
    every = config.ref_model_sync_steps
    if config.ref_model_mixup_alpha != 1.0:
        why = "the policy replaces the whole reference; set it to 1.0, or sync_ref_model to False"
        found.refuse(config, "ref_model_mixup_alpha", why)
    if not config.beta:
        found.refuse(config, "sync_ref_model", "beta = 0 has no reference model; set beta above 0")
    if every < 1 or every % batches.updates:
        why = f"optimizer steps; a rollout batch has {batches.updates}, so use a multiple of that"
        found.refuse(config, "ref_model_sync_steps", why)
    return {"ref_model_sync_steps": max(1, every // batches.updates)}
