"""What numbers count, measure and are worth; words, tuples and sets.

Each line is an answer, == or !=, and a gold.
"""

from __future__ import annotations

import pytest

from .formulas import rows, same_formula

UNITS = r"""
9.8 \frac{\text{m}}{\text{s}^2}  ==  9.8\text{ m/s}^2
60\,\frac{\mathrm{km}}{\mathrm{h}}  ==  60 \text{ km/h}
60\,\frac{\mathrm{km}}{\mathrm{h}}  !=  60 \text{ m/h}
5 kPa  ==  5000 Pa
5  ==  5\text{ kPa}
36\text{ months}  ==  3\text{ years}
98.6^\circ  ==  98.6^\circ\text{F}
1 GB  ==  1000 MB
5€  ==  €5
5 dollars  ==  \$5
50 cents  ==  \$0.50
5 USD  ==  \$5
£5  ==  5 pounds
5 lb  ==  5 pounds
5 apples  ==  5
5  ==  5 apples
5 apple  ==  5 apples
5 hundred  ==  500
3.5 million  ==  3500000
\$2 million  ==  2,000,000
2 \times 10^6  ==  2 million
5 dozen eggs  ==  60 eggs
0.28  ==  28\%
28  ==  28\%
28\%  ==  28
28\%  ==  0.28
50\%  ==  \frac12
\frac{1}{2}\%  ==  0.005
12 percent  ==  12\%
5 m/s  ==  18 km/h
60 mph  ==  60 miles per hour
1 m^2  ==  10000 cm^2
5\text{ square meters}  ==  5\text{ m}^2
10 \text{ cubic feet}  ==  10 \text{ ft}^3
2\pi \text{ cm}  ==  2\pi
\sqrt{2}\text{ m}  ==  100\sqrt2\text{ cm}
3\text{ h }20\text{ min}  ==  200\text{ min}
3\text{ hours }20\text{ minutes}  ==  3\text{ hours and }20\text{ minutes}
5 feet 4 inches  ==  64 inches
10th  ==  10
2^{nd}  ==  2
5 km/h  ==  5 km/hr
100^\circ\text{C}  ==  100 \,^\circ\mathrm{C}
9.8 \, \mathrm{m/s^2}  ==  9.8
9.8\,\mathrm{m/s}^2  ==  9.8\text{ m/s}^2
9.8\,\mathrm{m\,s^{-2}}  ==  9.8\,\mathrm{m/s^2}
9.8\ \text{m}\cdot\text{s}^{-2}  ==  9.8\,\mathrm{m/s^2}
6.02 \times 10^{23} \text{ mol}^{-1}  ==  6.02e23
5\,\mu\text{m}  ==  5\,\text{μm}
5 µg  ==  0.005 mg
72 bpm  ==  72
20 sq. ft  ==  20 ft^2
20 square units  ==  20
20\text{ units}^2  ==  20
12 years  ==  144 months
1 week  ==  7 days
2 hours  ==  120 minutes
1.5 h  ==  1 h 30 min
\$1.50  ==  150 cents
1.5  ==  \$1.50
-\$5  ==  \$-5
5 \text{ thousand}  ==  5000
5 \text{ hundred thousand}  ==  500000
10\%  ==  10
10\%  ==  0.1
150\%  ==  1.5
150\%  ==  150
-5\%  ==  -0.05
33\frac13\%  ==  \frac13
12.5\%  ==  \frac{1}{8}
5\text{ to }3  ==  5:3
90 degrees  ==  90^\circ
\frac{\pi}{2} \text{ radians}  ==  \frac{\pi}{2}
3 months  !=  3 years
98.6^\circ F  !=  98.6^\circ C
5\,\text{kJ}  !=  5\,\text{J}
5 nm  !=  5 m
5 MB  !=  5 GB
5\text{ rad}  !=  5^\circ
€5  !=  £5
\$5  !=  \text{€}5
5 lb  !=  5 kg
5 apples  !=  5 oranges
5 hundred  !=  5
3.5 \text{ million}  !=  3.5 \text{ billion}
0.28\%  !=  28
0.05\%  !=  0.05
0.05  !=  0.05\%
12 percent  !=  12\text{ cm}
5 m/s  !=  5 km/h
5 m^2  !=  5 m
5 cm^3  !=  5 mL
2\pi \text{ cm}  !=  2\pi \text{ m}
3\text{ h }20\text{ min}  !=  3\text{ h }45\text{ min}
3  !=  3\text{ h }20\text{ min}
20  !=  3\text{ h }20\text{ min}
5\ \text{km/h}  !=  5\ \text{m/s}
100 K  !=  100^\circ C
5 \text{ N}  !=  5 \text{ kN}
5 \, \Omega  !=  5 \, \text{k}\Omega
5\,\mu\text{m}  !=  5\,\text{m}
5 μm  !=  5 mm
3\text{ mol/L}  !=  3\text{ mmol/L}
20\text{ square units}  !=  20\text{ units}
2 hours  !=  2 minutes
\$1.50  !=  1.5 cents
2.5k  !=  2500
10\%  !=  1
33\frac{1}{3}\%  !=  33.33\%
\frac{\pi}{2} \text{ rad}  !=  \frac{\pi}{2}^\circ
"""
WORDS = r"""
ABC  ==  ABC
xy  ==  yx
AB + BC  ==  BC + AB
abc  ==  cab
ACB  !=  ABC
AB  !=  BA
\text{seat}  !=  east
K  !=  k
x  !=  X
\triangle ABC  !=  \triangle ACB
\angle ABC  !=  \angle CBA
\overline{AB}  !=  \overline{BA}
ABCD  !=  ABDC
Tuesday  !=  Thursday
\text{blue}  !=  \text{red}
no  !=  on
\text{yes}  !=  \text{no}
true  !=  false
"""
TUPLES = r"""
\{3,2,1\}  ==  \{1,2,3\}
[1,2,3]  ==  (1,2,3)
x=2,\ y=3  ==  (2,3)
y=3, x=2  ==  (2,3)
(x,y)=(2,3)  ==  (2,3)
(2,3)  ==  x=2, y=3
\{(1,2),(3,4)\}  ==  \{(3,4),(1,2)\}
\{\{1\},\{2\}\}  ==  \{\{2\},\{1\}\}
(1,2,3)  ==  1,2,3
1,2,3  ==  (1,2,3)
\{(1,2)\}  ==  (1,2)
\langle 1,2 \rangle  ==  (1,2)
x=1, y=2, z=3  ==  (1,2,3)
z=3, x=1, y=2  ==  (1,2,3)
a=1, b=2  ==  b=2, a=1
(x, y) = (1, 2)  ==  x=1,y=2
x=1 \text{ and } y=2  ==  (1,2)
x = \pm 1  ==  1, -1
(1,2,3)  !=  \{1,2,3\}
(3,2,1)  !=  (1,2,3)
x=3,y=2  !=  (2,3)
(3,2)  !=  x=2, y=3
((1,2),(3,4))  !=  ((3,4),(1,2))
(1,2)  !=  (2,1)
3,2,1  !=  (1,2,3)
\{1,2\}  !=  \{1,2,2\}
[1,2]  !=  (1,2)
\begin{pmatrix}1\\2\end{pmatrix}  !=  (1,2)
z=1, x=2, y=3  !=  (1,2,3)
a=1, b=2  !=  a=2, b=1
x = 1  !=  x = -1
x = \pm 1  !=  1
"""


@pytest.mark.parametrize(("answer", "gold", "same"), rows(UNITS))
def test_units_currencies_percentages_and_magnitudes(answer, gold, same):
    assert same_formula(answer, gold) is same


@pytest.mark.parametrize(("answer", "gold", "same"), rows(WORDS))
def test_words_and_names_are_no_products(answer, gold, same):
    assert same_formula(answer, gold) is same


@pytest.mark.parametrize(("answer", "gold", "same"), rows(TUPLES))
def test_tuples_sets_lists_and_named_values(answer, gold, same):
    assert same_formula(answer, gold) is same
