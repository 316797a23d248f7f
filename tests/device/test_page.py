"""docs/gpu.md shows the counts that the tests hold."""

from .page import counts_table, made, split


def test_the_page_shows_the_counts_there_are():
    assert split()[1] == made(), "python -m tests.device.page"


def test_what_the_stand_in_counted_is_a_table():
    row = {"launches": 12.5, "waits": 1.0, "blocking_copies": 0.0, "copies": 2.0, "to_host": 1.0}
    of = {"command": "count", "date": "2026-11-30", "versions": {"python": "3.12", "torch": "2.11"}}
    table = counts_table({"learner": {"padded": row}, "engine": {"greedy": row}, "from": of})
    assert "| learner's step: padded | 12.5 | 1 | 0 | 2 | 1 |" in table
    assert "| a decoded token: greedy | 12.5 | 1 | 0 | 2 | 1 |" in table
    assert table.endswith("`count`, 2026-11-30, torch 2.11.")
