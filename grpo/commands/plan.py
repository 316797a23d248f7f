"""`grpo plan`: what a recipe will do, in named units, without doing it.

Token counts are upper bounds: every prompt and completion has the greatest length allowed. Memory
is weights, gradients, optimizer and KV cache. Activations depend on the batch and are not counted.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from math import ceil
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from grpo.config.schema import (
    AnyStage,
    DistillStage,
    EvalStage,
    Model,
    PretrainStage,
    Recipe,
    RejectStage,
    RLStage,
    SFTLearner,
    SFTStage,
)
from grpo.model import compute_types, pretrained
from grpo.outside.terminal.console import Console
from grpo.rollout.settings import TorchSettings
from grpo.stages import preflight
from grpo.stages.adapters import adapter_of

Rows = list[tuple[str, str, str]]  # unit, count, how it comes about
Size = dict[str, int]  # of a model, see `model_size`

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MB = 2**20


def main(recipe: Recipe, _arguments: Namespace) -> int:
    """Print the plan of a recipe; 0. Raises GrpoError."""
    print_plan(recipe)
    return 0


def print_plan(recipe: Recipe, console: Console | None = None) -> None:
    """Print one table per stage, after a look at all of them for what training would refuse.

    What this machine lacks, a package or room on the disk, is refused after the tables, which are
    of use elsewhere. Raises GrpoError.
    """
    console = console or Console()
    console.print(Text.assemble((recipe.name, "bold"), f" -> {recipe.run_dir}"))
    found = preflight.check(recipe)
    recipe = compute_types.settled(recipe)
    threads = recipe.run.threads or os.cpu_count() or 1
    sizes: dict[str, Size | None] = {}
    for stage in recipe.stages:
        heldout = found.heldout.get(stage.name)
        if isinstance(stage, PretrainStage):
            size = sizes[stage.name] = pretrain_size(stage)
            rows = pretrain_rows(stage, size)
        elif isinstance(stage, RLStage):
            size = sizes[stage.name] = model_size(stage.model, sizes)
            rows = rl_rows(stage, recipe.run.save_steps, size, heldout)
        else:
            rows = stage_rows(stage, heldout)
            if isinstance(stage, SFTStage | DistillStage):
                sizes[stage.name] = model_size(stage.model, sizes)
        title = f"stage {stage.name} ({stage.kind})"
        table = Table("unit", Column("count", justify="right"), "how", title=title)
        for row in (*rows, ("CPU threads", f"{threads}", thread_shares(stage, threads))):
            table.add_row(*row)
        console.print(table)
    for note in found.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    preflight.check_machine(recipe)


def thread_shares(stage: AnyStage, threads: int) -> str:
    """Who computes with the CPU threads of a run."""
    if isinstance(stage, RejectStage | EvalStage):
        return "the engine's"
    if not isinstance(stage, RLStage):
        return "the learner's"
    if stage.rollout.backend == "ray":
        share = max(1, threads // stage.rollout.workers)
        return f"the learner's; {share} for each of {stage.rollout.workers} workers"
    if stage.schedule.mode == "sync":
        return "shared by engine and learner, which take turns"
    return "for the engine and as many for the learner, which run at once"


def stage_rows(
    stage: SFTStage | RejectStage | DistillStage | EvalStage, heldout: int | None = None
) -> Rows:
    """What a stage without reinforcement learning does: completions sampled, steps taken.

    heldout: the held-out tasks that there are; None: not known.
    """
    if isinstance(stage, EvalStage):
        tasks, models = heldout or stage.num_tasks, len(stage.models)
        total = tasks * (1 + stage.num_samples) * models
        how = f"{models} models x {tasks} tasks x (1 greedy + {stage.num_samples} samples)"
        return [("completions", f"{total:,}", how)]
    rows: Rows = []
    if isinstance(stage, RejectStage | DistillStage):
        tasks, n = stage.filter.num_tasks, stage.rollout.num_generations
        rows.append(("completions", f"{tasks * n:,}", f"{tasks} tasks x {n} samples"))
        kept = tasks * min(n, stage.filter.keep)
        rows.append(("rows, at most", f"{kept:,}", f"{stage.filter.keep} kept per task"))
    if isinstance(stage, SFTStage | DistillStage):
        rows += sft_rows(stage.learner)
    return rows


def sft_rows(learner: SFTLearner) -> Rows:
    """Steps of supervised fine-tuning."""
    each = f"{learner.batch_size} {'packed sequences' if learner.packing else 'rows'} a step"
    if learner.max_steps:
        return [("optimizer steps", f"{learner.max_steps:,}", each)]
    return [("epochs", f"{learner.num_train_epochs:g}", each)]


def schedule_rows(stage: RLStage) -> Rows:
    """Engines, how far they run ahead, and how often they are checked."""
    rollout, schedule, agreement = stage.rollout, stage.schedule, stage.agreement
    ahead = {"sync": 0, "one_step_off": 1, "async": schedule.max_staleness}[schedule.mode]
    where = "Ray actors" if rollout.backend == "ray" else "in this process"
    checks = ceil(stage.learner.max_steps / agreement.steps) if agreement.steps else 0
    often = f"every {agreement.steps} steps, of each engine"
    rows = [
        ("engines", f"{rollout.workers:,}", f"{rollout.engine}, {where}"),
        ("steps sampled ahead", f"{ahead:,}", f"schedule.mode = {schedule.mode}"),
        ("agreement checks", f"{checks:,}", often if checks else "agreement.steps = 0: off"),
    ]
    if rollout.oversample > 1:
        begun = ceil(rollout.prompts_per_step * rollout.oversample)
        rows.append(("prompts begun per step", f"{begun:,}", "rollout.oversample"))
    if rollout.max_rounds > 1:
        rows.append(("sampling rounds per step", f"<= {rollout.max_rounds:,}", "dynamic sampling"))
    return rows


def rl_rows(
    stage: RLStage, save_steps: int, size: Size | None, heldout_tasks: int | None = None
) -> Rows:
    """The rows of an rl stage.

    heldout_tasks: how many there are; None: as many as are asked for.
    """
    rollout, learner, algorithm, heldout = stage.rollout, stage.learner, stage.algorithm, stage.eval
    P, G = rollout.prompts_per_step, rollout.num_generations
    length, prompt = rollout.longest_completion, stage.data.max_prompt_length
    shared = learner.share_prompts and bool(size is None or size.get("shares_prompts", 1))
    tokens = P * G * length + P * prompt * (1 if shared else G)
    passes, parts = algorithm.num_iterations, algorithm.num_minibatches
    micro = parts * ceil(tokens / parts / learner.tokens_per_micro_batch)
    updates = passes * parts
    saves = ceil(learner.max_steps / save_steps) if save_steps else 1  # the last step is one
    often = f"every {save_steps} steps, and " if save_steps else ""
    between = (learner.max_steps - 1) // heldout.steps if heldout.steps else 0
    asked = 0 if heldout.is_off else 1 + between + heldout.before
    when = "before, after and every eval.steps" if heldout.before else "after and every eval.steps"
    tasks = heldout_tasks or heldout.num_tasks
    answers = tasks * (1 + heldout.num_samples)
    once = "each prompt once for its group" if shared else "each prompt once per completion"
    of_all = f"{tasks} tasks x (1 greedy + {heldout.num_samples} samples)"
    rows = [
        ("steps", f"{learner.max_steps:,}", "learner.max_steps"),
        ("prompts per step", f"{P:,}", "rollout.prompts_per_step"),
        ("completions per step", f"{P * G:,}", f"{P} prompts x {G} generations"),
        ("completion tokens per step", f"<= {P * G * length:,}", f"{P * G} completions x {length}"),
        ("learner tokens per step", f"<= {tokens:,}", once),
        (
            "micro-batches per pass",
            f"<= {micro:,}",
            f"of {learner.tokens_per_micro_batch:,} tokens",
        ),
        ("optimizer steps per step", f"{updates:,}", f"{passes} passes x {parts} minibatches"),
        ("optimizer steps", f"<= {updates * learner.max_steps:,}", "fewer where every row is dead"),
        ("checkpoints", f"{saves:,}", f"{often}after the last step"),
        ("evaluations", f"{asked:,}", when if asked else "eval.num_tasks = 0: none"),
        ("completions per evaluation", f"{answers:,}", of_all),
    ]
    return rows + schedule_rows(stage) + curriculum_rows(stage) + memory_rows(stage, size)


def curriculum_rows(stage: RLStage) -> Rows:
    """What changes as the run goes: tasks, lengths, the reference, the model that is kept."""
    rows: Rows = []
    steps, length = stage.learner.max_steps, stage.rollout.max_completion_length
    for part in stage.data.args.get("parts", ()) if stage.data.source == "mixture" else ():
        temperature = part.get("temperature", stage.rollout.temperature)
        name = part.get("name", part.get("source"))
        rows.append((f"share of {name}", f"{part.get('weight', 1)}", f"temperature {temperature}"))
    if not isinstance(length, int):
        said = ", ".join(f"{tokens:,} from step {step:,}" for step, tokens in length.items())
        rows.append(("completion lengths", f"{len(length):,}", said))
    for rule in stage.curriculum:
        args = ", ".join(f"{key} = {value}" for key, value in rule.args.items())
        rows.append(("tasks passed over", rule.name, args or "as by default"))
    if sync := stage.algorithm.ref_model_sync_steps:
        rows.append(("reference refreshed", f"{steps // sync:,}", f"every {sync:,} steps"))
    if stage.eval.keep_best:
        rows.append(("model kept", "the best", "by pass@1, without a verifier by reward"))
    return rows


def memory_rows(stage: RLStage, size: Size | None) -> Rows:
    """Estimated memory of the training state and the KV cache."""
    if size is None:
        return [("memory", "unknown", f"{stage.model.path!r} is not on this machine")]
    n = size["parameters"]
    engine_bytes = BYTES[stage.rollout.dtype or stage.model.dtype]
    rows_at_once = min(
        stage.rollout.engine_args.get("max_rows", TorchSettings.max_rows),
        stage.rollout.prompts_per_step * stage.rollout.num_generations,
    )
    context = stage.data.max_prompt_length + stage.rollout.longest_completion
    cache = size["kv_values_per_token"] * engine_bytes * rows_at_once * context
    parts = {
        **_training_state(stage.model, n, size.get("adapter", 0)),
        "KV cache": (cache, f"<= {rows_at_once} rows x {context} tokens"),
    }
    if engine_bytes != 4:
        parts["engine's copy"] = (engine_bytes * n, stage.rollout.dtype or stage.model.dtype)
    if stage.algorithm.beta > 0 and not stage.model.lora.on:
        parts["reference model"] = (4 * n, "algorithm.beta > 0")
    rows = [(name, f"{count / MB:,.1f} MB", how) for name, (count, how) in parts.items()]
    total = sum(count for count, _ in parts.values())
    return [*rows, ("memory", f"{total / MB:,.1f} MB", "plus activations")]


def _training_state(model: Model, n: int, adapter: int) -> dict[str, tuple[float, str]]:
    """name -> (bytes, how) of weights, gradients and moments.

    adapter: its numbers; 0 where they are not known, as on the model of an earlier stage.
    """
    if not model.lora.on:
        return {
            "weights (float32)": (4 * n, f"{n:,} parameters"),
            "gradients (float32)": (4 * n, ""),
            "optimizer": (8 * n, "two AdamW moments, float32"),
        }
    width = BYTES[model.dtype] if model.quantization == "none" else 0.5
    kind = model.dtype if model.quantization == "none" else f"{model.quantization}, about"
    return {
        f"base ({kind})": (width * n, f"{n:,} frozen parameters"),
        "adapter (float32)": (16 * adapter, f"{adapter:,} parameters, gradients, two moments")
        if adapter
        else (0, "not known before the earlier stage has run"),
    }


def pretrain_rows(stage: PretrainStage, size: Size) -> Rows:
    """The rows of a pretrain stage."""
    steps, batch = stage.learner.max_steps, stage.learner.batch_size
    n = size["parameters"]
    return [
        ("optimizer steps", f"{steps:,}", "learner.max_steps"),
        ("sequences per step", f"{batch:,}", "learner.batch_size"),
        ("sequences", f"{steps * batch:,}", f"{steps} steps x {batch}"),
        ("tokens", f"<= {steps * batch * stage.model.max_position:,}", "model.max_position each"),
        ("parameters", f"{n:,}", f"{stage.model.architecture}, without embeddings"),
        ("memory", f"{16 * n / MB:,.1f} MB", "weights, gradients, optimizer; plus activations"),
    ]


def pretrain_size(stage: PretrainStage) -> Size:
    """Parameters outside the embeddings, and numbers kept per token by the KV cache."""
    model = stage.model
    head = model.hidden_size // model.num_heads
    kv = (model.num_kv_heads or model.num_heads) * head
    attention = 2 * model.hidden_size * (model.hidden_size + kv)
    bias = model.hidden_size + 2 * kv if model.architecture == "qwen2" else 0
    mlp = 3 * model.hidden_size * model.intermediate_size
    block = attention + bias + mlp + 2 * model.hidden_size
    return {
        "parameters": model.num_layers * block + model.hidden_size,
        "kv_values_per_token": 2 * model.num_layers * kv,
    }


def model_size(model: Model, earlier: Mapping[str, Size | None]) -> Size | None:
    """Parameters and KV-cache numbers per token of the policy, from its config alone.

    None where the model is a hub id that is not on this machine.
    """
    path = model.path
    if path.startswith("stage:"):
        found = earlier.get(path.removeprefix("stage:"))
        return found and {**found, "adapter": 0}
    if not (Path(path) / "config.json").is_file():
        return None
    import torch  # lazy: a plan without a local model needs no torch
    from transformers import AutoModelForCausalLM

    from grpo.model.adapter import adapter_size
    from grpo.model.families import kv_values_per_token, may_share_prompts

    config = pretrained.own_config(path)
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    spec = adapter_of(model)
    return {
        "parameters": sum(p.numel() for p in policy.parameters()),
        "adapter": adapter_size(policy, spec) if spec else 0,
        "kv_values_per_token": kv_values_per_token(config.get_text_config()),
        "shares_prompts": int(may_share_prompts(policy)),
    }
