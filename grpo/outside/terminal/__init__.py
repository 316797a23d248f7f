"""The way of text to a terminal."""
