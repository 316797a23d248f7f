"""Which tasks a held-out evaluation asks; a source without enough of them is a sentence."""

from __future__ import annotations

import pytest

from grpo.errors import DataError
from grpo.evaluation import heldout
from grpo.types import Prompt, Task


class Endless:
    """A source without end that holds seven different tasks."""

    def size(self, split):
        return None

    def task(self, split, index):
        return Task(uid=str(index % 7), prompt="?")


class Template:
    def __init__(self, fits):
        self.fits = fits

    def render(self, task):
        return Prompt(task=task, text="?", ids=(1,)) if self.fits else None

    def limit(self):
        return 4, "data.max_prompt_length=4"


def test_an_endless_source_gives_each_task_once():
    prompts = heldout.prepare(Endless(), Template(True), 5)
    assert [p.task.uid for p in prompts] == list("01234")
    assert len(heldout.prepare(Endless(), Template(True), 20)) == 7


def test_an_endless_source_in_which_nothing_fits_is_a_sentence():
    with pytest.raises(DataError, match="max_prompt_length"):
        heldout.prepare(Endless(), Template(False), 5)
