"""Rows of data sets that others published, as the columns that rewards ask for.

`columns` reads a column, or says which row lacks it. `code_rows` and `contest_rows` are
for programs and their tests. Sources of tasks are in `data/`.
"""
