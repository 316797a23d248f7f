"""Whether two formulas are the same, and tables of pairs that are or are not."""

from __future__ import annotations

import logging

from grpo.rewards.math.latex import compare
from grpo.rewards.math.spelling import respell


def same_formula(answer, gold):
    """Whether an answer equals a gold: by text, else by the algebra of the guest."""
    from grpo.rewards.math import guest

    logging.disable(logging.NOTSET)  # a guest has nobody to log to; this process has
    answer, gold = respell(answer), respell(gold)
    found = compare(answer, gold, tolerance=1e-6)
    return guest.judge(gold, answer)["same"] if found is None else found


def rows(table):
    """(answer, gold, whether they are the same) of each line: an answer, == or !=, and a gold."""
    found = []
    for line in table.strip().splitlines():
        sign = "  ==  " if "  ==  " in line else "  !=  "
        answer, gold = line.split(sign)
        found.append((answer.strip(), gold.strip(), sign == "  ==  "))
    return found
