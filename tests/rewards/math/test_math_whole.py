"""A formula is read from end to end or not at all, and no text takes long; rows of systems.

Each line is an answer, == or !=, and a gold.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import logging
import time

import pytest

from grpo.rewards.math.latex import compare
from grpo.rewards.math.reward import Math
from grpo.rewards.math.spelling import respell
from grpo.types import Task

from .formulas import rows, same_formula

WHOLE = r"""
\approx 5  ==  5
1,2,\ldots,n  ==  1,2,\ldots,n
101_{\text{two}}  ==  101_2
(101)_2  ==  101_2
\log_2 8  ==  3
f'(0) = 2  ==  2
1{,}000  ==  1000
1\,000  ==  1000
1 000  ==  1000
1,5  ==  1.5
4 = 4  ==  4
y = 2x + 1  ==  2x+1
2x+1  ==  y=2x+1
y = 2x+1  ==  y - 2x = 1
(x+1)(x-1)  ==  x^2-1
\frac{x}{2}  ==  0.5x
2^{10}  ==  1024
\binom{5}{2}  ==  10
\lfloor 2.5 \rfloor  ==  2
+\infty  ==  \infty
\emptyset  ==  \varnothing
\{\}  ==  \emptyset
\begin{bmatrix} 1 \\ 2 \end{bmatrix}  ==  \begin{pmatrix} 1 \\ 2 \end{pmatrix}
3:4  ==  \frac34
6:8  ==  3:4
\mathcal{O}(1)  ==  O(1)
f(x) = x^2  ==  x^2
x^2  ==  f(x)=x^2
x^2 + 2x + 1 = 0  ==  (x+1)^2=0
y=2x+3  ==  2x - y + 3 = 0
0.\overline{3}  ==  \frac13
0.\dot{3}  ==  \frac13
1.5  ==  \frac{3}{2}
\frac{\sqrt{3}}{3}  ==  \frac{1}{\sqrt3}
2.0  ==  2
-\frac{1}{2}  ==  \frac{-1}{2}
-\frac{1}{2}  ==  \frac{1}{-2}
A  ==  (A)
\textbf{(A)}  ==  A
< 5  !=  5
\neq 5  !=  5
\ne 5  !=  5
> 5  !=  5
\pm 5  !=  5
5 \to 6  !=  6
3 \Rightarrow 4  !=  4
3 \mapsto 4  !=  4
3 \lor 4  !=  3,4
3 | 4  !=  4
3; 4  !=  4
3 / 4  !=  4
3 \mid 4  !=  4
\{3, 4\}  !=  4
5?  !=  5
\overline{5}  !=  5
5 \cdots  !=  5
\sim 5  !=  5
5 \ldots 6  !=  5
3 \not= 5  !=  5
2,4,\ldots,2n  !=  2,4,6,\ldots,2n
1+2+\cdots+n  !=  1+2+\cdots+m
10_2  !=  2
10_{2}  !=  10
5'  !=  5
5''  !=  5
5 5  !=  10
5 5  !=  25
2x = 4  !=  4
4  !=  2x = 4
0  !=  a + 3z = 0
0  !=  a^2 + b = 0
2  !=  x=1,x=2
2  ==  x = 1+1 = 2
0  ==  1 = \zzz = x = 0
3 = 4  !=  4
x = 3 = 4  !=  4
x^2+y^2=1  !=  1
x+1  !=  x+2
\sqrt{x^2}  !=  x
n!  !=  n
\infty  !=  -\infty
\text{undefined}  !=  \infty
\emptyset  !=  0
\begin{pmatrix} 1 & 2 \end{pmatrix}  !=  \begin{pmatrix} 2 & 1 \end{pmatrix}
C  !=  C + 1
x^2 + C  !=  x^2
3:4  !=  4:3
12:30  !=  12:45
2 < 5  !=  5
5 >  !=  5
x \to 5  !=  5
\lim_{x \to 0} x  !=  0
5 \lor 6  !=  6
\lnot 5  !=  5
!5  !=  5
5 \% 3  !=  2
5 & 6  !=  6
5 \\ 6  !=  6
5 \text{ or } 6  !=  6
5 \text{ and } 6  !=  6
5, 6  !=  6
5 \cup 6  !=  6
A \cup B  !=  B \cup A
O(n\log n)  !=  O(\log n)
O(1)  !=  1
f(x)=x^2  !=  f(x)=x^3
0.333...  !=  \frac13
1/2  !=  1/3
3.14  !=  \pi
\frac{22}{7}  !=  \pi
A  !=  B
"""


@pytest.mark.parametrize(("answer", "gold", "same"), rows(WHOLE))
def test_a_formula_is_read_from_end_to_end(answer, gold, same):
    assert same_formula(answer, gold) is same


def test_long_numbers_are_compared_digit_by_digit():
    written = str(2**1000)
    assert same_formula("2^{1000}", written)
    assert same_formula(written, "2^{1000}")
    assert not same_formula("2^{1000}", written[:-1] + "5")
    assert same_formula("9" * 4000, "9" * 4000 + ".0") is False  # beyond what is read: no number
    assert compare("1" + "0" * 4000, "1" + "0" * 3999 + "1") is False
    assert compare("007" + "1" * 3000, "7" + "1" * 3000) is True


@pytest.mark.parametrize(
    "gold", [r"3 \to 4", r"\neq 5", "5 6", r"\begin{cases} 1 \\ 2 \end{cases}"]
)
def test_a_gold_that_is_not_read_whole_is_unusable(gold):
    from grpo.rewards.math import guest

    logging.disable(logging.NOTSET)
    assert guest.judge(gold, "4") == {"gold": False, "answer": True, "same": False}


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\{2k : k \in \mathbb{Z}\}", "4"),
        (r"\begin{cases} x=1 \\ y=2 \end{cases}", "1"),
        (r"7 \bmod 10", "7x"),
        (r"A \cup B", "A"),
    ],
)
def test_a_gold_that_is_plainly_an_answer_has_wrong_ones(gold, answer):
    from grpo.rewards.math import guest

    logging.disable(logging.NOTSET)
    assert guest.judge(gold, answer) == {"gold": True, "answer": True, "same": False}


def test_an_answer_that_is_not_read_whole_is_none():
    from grpo.rewards.math import guest

    logging.disable(logging.NOTSET)
    for answer in (r"x + 1 \to 4", "x + 1?", r"x + 1 \& 4", "(x + 1", '"x + 1"'):
        assert guest.judge("x+1", answer) == {"gold": True, "answer": False, "same": False}


# << and >> begin and end cases
LAYOUT = r"""
x=1, y=2  ==  <<x=1\\y=2>>
<< y = 2 \\ x = 1 >>  ==  <<x=1\\y=2>>
<< x = 2 \\ y = 1 >>  !=  <<x=1\\y=2>>
\left\{\begin{array}{l}x=1\\y=2\end{array}\right.  ==  <<x=1\\y=2>>
\begin{aligned}x&=1\\y&=2\end{aligned}  ==  x=1, y=2
<< x^2, & x < 0 \\ x, & x \geq 0 >>  ==  <<x^2&x<0\\x&x\ge0>>
<<x&x\geq 0 \\ x^2, &\text{if }x<0>>  ==  <<x^2&x<0\\x&x\ge0>>
<<x&x> 0 \\ x^2&\text{if }x<0>>  !=  <<x^2&x<0\\x&x\ge0>>
<<x^2&x\geq 0 \\ x&\text{if }x<0>>  !=  <<x^2&x<0\\x&x\ge0>>
f(x)=<< x&x > 0 \\ -x&x \leq 0 >>  ==  <<x & x>0\\-x & 0 \ge x>>
<<1&\text{even}\\0&\text{if }\text{odd}>>  ==  <<1&\text{even}\\0&\text{odd}>>
<<0&\text{even}\\1&\text{odd}>>  !=  <<1&\text{even}\\0&\text{odd}>>
1  !=  <<1&\text{even}\\0&\text{odd}>>
x  !=  <<x & x>0\\-x & x\le 0>>
7 \mod 10  ==  7 \bmod 10
3 \bmod 10  !=  7 \bmod 10
\{2k \mid k \in \mathbb{Z}\}  ==  \{2k : k\in\mathbb{Z}\}
\{2k+1 \mid k \in \mathbb{Z}\}  !=  \{2k : k\in\mathbb{Z}\}
A \cap B  !=  A \cup B
\vec{AB}  ==  \overrightarrow{AB}
\vec{BA}  !=  \overrightarrow{AB}
\overline{AC}  !=  \overline{AB}
AB  !=  \overline{AB}
30^\circ 16'  !=  30^\circ15'
n \equiv 1 \pmod 4  ==  n\equiv 1\pmod{4}
4  !=  \{x : x \text{ is prime}\}
\{(x,y) \mid x+y=1\}  ==  \{(x,y) : x+y=1\}
\{k : k = \frac{12}{3}\}  !=  \{k : k = \frac{1}{23}\}
0x1F  ==  31
0x1f  ==  0x1F
0b101  ==  5
0x1E  !=  0x1F
"""
LAID_OUT = rows(LAYOUT.replace("<<", r"\begin{cases}").replace(">>", r"\end{cases}"))


@pytest.mark.parametrize(("answer", "gold", "same"), LAID_OUT)
def test_rows_and_what_no_parser_knows(answer, gold, same):
    assert same_formula(answer, gold) is same


# ~ is a space
HOSTILE = r"""
( () { \{ [1,2[ ]1,2[ 1~h~ 5~a 5~m~ x< x~or~ \cup 1, ½ ² √ \text{ \text{{a} \frac{1}{ $~ x~=~ 1:2~
1~to~ ' \mid x_{a 1~000~ 5~million~ square~ 1\overline{ x~\in~ – a; 1e 1 0.1 m/ \vec{i \mathrm{a{b}
"""


@pytest.mark.parametrize("piece", HOSTILE.split())
def test_hostile_text_is_read_in_linear_time(piece):
    """4,096 characters take well below a second; a quadratic pattern takes several."""
    text = (piece.replace("~", " ") * 4096)[:4096]
    start = time.process_time()
    spelled = respell(text)
    for answer, gold in ((spelled, "x+1"), ("x+1", spelled), (spelled, spelled[:-1])):
        compare(answer, gold)
    assert time.process_time() - start < 1.0


def test_the_verdicts_come_through_the_reward():
    reward = Math(workers=1)
    try:
        for answer, gold, value in (
            (r"x \le -2 \text{ or } x\ge 3", r"(-\infty,-2]\cup[3,\infty)", 1.0),
            (r"\sqrt{-4}", "2i", 1.0),
            ("3", r"\{x \mid 1 < x < 3\}", 0.0),
            (r"x \neq 0", r"\mathbb{R} \setminus \{0\}", 1.0),
            (r"x<1 \lor x>2", r"(-\infty,1)\cup(2,\infty)", 1.0),
            (r"\{y \mid y \ge 0\}", r"[0,\infty)", 1.0),
            (r"5\text{ kJ}", r"5\text{ J}", 0.0),
            (r"5\text{ rad}", r"5^\circ", 0.0),
            (r"2\pi \text{ cm}", r"2\pi \text{ m}", 0.0),
            (r"2\pi \text{ cm}", r"2\pi", 1.0),
            ("5", r"\text{increases by } 5", 0.0),
        ):
            task = Task(uid="t", prompt="", answer=gold)
            assert reward.verify(rf"\boxed{{{answer}}}", task).value == value
    finally:
        reward.close()
