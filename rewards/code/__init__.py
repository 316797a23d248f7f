"""The `code` reward: a program, its tests, and what crosses between them."""
