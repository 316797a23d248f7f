"""Regions, signs, dress and complex values.

Each line is an answer, == or !=, and a gold.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import pytest

from .formulas import rows, same_formula

REGIONS = r"""
x\le -1 \text{ and } x\ge 1  !=  x\le -1 \text{ or } x\ge 1
x\le -1 \text{ or } x\ge 1  ==  x\le -1 \text{ and } x\ge 1
x=1 \text{ and } x=2  ==  x=1 \text{ or } x=2
(-\infty,1)\cup(2,\infty)  ==  x<1 \text{ or } x>2
x<1 \lor x>2  ==  (-\infty,1)\cup(2,\infty)
x>2 \text{ or } x<1  ==  x<1 \text{ or } x>2
x<1, x>2  ==  (-\infty,1)\cup(2,\infty)
x > 2, x < 5  ==  (2,5)
2<x \land x<5  ==  (2,5)
5 > x > 2  ==  (2,5)
(2,5]  ==  2<x\le5
\{x : 2 < x < 5\}  ==  (2,5)
\{x\in\mathbb{R} \mid 2 < x < 5\}  ==  (2,5)
\{x \in \mathbb{R} : x \ne 2\}  ==  (-\infty,2)\cup(2,\infty)
\lvert x \rvert \le 3  ==  -3 \le x \le 3
|x| \geq 2  ==  (-\infty,-2]\cup[2,\infty)
x \neq 0  ==  \mathbb R \setminus \{0\}
x \ne 0, x \ne 1  ==  \mathbb{R}\setminus\{0,1\}
x \in \mathbb{R}, x \ne 0  ==  x \ne 0
]2,5[  ==  (2,5)
[2,5[  ==  [2,5)
]2;5]  ==  (2,5]
x \in ]2,5]  ==  2 < x \le 5
(2, +\infty)  ==  x > 2
(2, ∞)  ==  x > 2
(2, infinity)  ==  x>2
(-oo, 3) U (5, oo)  ==  (-\infty,3)\cup(5,\infty)
x ∈ (1,2)  ==  1<x<2
k \le \frac{1}{2}  ==  (-\infty, 0.5]
x > \sqrt{3}  ==  (\sqrt{3},\infty)
\frac{3}{2} < x  ==  x > 1.5
x > y  ==  y < x
[1,2]\cup[3,4]  ==  [3,4]\cup[1,2]
[1,3]\cup[2,4]  ==  [1,4]
x\le -2\ \text{or}\ x\ge 3  ==  x \in (-\infty, -2] \cup [3, \infty)
x \leq -2 \quad \text{or} \quad x \geq 3  ==  (-\infty,-2]\cup[3,\infty)
\{x \mid x\le -2 \text{ or } x\ge 3\}  ==  (-\infty,-2]\cup[3,\infty)
\{x \mid x \neq 1, x \neq 2\}  ==  \mathbb{R} \setminus \{1,2\}
\{x : x \in \mathbb{R}, x \ne 1\}  ==  x \ne 1
\left\{ x \,\middle|\, x > 2 \right\}  ==  (2,\infty)
\{ y \mid y \ge 0 \}  ==  [0,\infty)
\{ y \mid y \ge 0 \}  ==  y \ge 0
(-\infty, 2) \cup (2, 3) \cup (3, \infty)  ==  x \ne 2, x \ne 3
\mathbb{R} - \{2\}  ==  x \neq 2
\mathbb{R} \backslash \{2\}  ==  x \neq 2
\text{all real numbers}  ==  \mathbb{R}
(-\infty,\infty)  ==  \mathbb{R}
x \in \mathbb{R}  ==  (-\infty,\infty)
\emptyset  ==  \{\}
[0, 2\pi)  ==  0 \le x < 2\pi
[0,1)\cup\{2\}  ==  \{2\}\cup[0,1)
(0,1) \cap (0.5, 2)  ==  (\frac12, 1)
-1 \le x \le 1  ==  |x| \le 1
-1 \le x \le 1  ==  x^2 \le 1
|x - 2| < 1  ==  1 < x < 3
|2x| < 4  ==  -2<x<2
3 < a  ==  a > 3
0 < k  ==  k>0
x > 2, y > 3  ==  y > 3, x > 2
(2, 3)  ==  2, 3
x \in [2, 3]  ==  [2, 3]
[2,5]  !=  2<x<5
\left| x \right| < 3  !=  [-3,3]
(-\infty,0)\cup(0,\infty)  !=  x\neq 1
2  !=  x \ge 2
x \ge 2  !=  2
x = 2  !=  x \ge 2
(2,\infty)  !=  x \ge 2
x\le -2\text{ or }x\ge 3  !=  (-\infty,-2) \cup (3,\infty)
x\le -2\text{ and }x\ge 3  !=  (-\infty,-2] \cup [3,\infty)
x \in \mathbb{R} \setminus \{2,3\}  !=  x \ne 2, 3
x < 2  !=  x > 2
a \ge 3  !=  a > 3
(1,3)  !=  (1,3]
(1,3)  !=  [1,3]
(1,3)  !=  1 \le x \le 3
n \ge 3  !=  3
k > 0  !=  k < 0
x > 2, y > 3  !=  x > 3, y > 2
x \in [2, 3)  !=  [2, 3]
"""
SIGNS = r"""
½  ==  0.5
3½  ==  3.5
3 ½  ==  \frac72
¾  ==  0.75
－5  ==  -5
３．５  ==  3.5
（1，2）  ==  (1,2)
x ≥ 3  ==  x \ge 3
x ≦ 3  ==  x \le 3
x≠3  ==  x \ne 3
1、2  ==  1,2
x＝3  ==  x = 3
٥  ==  5
x²  ==  x^2
2⁻¹  ==  \frac12
10⁵  ==  100000
2×3  ==  6
6÷2  ==  3
−5  ==  -5
–5  ==  -5
√2  ==  \sqrt2
∛8  ==  2
π/2  ==  \frac{\pi}{2}
α + β  ==  \alpha+\beta
𝑥 + 1  ==  x+1
２／３  ==  \frac23
⅔  ==  2/3
1⅔  ==  \frac53
x∈[1,2]  ==  [1,2]
{1，2，3}  ==  \{1,2,3\}
｛1,2｝  ==  \{1,2\}
x⁴  ==  x^4
x¹⁰  ==  x^{10}
x₁  ==  x_1
10⁻³  ==  0.001
5×10³  ==  5000
3·4  ==  12
2•3  ==  6
√(2)/2  ==  \frac{\sqrt2}{2}
√2/2  ==  \frac{1}{\sqrt2}
θ = π/4  ==  \frac{\pi}{4}
∠A=60°  ==  60
60º  ==  60
x − 3  ==  x-3
x – 3  ==  x-3
“5”  ==  5
5。  ==  5
x²  !=  x2
x₂  !=  x2
x³  !=  x^2
3–5  !=  -2
3–5  !=  5
x≤3  !=  x<3
5  !=  五
"""
DRESS = r"""
\textcolor{blue}{5}  ==  5
\left(3,\frac\pi2\right)  ==  (3, \frac{\pi}{2})
-\frac\pi{2}  ==  -\frac{\pi}{2}
\frac{1}x + \frac x2  ==  \frac{1}{x} + \frac{x}{2}
\frac{\frac\pi2}3  ==  \frac{\pi}{6}
x=\frac\pi4+k\pi\ (k\in\mathbb{Z})  ==  x = \frac{\pi}{4}+k\pi, k \in \mathbb{Z}
\frac\pi2  !=  \frac\pi3
x=\frac\pi4+2k\pi\ (k\in\mathbb{Z})  !=  x = \frac{\pi}{4}+k\pi, k \in \mathbb{Z}
\color{red} 5  ==  5
\bm{5}  ==  5
\boldsymbol{x+1}  ==  x+1
\underline{5}  ==  5
5\phantom{0}  ==  5
5 \tag{1}  ==  5
\displaystyle\frac{1}{2}  ==  0.5
\Large 5  ==  5
5\,\!  ==  5
5~\text{cm}  ==  5
\mathbf{5}  ==  5
\mathrm{5}  ==  5
\boxed{5}  ==  5
\mathcal{O}(n^2)  ==  O(n^2)
7 = x  ==  x = 7
\color{red}{5}  !=  6
5\phantom{0}  !=  50
O(n^2)  !=  O(n)
O(n^2)  !=  n^2
\Theta(n)  !=  O(n)
7=x  !=  8
x = 7  !=  y = 7
"""
COMPLEX = r"""
\sin 30^\circ  ==  \frac12
\tan 45^{\circ}  ==  1
\cos(60^\circ)  ==  0.5
\sqrt{-9}  ==  3i
i^2  ==  -1
2+3i  ==  3i+2
(1+i)^2  ==  2i
e^{i\pi/2}  ==  i
2e^{i\pi/3}  ==  1+\sqrt3 i
\cos\frac{\pi}{3}+i\sin\frac{\pi}{3}  ==  \frac{1+\sqrt{3}i}{2}
2\hat{i} + 3\hat{j}  ==  2\mathbf{i}+3\mathbf{j}
\mathrm{i}  ==  i
\sqrt{-2}  ==  i\sqrt2
\frac{1+i}{1-i}  ==  i
|3+4i|  ==  5
\pm i  ==  i, -i
\pm 2i  ==  \{2i,-2i\}
-i  ==  -i
\cos\theta + i\sin\theta  ==  e^{i\theta}
5e^{i\pi}  ==  -5
\sqrt[3]{-8}  ==  -2
\sin^2 x + \cos^2 x  ==  1
\sin 2x  ==  2 \sin x \cos x
\tan^{-1} 1  ==  \frac{\pi}{4}
\arctan 1  ==  \frac{\pi}{4}
\log_{10} 100  ==  2
\ln e  ==  1
2^{1000}  ==  2^{999}\cdot 2
\sin 30  !=  \frac12
60^\circ  !=  \frac{\pi}{3}
2-3i  !=  2+3i
a_i  !=  a_1
\sum_{i=1}^{n} i  !=  \frac{n(n+1)}{2}
3i  !=  3
3i  !=  3j
2\mathbf{i} + 3\mathbf{j}  !=  2
2\mathbf{i} - 3\mathbf{j}  !=  2\mathbf{i}+3\mathbf{j}
\overline{2+3i}  !=  2-3i
i  !=  -i
i+j  !=  1
\operatorname{cis} 60^\circ  !=  \frac{1}{2}
"""


@pytest.mark.parametrize(("answer", "gold", "same"), rows(REGIONS))
def test_intervals_inequalities_and_set_builders_are_regions(answer, gold, same):
    assert same_formula(answer, gold) is same


@pytest.mark.parametrize(("answer", "gold", "same"), rows(SIGNS))
def test_signs_of_unicode(answer, gold, same):
    assert same_formula(answer, gold) is same


@pytest.mark.parametrize(("answer", "gold", "same"), rows(DRESS))
def test_what_only_changes_how_a_formula_looks(answer, gold, same):
    assert same_formula(answer, gold) is same


@pytest.mark.parametrize(("answer", "gold", "same"), rows(COMPLEX))
def test_complex_values_and_degrees(answer, gold, same):
    assert same_formula(answer, gold) is same
