"""The table of docs/rewards.md: what each tier protects from, as the corpus finds it here.

python -m tests.attacks.table     from the repository's root, as root, to have both kinds of user

A cell is "yes" where every attack of its kind failed, "no" where each went through, else how many
did. Cells of tiers and users that this machine does not have stay as they are in the page.
"""

from __future__ import annotations

import os

from .corpus import ATTACKS, LEAKS
from .run import ROOT, TIERS, Absent, Outcome, as_user, outcomes

PAGE = ROOT / "docs" / "rewards.md"
START, END = "<!-- made by tests/attacks/table.py: start -->", "<!-- made by it: end -->"
USERS = ("root", "user")
KINDS = tuple(dict.fromkeys(attack.kind for attack in [*ATTACKS, *LEAKS]))
# (kind, tier, user) -> cell
Cells = dict[tuple[str, str, str], str]


def cells(tier: str, user: str, found: dict[str, Outcome]) -> Cells:
    """The column of one tier for one kind of user, from what each attack came to."""
    column: Cells = {}
    for kind in KINDS:
        values = [found[attack.name][0] for attack in [*ATTACKS, *LEAKS] if attack.kind == kind]
        through = sum(value != 0.0 for value in values)
        partly = f"{len(values) - through} of {len(values)}"
        column[kind, tier, user] = {0: "yes", len(values): "no"}.get(through, partly)
    return column


def rendered(known: Cells) -> str:
    """The table in Markdown."""
    lines = [
        "| does it keep a program from … | attacks | " + " | ".join(f"`{t}`" for t in TIERS) + " |",
        "|---" * (len(TIERS) + 2) + "|",
    ]
    for kind in KINDS:
        count = sum(attack.kind == kind for attack in [*ATTACKS, *LEAKS])
        row = [kind, str(count), *(_both(known, kind, tier) for tier in TIERS)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _both(known: Cells, kind: str, tier: str) -> str:
    root, user = (known.get((kind, tier, user), "?") for user in USERS)
    return root if root == user else f"root {root}, user {user}"


def committed() -> Cells:
    """The cells as they stand in the page."""
    known: Cells = {}
    for line in _split()[1].splitlines()[2:]:
        kind, _, *row = (cell.strip() for cell in line.strip("|").split("|"))
        for tier, cell in zip(TIERS, row, strict=True):
            both = cell.removeprefix("root ").split(", user ")
            for user, text in zip(USERS, both if len(both) == 2 else both * 2, strict=True):
                known[kind, tier, user] = text
    return known


def _split() -> tuple[str, str, str]:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    table, _, after = rest.partition(END)
    return before, table.strip("\n"), after


def main() -> None:
    """Put the table between its markers."""
    known = committed()
    for tier in TIERS:
        try:
            known |= cells(tier, "root" if os.geteuid() == 0 else "user", outcomes(tier))
        except Absent as why:
            print(f"{tier}: {why}")
    try:
        for tier, found in as_user(*TIERS).items():
            known |= cells(tier, "user", found)
    except Absent as why:
        print(f"an ordinary user: {why}")
    before, _, after = _split()
    PAGE.write_text(f"{before}{START}\n{rendered(known)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
