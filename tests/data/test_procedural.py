"""Parity, multiplication, countdown, arithmetic: right answers, disjoint splits, honest chains."""

from __future__ import annotations

import ast
import operator
import random
import re
from fractions import Fraction

import pytest

from grpo.data import SOURCES
from grpo.data.multiplication import Multiplication
from grpo.data.parity import Parity
from grpo.data.source import DemonstrationSource
from grpo.errors import DataError

PROCEDURAL = {
    "parity": {"bits": 8},
    "multiplication": {"digits": 2, "style": "plain", "verify_fraction": 0.5},
    "countdown": {"style": "plain", "max_number": 12},
    "arithmetic": {},
}
COMPLETION = re.compile(r"<think>(.+)</think><answer>(.+)</answer>")


@pytest.fixture(params=sorted(PROCEDURAL))
def source(request):
    return SOURCES[request.param](**PROCEDURAL[request.param])


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value(expression: str) -> Fraction:
    """Exact value of + - * / and parentheses over whole numbers."""

    def walk(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp):
            left, right = walk(node.left), walk(node.right)
            return (
                left / right
                if isinstance(node.op, ast.Div)
                else OPERATORS[type(node.op)](left, right)
            )
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand)
        assert isinstance(node, ast.Constant)
        return Fraction(node.value)

    return walk(ast.parse(expression, mode="eval").body)


def tasks(source, split, most=400):
    size = source.size(split)
    return [source.task(split, i) for i in range(most if size is None else min(size, most))]


def test_tasks_are_the_same_every_time(source):
    for split in ("train", "heldout"):
        assert tasks(source, split, 20) == tasks(source, split, 20)


def test_splits_share_no_cluster_and_no_prompt(source):
    train, heldout = tasks(source, "train", 3000), tasks(source, "heldout", 1000)
    assert {t.prompt for t in train}.isdisjoint(t.prompt for t in heldout)
    assert {t.cluster or t.uid for t in train}.isdisjoint(t.cluster or t.uid for t in heldout)


def test_demonstrations_stay_in_the_alphabet_and_answer_rightly(source):
    assert isinstance(source, DemonstrationSource)
    known, rng = set(source.alphabet()), random.Random(0)
    for task in tasks(source, "train", 200):
        match = COMPLETION.fullmatch(source.demonstration(task, rng))
        assert match
        assert set(task.prompt) | set(match[1]) | set(match[2]) <= known
        if task.answer is not None:
            assert match[2] == task.answer


@pytest.mark.parametrize("name", sorted(PROCEDURAL))
def test_long_fraction(name):
    args = {**PROCEDURAL[name], "long_fraction": 0.3}
    source, rng = SOURCES[name](**args), random.Random(1)
    shown = [source.demonstration(task, rng) for task in tasks(source, "train", 150)]
    short = sum("<think>-</think>" in text for text in shown) / len(shown)
    assert short == pytest.approx(0.7, abs=0.12)


def test_parity_by_hand():
    source = Parity(bits=4, long_fraction=1.0)
    seen = {}
    for split in ("train", "heldout"):
        for task in tasks(source, split):
            seen[task.prompt] = (task, split)
    assert len(seen) == 16
    assert source.size("heldout") == 4
    task, _ = seen["0111="]
    assert task.answer == "1"
    assert source.demonstration(task, random.Random(0)) == "<think>0101</think><answer>1</answer>"
    silent = Parity(bits=4, long_fraction=1.0, chain=False)
    assert silent.demonstration(task, random.Random(0)) == "<think>-</think><answer>1</answer>"


def test_parity_labels_are_balanced_in_both_splits():
    source = Parity()
    assert source.size("heldout") == 2048
    assert source.size("train") == 2**16 - 2048
    for split in ("train", "heldout"):
        share = sum(t.answer == "1" for t in tasks(source, split, 1000)) / 1000
        assert share == pytest.approx(0.5, abs=0.06)


def test_small_table_is_covered_once_with_both_orders_on_one_side():
    source = Multiplication(lo=2, hi=12, heldout_pairs=22)
    train, heldout = tasks(source, "train"), tasks(source, "heldout")
    products = [(t.columns["a"], t.columns["b"]) for t in train + heldout]
    assert sorted(products) == [(a, b) for a in range(2, 13) for b in range(2, 13)]
    assert len({t.cluster for t in heldout}) == 22
    held = {(t.columns["a"], t.columns["b"]) for t in heldout}
    assert held == {(b, a) for a, b in held}
    assert all(t.answer == str(t.columns["a"] * t.columns["b"]) for t in train + heldout)
    assert {t.prompt for t in train + heldout} >= {"What is 7 * 8?", "What is 8 * 7?"}


def test_the_first_tasks_stand_for_the_whole_split():
    found = tasks(Multiplication(digits=2, heldout_pairs=1500), "heldout", 500)
    squares = sum(t.columns["a"] == t.columns["b"] for t in found)
    assert 2 <= squares <= 20  # 33 of 2,967 tasks are squares
    assert len({t.cluster for t in found}) > 400


def test_default_small_table_holds_out_at_least_twenty_pairs():
    assert len({t.cluster for t in tasks(Multiplication(lo=2, hi=12), "heldout")}) >= 20


@pytest.mark.parametrize("heldout_pairs", [1, 2, 3, 4, 5])
def test_tiny_tables_split_without_loss(heldout_pairs):
    source = Multiplication(lo=1, hi=3, heldout_pairs=heldout_pairs)
    found = tasks(source, "train") + tasks(source, "heldout")
    assert len({t.uid for t in found}) == len(found) == 9
    assert len({t.cluster for t in tasks(source, "heldout")}) == heldout_pairs


def test_multiplication_chain_by_hand():
    source = Multiplication(digits=2, style="plain", long_fraction=1.0, verify_fraction=1.0)
    task = next(t for t in tasks(source, "train", 8000) if t.prompt == "12*34=")
    assert source.demonstration(task, random.Random(0)) == (
        "<think>12*4=48;12*30=360;48+360=408?34*2=68;34*10=340;68+340=408</think>"
        "<answer>408</answer>"
    )


def test_every_line_of_a_thought_is_a_true_equation():
    rng = random.Random(2)
    for name in ("multiplication", "countdown"):
        source = SOURCES[name](**{**PROCEDURAL[name], "long_fraction": 1.0})
        for task in tasks(source, "train", 100):
            thought = COMPLETION.fullmatch(source.demonstration(task, rng))[1]
            for line in re.split("[;?]", thought):
                left, right = line.rsplit("=", 1)
                assert value(left) == value(right), line


def test_every_thought_about_a_product_ends_in_it():
    source = Multiplication(digits=3, style="plain", long_fraction=1.0, verify_fraction=0.5)
    rng = random.Random(3)
    for task in tasks(source, "train", 100):
        thought = COMPLETION.fullmatch(source.demonstration(task, rng))[1]
        assert all(part.endswith(f"={task.answer}") for part in thought.split("?"))


def test_countdown_instances_are_solvable_with_each_number_once():
    for style in ("plain", "words"):
        source = SOURCES["countdown"](style=style)
        for task in tasks(source, "heldout", 150):
            numbers, target = task.columns["numbers"], task.columns["target"]
            solution = task.columns["solution"]
            assert sorted(map(int, re.findall(r"\d+", solution))) == sorted(numbers)
            assert value(solution) == target
            assert 3 <= len(numbers) <= 4
            assert 1 <= target <= 100
            assert str(target) in task.prompt
            assert task.answer is None


def test_countdown_split_ignores_the_order_of_the_numbers():
    source = SOURCES["countdown"](max_number=9, max_numbers=3)
    sides: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        for task in tasks(source, split, 3000):
            key = f"{sorted(task.columns['numbers'])}={task.columns['target']}"
            sides.setdefault(key, set()).add(split)
    assert len(sides) > 500
    assert all(len(side) == 1 for side in sides.values())


def test_arithmetic_answers():
    for task in tasks(SOURCES["arithmetic"](terms=4), "train", 100):
        assert value(task.prompt.removesuffix("=")) == int(task.answer)
        assert task.columns["totals"][-1] == int(task.answer)


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("parity", {"bits": "16"}, "bits must be a whole number from 2 to 256, not '16'"),
        ("parity", {"bits": 3, "heldout": 8}, "heldout must be a whole number from 1 to 7"),
        ("parity", {"long_fraction": 15}, "long_fraction must be from 0 to 1"),
        ("multiplication", {}, "either digits, or both lo and hi"),
        ("multiplication", {"lo": 2}, "hi must be a whole number"),
        ("multiplication", {"digits": 2, "lo": 2, "hi": 12}, "either digits, or both"),
        ("multiplication", {"lo": 5, "hi": 5}, "must be below"),
        ("multiplication", {"lo": 2, "hi": 12, "heldout_pairs": 66}, "from 1 to 65"),
        ("multiplication", {"lo": 2, "hi": 12, "prompt": "{x}?"}, "only"),
        ("multiplication", {"lo": 2, "hi": 12, "prompt": "{a}?"}, "must show"),
        ("multiplication", {"digits": 1, "style": "fancy"}, "words or plain"),
        ("countdown", {"min_numbers": 5}, "min_numbers must be a whole number from 2 to 4"),
        ("countdown", {"prompt": "{numbers}"}, "must show"),
        ("countdown", {"heldout_fraction": 0}, "both excluded"),
        ("arithmetic", {"prompt": "?"}, "must show"),
        ("arithmetic", {"terms": 2, "max_term": 1}, "too few expressions"),
    ],
)
def test_bad_arguments_are_one_sentence(name, args, says):
    with pytest.raises(DataError, match=re.escape(says)):
        SOURCES[name](**args)


@pytest.mark.parametrize("name", ["multiplication", "countdown"])
def test_only_the_plain_style_can_be_pretrained_on(name):
    args = {"digits": 2} if name == "multiplication" else {}
    with pytest.raises(DataError, match="only style 'plain'"):
        SOURCES[name](**args).alphabet()


def test_indices_outside_the_split_are_refused():
    with pytest.raises(IndexError):
        Parity(bits=4).task("heldout", 4)
    with pytest.raises(IndexError):
        SOURCES["countdown"]().task("train", -1)
