"""Rows of data sets that others published."""
