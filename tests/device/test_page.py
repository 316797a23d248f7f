"""docs/gpu.md shows the counts that the tests hold."""

from .page import made, split


def test_the_page_shows_the_counts_there_are():
    assert split()[1] == made(), "python -m tests.device.page"
