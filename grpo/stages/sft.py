"""The sft stage: a cold start, or any other fine-tuning on prompt-completion rows.

    rows -> ids (the rl stage's template) -> trl.SFTTrainer, maybe on selected tokens -> model/

`fine_tune` is the stage without reading its data. The distill stage calls it with its own rows.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate.state import AcceleratorState
from transformers import PreTrainedTokenizerFast, PrinterCallback

from grpo.config.schema import DistillStage, Model, Recipe, Run, SFTStage
from grpo.errors import RecipeError
from grpo.learner.forward import disable_dropout
from grpo.learner.learner import DTYPES
from grpo.learner.saved import save_policy
from grpo.model import pretrained
from grpo.model.adapter import described, peft_model
from grpo.model.adapter_files import check_peft
from grpo.model.canary import canary_logits
from grpo.model.compute_types import check_supervised, chosen
from grpo.model.families import check_causal, check_family, check_packing
from grpo.model.quantize import quantize_base
from grpo.model.ranks import Ranks, join
from grpo.outside.files.lines import from_lines
from grpo.outside.terminal.console import Console
from grpo.rundir import checkpoint, finished
from grpo.rundir.log import RunLog
from grpo.stages.adapters import adapter_of
from grpo.stages.bars import bar
from grpo.stages.endings import check_trained_eos, vocab_size, warn_of_turn_end
from grpo.stages.from_scratch import save_tokenizer
from grpo.stages.interrupt import interruptible
from grpo.stages.prompting import longest_row, row_template, same_tokens
from grpo.stages.sft_trainer import Journal, StageTrainer, settings, training_set
from grpo.stages.slm import SLMTrainer, columns, reference_losses
from grpo.stages.supervised_rows import TextRow, TokenRow, encode_sets, mix, read_rows
from grpo.types import LoraSpec

ASIDE = "trainer.tmp"  # where the trainer writes before a checkpoint is whole
_MAIN = ""  # the rows of data.path, beside those of data.mix, which go by their paths


def run(stage: SFTStage, recipe: Recipe, folder: Path, console: Console) -> dict[str, Any]:
    """Fine-tune in `folder` from its newest checkpoint (or from nothing); its summary.

    The model is left in `folder/model`. Raises KeyboardInterrupt after saving when interrupted.
    """
    tokenizer = load_tokenizer(stage.model.path, stage.data.chat_template)
    sets = {_MAIN: read_rows(stage.data.path)}
    sets |= {path: read_rows(path) for path in stage.data.mix}
    with bar("rows to tokens", console) as progress:
        found, dropped = encoded(stage, sets, tokenizer, console, progress)
    others = {path: (share, found[path]) for path, share in stage.data.mix.items()}
    rows, counts = mix(found[_MAIN], others, recipe.run.seed)
    summary = fine_tune(
        rows, stage=stage, tokenizer=tokenizer, run=recipe.run, folder=folder, console=console
    )
    return {**summary, "dropped_rows": dropped, "mixed_rows": counts}


def load_tokenizer(path: str, chat_template: str = "") -> Any:
    """The tokenizer of a model, with `chat_template` if one is given.

    Raises RecipeError for a model that is not whole, or whose eos cannot be taught.
    """
    pretrained.check_model(path)
    tokenizer = pretrained.tokenizer(path, chat_template=chat_template)
    check_trained_eos(tokenizer, path)
    return tokenizer


def encoded(
    stage: SFTStage | DistillStage,
    sets: Mapping[str, Sequence[TextRow]],
    tokenizer: Any,
    console: Console,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, list[TokenRow]], int]:
    """`encode_sets` with the template and the greatest length of a stage."""
    template = row_template(stage, tokenizer, stage.model.path)
    if template.chat is not None:
        warn_of_turn_end(tokenizer, (tokenizer.eos_token_id,), taught=True)
    most = longest_row(stage.model.path, stage.learner)
    return encode_sets(sets, template, most, console, progress)


def frozen(path: str, model: Model, setting: str) -> Any:
    """The model in `path`, which teaches `model`: in its compute type, on the device."""
    dtype = DTYPES[chosen(model.dtype)]
    return pretrained.load_model(path, dtype, setting=setting).eval().to(join().device)


def fine_tune(
    rows: Sequence[TokenRow],
    *,
    stage: SFTStage | DistillStage,
    tokenizer: Any,
    run: Run,
    folder: Path,
    console: Console,
    trainer: Callable[..., StageTrainer] = StageTrainer,
) -> dict[str, Any]:
    """Fine-tune the stage's model on `rows`, resuming from the newest checkpoint in `folder`.

    The stage's data are not read. tokenizer: the one that made the rows; it is saved with the
    model. trainer: called with trl.SFTTrainer's keyword arguments; a subclass may change the loss.
    Leaves `folder/model` and returns the summary. Raises RecipeError for settings that do not fit
    the model or the machine, LearnerError for a loss that is not finite, KeyboardInterrupt after
    saving when interrupted.
    """
    model, learner, lora = stage.model, stage.learner, adapter_of(stage.model)
    ranks = _alone(stage.name, model)
    found = _go_back(folder, run, console)
    state: dict[str, Any] = found.state if found else {}
    with _quiet(), _own_precision():
        extra: dict[str, list[list[float]]] = {}
        if isinstance(stage, SFTStage) and stage.slm.select != "off":
            trainer = partial(SLMTrainer, slm=stage.slm)
            if stage.slm.select == "excess":
                extra = _references(rows, stage, tokenizer, folder, console)
        data = training_set(rows, learner, run.seed, extra)
        log = RunLog(
            folder,
            title=stage.name,
            max_steps=data.steps,
            done=state.get("step", 0),
            trackers=run.trackers,
            config=stage.model_dump(mode="json"),
            console=console,
        )
        saver = checkpoint.Saver(folder, run.save_total_limit)
        with log, saver, interruptible(log) as stop, checkpoint.disk_errors():
            journal = Journal(log, run, saver, stop, state.get("seconds", 0.0))
            policy = _policy(model, learner.packing)
            declared = copy.deepcopy((policy.config, policy.generation_config))
            recomputes = bool(getattr(policy, "supports_gradient_checkpointing", False))
            dtype, aside = chosen(model.dtype), folder / ASIDE
            made = trainer(
                model=_with_adapter(policy, lora, run.seed) if lora else policy,
                args=settings(data, learner, run, aside, dtype, ranks.device, recomputes),
                train_dataset=data.data,
                processing_class=_padding(tokenizer, vocab_size(model.path)),
                callbacks=[journal],
            )
            if lora:
                log.say(described(policy))
            _train(made, policy, journal, found)
            _save(policy, declared, (model.path, lora), tokenizer, folder / "model", ranks)
    checkpoint.remove(aside)  # made anew where no step was left to do
    return _summary(len(rows), made, journal.seconds, folder)


def _train(
    made: StageTrainer, policy: Any, journal: Journal, found: checkpoint.Checkpoint | None
) -> None:
    """Train from the checkpoint to the last step. Raises KeyboardInterrupt where it was asked."""
    made.remove_callback(PrinterCallback)
    made.tokens_trained = found.state.get("tokens_trained", 0) if found else 0
    journal.trainer = made
    made.train(resume_from_checkpoint=str(found.folder) if found else None)
    if journal.stopped:
        raise KeyboardInterrupt(f"interrupted; saved at step {made.state.global_step}")
    made.accelerator.unwrap_model(policy, keep_fp32_wrapper=False)  # its own precision again


def _go_back(folder: Path, run: Run, console: Console) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from, the metrics cut back to it. Raises RunError."""
    checkpoint.remove(folder / ASIDE)
    found = checkpoint.latest(folder, partial(console.print, markup=False, soft_wrap=True))
    checkpoint.rewind(folder / checkpoint.LOG, found.beside[checkpoint.LOG][0] if found else 0)
    if found and run.save_total_limit:
        old = checkpoint.beyond(folder, run.save_total_limit, newest=found.state["step"])
        finished.clear(folder, console, old)
    return found


def _summary(rows: int, made: StageTrainer, seconds: float, folder: Path) -> dict[str, Any]:
    lines = from_lines((folder / "metrics.jsonl").read_text(encoding="utf-8"))[-10:]
    losses = [line["loss"] for line in lines]
    loss, steps = sum(losses) / len(losses), made.state.global_step
    return {
        "result": f"{rows} rows, loss {loss:.3f} after {steps} steps, "
        f"{made.tokens_trained:,} tokens trained",
        "rows": rows,
        "steps": steps,
        "tokens_trained": made.tokens_trained,
        "loss": loss,  # nats per trained token, mean of the last 10 steps
        "seconds": round(seconds, 1),
        "model": str(folder / "model"),
    }


def _alone(title: str, model: Model) -> Ranks:
    """The one process the stage computes in. Raises RecipeError."""
    ranks = join()
    if ranks.count > 1:
        raise RecipeError(
            f"stage {title!r} fine-tunes in one process, and {ranks.count} were launched: "
            "run it with `grpo train`, without accelerate launch"
        )
    check_supervised(model.dtype, ranks.device)
    return ranks


def _policy(model: Model, packing: bool) -> Any:
    """The model in float32; under an adapter, the frozen base in the compute type or four bits.

    Raises RecipeError where it cannot learn from rows, or from several of them in one sequence.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)  # as `load_policy`: every batch is a new shape
    dtype = DTYPES[chosen(model.dtype)] if model.lora.on else torch.float32
    policy = pretrained.load_model(model.path, dtype, trained=True)
    disable_dropout(policy)  # as in reinforcement learning; it also makes a resumed run exact
    check_family(policy.config)
    check_causal(policy.eval())
    if packing:
        check_packing(policy)
    if model.quantization == "nf4":
        quantize_base(policy)
    return policy


def _with_adapter(policy: Any, lora: LoraSpec, seed: int) -> Any:
    """The policy in peft's wrapper. Raises RecipeError where it could not be loaded again."""
    torch.manual_seed(seed)  # a run that is begun anew has the same adapter
    wrapped = peft_model(policy, lora)
    check_peft(policy, lora)
    return wrapped


def _padding(tokenizer: Any, size: int) -> Any:
    """A copy for the trainer, which pads with an id that a model of `size` tokens has."""
    found = copy.deepcopy(tokenizer)
    if found.pad_token_id is not None and found.pad_token_id >= size:
        found.pad_token = found.eos_token
    return found


def _references(
    rows: Sequence[TokenRow], stage: SFTStage, tokenizer: Any, folder: Path, console: Console
) -> dict[str, list[list[float]]]:
    """The column of the reference's losses. Raises RecipeError for a reference of other tokens."""
    path = stage.slm.reference
    pretrained.check_model(path, "slm.reference")
    same_tokens("slm.reference", path, tokenizer, stage.model.path)
    reference = frozen(path, stage.model, "slm.reference")
    with bar("reference losses", console) as progress:
        losses = reference_losses(reference, rows, folder, progress)
    return columns(rows, losses)


def _save(
    policy: Any,
    declared: Any,
    origin: tuple[str, LoraSpec | None],
    tokenizer: Any,
    folder: Path,
    ranks: Ranks,
) -> None:
    """The model as the rl stage leaves one: an adapter merged, and beside it under `adapter/`.

    declared: its configurations as they were read; the trainer aligns them with the tokenizer.
    origin: the model that it was made from, and the adapter on it.
    """
    policy.config, policy.generation_config = declared
    aside = folder.with_suffix(".tmp")

    def write(place: Path) -> None:
        save_policy(
            policy,
            str(place),
            ranks,
            canary_logits(policy),
            base=origin[0],
            lora=origin[1],
        )
        if type(tokenizer) is PreTrainedTokenizerFast:  # of a pretrain stage
            save_tokenizer(tokenizer, str(place))
        else:
            tokenizer.save_pretrained(place)

    checkpoint.make_folder(aside, write)
    checkpoint.replace(aside, folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice of the libraries beside the stage's own view."""
    level = transformers.utils.logging.get_verbosity()
    bars = datasets.is_progress_bar_enabled()
    try:
        transformers.utils.logging.set_verbosity_error()
        datasets.disable_progress_bars()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # meant for their own developers
            yield
    finally:
        transformers.utils.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _own_precision() -> Iterator[None]:
    """Let the trainer set accelerate's process-wide precision, and undo it afterwards."""
    try:
        yield
    finally:
        AcceleratorState._reset_state()
        join()
