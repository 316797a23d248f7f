"""A tiny base model from scratch: the starting point of the recipes that need no download.

Cross-entropy on the completion tokens of a source's demonstrations (prompts are context only),
AdamW, warm-up and cosine. Rows of equal length run together and no attention mask is needed, so
no time goes into padding. What is saved loads with AutoModelForCausalLM and AutoTokenizer.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from grpo import checkpoint, plugins
from grpo.console import Console
from grpo.data import SOURCES
from grpo.data.source import DemonstrationSource, TaskOrder, stable_hash
from grpo.errors import DataError, RecipeError
from grpo.log import RunLog
from grpo.schema import PretrainStage, Recipe
from grpo.types import Metrics, TaskSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
IGNORED = -100
# Rows share a forward pass when the shorter is at least this share of the longest: little padding.
MIN_FILL = 0.85

Pair = tuple[list[int], list[int]]  # prompt ids, completion ids with <eos>


def run(stage: PretrainStage, recipe: Recipe, folder: Path, console: Console) -> dict[str, Any]:
    """Leave a tiny base in `folder/model`; its summary. Starts over when cut."""
    source = plugins.load("source", stage.data.source, SOURCES, stage.data.args)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    total = stage.learner.max_steps
    with RunLog(
        folder,
        title=stage.name,
        max_steps=total,
        trackers=recipe.run.trackers,
        config=stage.model_dump(mode="json"),
        console=console,
    ) as log:
        metrics = pretrain(
            source,
            out_dir=str(folder / "model"),
            steps=total,
            batch_size=stage.learner.batch_size,
            learning_rate=stage.learner.learning_rate,
            warmup_steps=stage.learner.warmup_steps,
            weight_decay=stage.learner.weight_decay,
            seed=recipe.run.seed,
            hidden_size=stage.model.hidden_size,
            num_layers=stage.model.num_layers,
            num_heads=stage.model.num_heads,
            num_kv_heads=stage.model.num_kv_heads or stage.model.num_heads,
            intermediate_size=stage.model.intermediate_size,
            architecture=stage.model.architecture,
            max_position=stage.model.max_position,
            progress=log.step,
        )
    size = f"{metrics['parameters'] / 1e6:.2f}M parameters"
    result = f"{size}, loss {metrics['loss']:.3f} after {metrics['tokens'] / 1e6:.1f}M tokens"
    return {"result": result, "model": str(folder / "model"), **metrics}


@runtime_checkable
class WordSource(DemonstrationSource, Protocol):
    """A source some of whose texts are one token although they have several characters."""

    def words(self) -> tuple[str, ...]:
        """Those texts, spaces included; their letters need not be in the alphabet."""
        ...


def build_tokenizer(alphabet: str, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer with one token a character, one a tag and one for each of `words`.

    <pad> is 0 and <eos> is 1, both special. The four tags and the words are ordinary tokens, so
    that they stay in decoded text, which has no spaces added. A word is one token wherever it
    stands, even inside a longer text. A character outside the alphabet raises.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", *TAGS, *sorted(set(alphabet)), *words]
    # WordLevel without an unknown token: better an error than a silently missing digit.
    model = models.WordLevel({name: i for i, name in enumerate(names)})
    core = Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(["<pad>", "<eos>"])
    whole = [AddedToken(text, normalized=False, special=False) for text in (*TAGS, *words)]
    core.add_tokens(whole)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int | None,
    intermediate_size: int,
    architecture: Literal["llama", "qwen2"],
    max_position: int,
    seed: int,
) -> PreTrainedModel:
    """A randomly initialized float32 model with tied embeddings. Raises RecipeError."""
    from transformers import GenerationConfig, LlamaConfig, Qwen2Config
    from transformers.models.llama import LlamaForCausalLM
    from transformers.models.qwen2 import Qwen2ForCausalLM

    if hidden_size % num_heads or (hidden_size // num_heads) % 2:
        raise RecipeError(
            f"model.hidden_size={hidden_size} must be an even multiple of "
            f"model.num_heads={num_heads}"
        )
    num_kv_heads = num_kv_heads or num_heads
    if num_heads % num_kv_heads:
        raise RecipeError(
            f"model.num_kv_heads={num_kv_heads} must divide model.num_heads={num_heads}"
        )
    classes = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }
    if architecture not in classes:
        raise RecipeError(f"model.architecture must be llama or qwen2, not {architecture!r}")
    config_class, model_class = classes[architecture]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def pretrain(
    source: TaskSource,
    *,
    out_dir: str,
    steps: int,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    warmup_steps: int = 20,
    weight_decay: float = 0.01,
    seed: int = 0,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int | None = None,
    intermediate_size: int = 384,
    architecture: Literal["llama", "qwen2"] = "llama",
    max_position: int = 256,
    progress: Callable[[int, Metrics], None] | None = None,
) -> Metrics:
    """Pretrain on demonstrations of the train split and save model and tokenizer in `out_dir`.

    `progress(step, {"loss", "learning_rate"})` is called after each step (from 1). Returns loss
    (nats a completion token, mean of the last 10 steps), tokens, parameters and seconds.
    Raises DataError for a source without demonstrations or a row longer than `max_position`.
    """
    source = _demonstrating(source)
    if steps < 1 or batch_size < 1:
        raise RecipeError("a pretrain stage needs learner.max_steps and batch_size of at least 1")
    words = source.words() if isinstance(source, WordSource) else ()
    tokenizer = build_tokenizer(source.alphabet(), words)
    model = build_model(
        tokenizer,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate_size=intermediate_size,
        architecture=architecture,
        max_position=max_position,
        seed=seed,
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay
    )
    order = TaskOrder(source, "train", seed)
    started = time.perf_counter()
    losses: list[float] = []
    tokens = 0
    model.train()
    for step in range(steps):
        rows = demonstration_rows(source, order, tokenizer, batch_size)
        tokens += count_tokens(rows, max_position)
        rate = learning_rate * schedule(step, steps, warmup_steps)
        losses.append(_learn(model, optimizer, rows, rate))
        if progress is not None:
            progress(step + 1, {"loss": losses[-1], "learning_rate": rate})
    model.eval()

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, str(folder))

    out = Path(out_dir)
    checkpoint.make_folder(out.with_name(f"{out.name}.tmp"), write)
    checkpoint.replace(out.with_name(f"{out.name}.tmp"), out)
    return {
        "loss": sum(losses[-10:]) / len(losses[-10:]),
        "tokens": float(tokens),
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "seconds": time.perf_counter() - started,
    }


def _demonstrating(source: TaskSource) -> DemonstrationSource:
    if not isinstance(source, DemonstrationSource):
        raise DataError(
            f"{type(source).__name__} cannot be pretrained on: it has no alphabet() and "
            "demonstration(task, rng)"
        )
    return source


def count_tokens(rows: Sequence[Pair], max_position: int) -> int:
    """Of all rows; raises DataError for one that is longer than the model can be."""
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    if max(lengths) > max_position:
        raise DataError(
            f"a demonstration has {max(lengths)} tokens, more than "
            f"model.max_position={max_position}"
        )
    return sum(lengths)


def _learn(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, rows: Sequence[Pair], rate: float
) -> float:
    """One optimizer step on `rows`; the loss before it, in nats a completion token."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    trained = sum(len(completion) for _, completion in rows)
    loss = 0.0
    for chunk in by_length(rows):
        part = completion_loss(model, chunk) / trained
        part.backward()
        loss += part.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, out_dir: str) -> None:
    """Save so that transformers 4 loads it too: version 5 writes a class name that 4 lacks."""
    tokenizer.save_pretrained(out_dir)
    path = Path(out_dir) / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def demonstration_rows(
    source: DemonstrationSource, order: TaskOrder, tokenizer: PreTrainedTokenizerFast, n: int
) -> list[Pair]:
    """The next `n` demonstrations as token ids; repeated tasks draw a fresh demonstration."""
    prompts: list[str] = []
    completions: list[str] = []
    start = order.position
    for place, (task, _) in enumerate(order.take(n), start):
        if not isinstance(task.prompt, str):
            raise DataError(f"task {task.uid}: pretraining needs text prompts")
        # Keyed by the place in the order: an endless source repeats tasks, always at visit 0.
        key = stable_hash("demonstration", order.seed, place)
        prompts.append(task.prompt)
        completions.append(source.demonstration(task, random.Random(key)))
    try:
        encoding: Any = tokenizer(prompts + completions, add_special_tokens=False)
    except Exception as error:  # the tokenizers library raises a bare Exception
        known = set(source.alphabet())
        text = "".join(prompts + completions)
        for whole in tokenizer.get_added_vocab():
            text = text.replace(whole, "")
        missing = sorted(set(text) - known)
        raise DataError(f"characters {missing} are missing from the source's alphabet") from error
    encoded: list[list[int]] = encoding["input_ids"]
    eos: Any = tokenizer.eos_token_id
    return [(p, [*c, eos]) for p, c in zip(encoded[:n], encoded[n:], strict=True)]


def by_length(rows: Sequence[Pair]) -> list[list[Pair]]:
    """The rows in batches of nearly equal length, longest first."""
    ordered = sorted(rows, key=lambda row: len(row[0]) + len(row[1]), reverse=True)
    chunks: list[list[Pair]] = []
    for row in ordered:
        longest = sum(map(len, chunks[-1][0])) if chunks else 0
        if chunks and len(row[0]) + len(row[1]) >= MIN_FILL * longest:
            chunks[-1].append(row)
        else:
            chunks.append([row])
    return chunks


def completion_loss(model: PreTrainedModel, rows: Sequence[Pair]) -> torch.Tensor:
    """Summed cross-entropy (float32 scalar, nats) of the completion tokens of a few rows.

    Padding is on the right, where a causal model never looks at it, so no mask is passed.
    """
    longest = max(len(p) + len(c) for p, c in rows)
    ids_R_L = torch.zeros(len(rows), longest, dtype=torch.long)
    labels_R_L = torch.full((len(rows), longest), IGNORED)
    for r, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids_R_L[r, :end] = torch.tensor(prompt + completion)
        labels_R_L[r, len(prompt) : end] = torch.tensor(completion)
    logits_R_L_V = model(input_ids=ids_R_L[:, :-1], use_cache=False).logits
    return F.cross_entropy(
        logits_R_L_V.flatten(0, 1),
        labels_R_L[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
