"""docs/trl.md shows the table that the code goes by."""

from .page import made, split


def test_the_page_has_the_table_there_is() -> None:
    assert split()[1] == made(), "python -m tests.grpo.config.trl.page"
