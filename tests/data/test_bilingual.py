"""Bilingual parity: right thoughts in both scripts, one token a word, shares as asked."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest

from grpo.data.mixture import Mixture
from grpo.data.parity import Bilingual, Parity
from grpo.data.source import DemonstrationSource, TaskOrder
from grpo.errors import DataError
from grpo.rewards.language import words_by_script
from grpo.stages.from_scratch import WordSource, build_tokenizer
from grpo.stages.pretrain import demonstration_rows

PARITY = {"odd ": 1, "even ": 0, "奇": 1, "偶": 0}
WORD = re.compile("odd |even |奇|偶")
PARTS = [
    {"name": "reasoning", "source": "bilingual", "args": {"bits": 6}, "weight": 3},
    {"name": "general", "source": "bilingual", "args": {"bits": 6, "ask": "last"}},
]


def thoughts(source: Bilingual, count: int = 300) -> list[tuple[str, str, list[str]]]:
    """(bits, answer shown, words of the thought) of the first training tasks."""
    found = []
    for index in range(count):
        task = source.task("train", index % source.size("train"))
        text = source.demonstration(task, random.Random(index))
        match = re.fullmatch("<think>(.*)</think><answer>(.)</answer>", text)
        assert match
        assert match[1] == "-" or "".join(WORD.findall(match[1])) == match[1]
        found.append((str(task.prompt)[:-1], match[2], WORD.findall(match[1])))
    return found


def test_words_carry_the_running_parity():
    for bits, answer, words in thoughts(Bilingual(bits=6, long_fraction=1.0)):
        assert [PARITY[word] for word in words] == [bits[: i + 1].count("1") % 2 for i in range(6)]
        assert answer == str(bits.count("1") % 2)


def test_scripts_mix_at_the_asked_rates():
    found = thoughts(Bilingual(bits=12, long_fraction=1.0, english=0.8, switch=0.3), 1000)
    english = [[word in ("odd ", "even ") for word in words] for _, _, words in found]
    assert sum(flags[0] for flags in english) / 1000 == pytest.approx(0.8, abs=0.04)
    changed = [a != b for flags in english for a, b in pairwise(flags)]
    assert sum(changed) / len(changed) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("english", "script"), [(1.0, "LATIN"), (0.0, "CJK")])
def test_one_language_without_switches(english, script):
    source = Bilingual(bits=6, long_fraction=1.0, english=english, switch=0.0)
    for _, _, words in thoughts(source, 50):
        assert words_by_script("".join(words)) == {script: 6}


def test_tasks_are_those_of_parity():
    mine, theirs = Bilingual(bits=6), Parity(bits=6)
    for split in ("train", "heldout"):
        assert mine.size(split) == theirs.size(split)
        assert mine.task(split, 3) == theirs.task(split, 3)


def test_the_last_bit_needs_no_thought():
    source = Bilingual(bits=6, ask="last", long_fraction=1.0)
    task = source.task("heldout", 2)
    assert task.prompt == str(Parity(bits=6).task("heldout", 2).prompt)[:-1] + "-"
    assert task.answer == task.prompt[5]
    for bits, answer, words in thoughts(source, 50):
        assert (answer, words) == (bits[-1], [])


def test_every_word_is_one_token_and_text_comes_back():
    source = Bilingual(bits=6, long_fraction=1.0)
    assert isinstance(source, WordSource)
    assert not isinstance(Parity(bits=6), WordSource)
    tokenizer = build_tokenizer(source.alphabet(), source.words())
    text = "<think>odd even 奇偶odd </think><answer>1</answer>"
    ids = tokenizer.encode(text)
    assert len(ids) == 1 + 5 + 1 + 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    with pytest.raises(Exception, match="UNK"):
        tokenizer.encode("odd")  # without its space it is no word
    rows = demonstration_rows(source, TaskOrder(source, "train", 0), tokenizer, 20)
    assert {len(completion) for _, completion in rows} == {1 + 6 + 1 + 3 + 1}


def test_a_mixture_shows_each_part_as_the_part_itself_would():
    mixture = Mixture(PARTS)
    assert isinstance(mixture, DemonstrationSource)
    assert set(mixture.alphabet()) == set("01=-奇偶")
    assert mixture.words() == ("even ", "odd ")
    alone = {part["name"]: Bilingual(**part["args"]) for part in PARTS}
    for index in range(40):
        task = mixture.task("train", index)
        part = alone[task.columns["task"]]
        assert mixture.demonstration(task, random.Random(7)) == part.demonstration(
            task, random.Random(7)
        )


def test_a_mixture_with_a_part_that_shows_nothing(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n' * 20)
    mixture = Mixture([*PARTS, {"name": "mute", "source": "file", "args": {"path": str(rows)}}])
    with pytest.raises(DataError, match="'mute' cannot be pretrained on"):
        mixture.alphabet()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"ask": "sum"}, "ask 'sum'"),
        ({"switch": 1.5}, "bilingual: switch must be from 0 to 1"),
        ({"english": -1}, "bilingual: english must be"),
        ({"bits": 1}, "bits must be a whole number"),
    ],
)
def test_arguments_that_cannot_be(args, says):
    with pytest.raises(DataError, match=says):
        Bilingual(**args)
