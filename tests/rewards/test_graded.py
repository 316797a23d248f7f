"""Graded rewards against hand-computed values and peers; gates and GDPO's normalization."""

from __future__ import annotations

import math
import time

import pytest

from grpo.errors import PluginError
from grpo.rewards import REWARDS
from grpo.rewards.form import CosineLength, Repetition, SoftOverlong, repeated_share
from grpo.rewards.language import LanguageConsistency, words_by_script
from grpo.rewards.routed import Gate


def call(reward, *completions, ids=None, **columns):
    rows = len(completions)
    return reward(
        prompts=["q"] * rows,
        completions=list(completions),
        completion_ids=ids or [[1]] * rows,
        **{name: [value] * rows for name, value in columns.items()},
    )


def test_tags_pays_a_quarter_for_each_tag_that_is_there_once():
    tags = REWARDS["tags"]()
    assert call(tags, "<think></think><answer></answer>", "<think><think></think><answer>", "") == [
        1.0,
        0.5,
        0.0,
    ]


def test_cosine_length_by_hand():
    reward = CosineLength(max_length=10)
    right, wrong = "<answer>4</answer>", "<answer>5</answer>"
    ids = [[0] * 5, [0] * 5, [0] * 10, [0] * 99]
    got = call(reward, right, wrong, right, wrong, ids=ids, answer="4")
    assert got == pytest.approx([0.75, -0.75, 0.5, -0.5])
    shortest = call(reward, right, wrong, ids=[[0], [0]], answer="4")
    falling = 0.5 * (1 + math.cos(math.pi / 10))
    assert shortest == pytest.approx([0.5 + 0.5 * falling, -0.5 - 0.5 * falling])
    assert call(reward, right, answer=" ") == [None]


def test_soft_overlong_equals_trl():
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=8)
    ids = [[0] * n for n in (0, 5, 12, 13, 16, 19, 20, 21, 40)]
    ours = call(SoftOverlong(20, 8), *["x"] * len(ids), ids=ids)
    # they count an empty completion's ids; so do we, where there are any
    assert ours[1:] == pytest.approx(theirs(completion_ids=ids)[1:])
    with pytest.raises(PluginError):
        SoftOverlong(20, 0)


def test_repetition_by_hand():
    assert repeated_share(["a", "b", "a", "b"], 2) == pytest.approx(1 / 3)
    assert call(Repetition(2, -3.0), "a b a b", "a b c", "a") == pytest.approx([-1.0, 0.0, 0.0])
    assert call(Repetition(1, -1.0), "哈哈哈哈") == pytest.approx([-0.75])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("two words", {"LATIN": 2}),
        ("x + y = 3, so a is it", {"LATIN": 3}),  # single letters are variables
        ("我们 need 两个 words", {"CJK": 4, "LATIN": 2}),
        ("ひらがな", {"HIRAGANA": 4}),
        ("cafe\u0301 noir", {"LATIN": 2}),
        ("Привет, мир", {"CYRILLIC": 2}),
        ("नमस्ते दुनिया", {"DEVANAGARI": 2}),  # vowel signs are marks without a combining class
        ("costs $5 and 你好 then $6 more", {"LATIN": 2, "CJK": 2}),
        ("`你好`", {"CJK": 2}),
        (r"so $\text{abc} + x$ and \frac{1}{2} `code here` https://a.b/c?d end", {"LATIN": 3}),
        ("before\n```python\nfor word in words: pass\n```\nafter", {"LATIN": 2}),
        ("12 345", {}),
        ("see https://example.com/路径/数字 and http://例子.测试/路径?值=数 now", {"LATIN": 3}),
        ("see 例子.com, www.例子.com/路径 and a.org/数字 now", {"LATIN": 3}),
        ("mail 张三@example.com or a@例子.com now", {"LATIN": 3}),
        (
            "open /home/用户/文件.txt or C:\\用户\\文件 or ./数据/a.csv or 数据/训练.csv",
            {"LATIN": 4},
        ),
        ("here `变量 = 数字` and ``值`` and <code>打印</code> stay out", {"LATIN": 5}),
        ("so\n```python\nprint('你好世界')  # 打印\n```\nprints it", {"LATIN": 3}),
        (r"the area $\text{面积} = 5$ and \(\mathrm{长}\) are", {"LATIN": 4}),
        ("他/她 and/or 你好", {"CJK": 4, "LATIN": 2}),
        ("`我们先把两个数字加起来然后再除以二` ok then", {"CJK": 17, "LATIN": 2}),  # hidden in code
    ],
)
def test_words_by_script(text, words):
    assert dict(words_by_script(text)) == words


@pytest.mark.parametrize(
    "mark",
    [
        "\\[",
        "\\(",
        "$a",
        "$$a",
        "`a\n",
        "```a",
        "<a",
        "\\[a\\(",
        "a.",
        "/a",
        "a@",
        "a/",
        "www.",
        "路",
        "路.",
        "./",
        "<code>",
        "http://",
    ],
)
def test_marks_that_are_never_closed_take_linear_time(mark):
    start = time.monotonic()
    words_by_script(mark * 30_000)
    assert time.monotonic() - start < 2


def test_language_consistency():
    english, chinese = LanguageConsistency(), LanguageConsistency("zh")
    mixed = "<think>let us add 两个数 now</think><answer>4</answer>"
    assert call(english, mixed) == pytest.approx([4 / 7])
    assert call(chinese, mixed) == pytest.approx([3 / 7])
    assert call(english, "<think> </think>a long answer in English") == [0.0]
    assert call(english, "<think>$x=1$</think>4", "ok") == [None, None]
    assert call(english, "<think>still thinking about it") == [1.0]
    assert call(english, mixed, language="zh") == pytest.approx([3 / 7])
    assert call(chinese, mixed, language="en-US") == pytest.approx([4 / 7])
    with pytest.raises(PluginError, match="unknown language 'xx'"):
        LanguageConsistency("xx")


def test_a_gate_pays_the_bonus_only_where_the_answer_is_right():
    gate = Gate(reward="format")
    good, bad = "<think>a</think><answer>4</answer>", "<think>a</think><answer>5</answer>"
    assert call(gate, good, bad, r"\boxed{4}", answer="4") == [1.0, 0.0, 0.0]
    assert call(gate, good, answer="") == [None]
