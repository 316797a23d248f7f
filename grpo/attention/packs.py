"""What lies in a flat row: prompts, and the completions that share them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A prompt and the completions that share it, side by side in a flat row."""

    start: int  # where the prompt begins
    prompt: int  # its length
    completions: tuple[tuple[int, int], ...]  # (start, length) of each
