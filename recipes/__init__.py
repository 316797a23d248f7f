"""Recipes shipped with the toolkit: YAML files, the one-file reference loop and small assets."""
