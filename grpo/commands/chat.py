"""`grpo chat MODEL [MODEL]`: one question, the answers of one or two models side by side.

Reads questions line by line, from a terminal or from a pipe. Each question stands alone: base
models trained on single problems have no use for a history.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.panel import Panel
from rich.text import Text

from grpo.commands import out_of_memory
from grpo.errors import DataError, RecipeError
from grpo.errors.printable import printable
from grpo.model import pretrained
from grpo.model.model_files import models_in
from grpo.outside.terminal.console import Console, Said


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A model that answers."""

    name: str
    model: Any
    tokenizer: Any


def main(arguments: Namespace) -> int:
    """Talk as the command line says; 0. Raises GrpoError."""
    if len(arguments.models) > 2:
        raise RecipeError(f"chat takes one or two models, not {len(arguments.models)}.")
    if arguments.temperature < 0:
        raise RecipeError(f"--temperature {arguments.temperature:g} must be 0 (greedy) or above.")
    shorter = f"--max-tokens {max(1, arguments.max_tokens // 2)}"
    one = ["one MODEL at a time"] if len(arguments.models) > 1 else []
    with out_of_memory.explained_by(*one, shorter):
        chat(
            arguments.models,
            template=arguments.template,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
        )
    return 0


def chat(
    models: Sequence[str],
    *,
    template: str | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    console: Console | None = None,
) -> None:
    """Answer every question on standard input until it ends, or `quit`. Raises RecipeError."""
    console = console or Console()
    speakers = [load(model) for model in models]
    for question in questions(console):
        try:
            answers = [reply(s, question, template, max_tokens, temperature) for s in speakers]
        except DataError as error:  # a question that the model cannot read does not end the talk
            console.print(str(error), style="yellow")
            continue
        width = max(20, console.width // len(speakers) - 1)
        panels = [
            Panel(
                Said(printable(answer), overflow="fold"),
                title=Text(speaker.name),
                title_align="left",
                width=width,
            )
            for speaker, answer in zip(speakers, answers, strict=True)
        ]
        console.print(Columns(panels, padding=(0, 1)))


def questions(console: Console) -> Iterator[str]:
    """Lines of standard input, with a prompt when a person is typing."""
    if not sys.stdin.isatty():
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    console.print("One question a line; empty line or Ctrl-D to leave.", style="dim")
    while True:
        try:
            line = console.input(Text("> ", style="bold")).strip()
        except EOFError:
            return
        if line in ("", "quit", "exit"):
            return
        yield line


def load(path: str) -> Speaker:
    """Model and tokenizer of a folder or hub id, or of a run's folder (its final model)."""
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        folder = next(iter(models_in(folder)), folder)
    source = str(folder) if folder.is_dir() else path
    pretrained.check_model(source, "MODEL")  # before its weights are read

    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = pretrained.tokenizer(source, "MODEL")
    model = pretrained.load_model(source, setting="MODEL")
    return Speaker(name=path, model=model.eval(), tokenizer=tokenizer)


def reply(
    speaker: Speaker, question: str, template: str | None, max_tokens: int, temperature: float
) -> str:
    """The completion of one question."""
    import torch

    from grpo.data.prompts import PromptTemplate
    from grpo.rollout.texts import completion_text
    from grpo.types import Task

    tokenizer = speaker.tokenizer
    chosen = template or ("chat" if tokenizer.chat_template else "raw")
    prompt = PromptTemplate(chosen, tokenizer).render(Task(uid="chat", prompt=question))
    assert prompt is not None  # only over-long prompts are refused, and there is no limit here
    ids = torch.tensor([prompt.ids])
    limit = getattr(speaker.model.config, "max_position_embeddings", None)
    room = max(1, limit - ids.shape[1]) if limit else max_tokens
    # What training samples from: nothing of the model's own generation_config.json but its ends.
    sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
    if temperature > 0:
        sampling |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.no_grad():
        out = speaker.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(max_tokens, room),
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            **sampling,
        )
    said: list[int] = out[0, ids.shape[1] :].tolist()
    declared: Any = speaker.model.generation_config.eos_token_id
    eos = {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])}
    return completion_text(tokenizer, said, [i for i in eos if i is not None])
