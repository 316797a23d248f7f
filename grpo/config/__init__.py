"""Recipes: their settings, and how they are read. Nothing here imports torch.

    schema/   every setting with its type, default, unit and meaning
    config    a YAML file and overrides become a `Recipe`, or one sentence
    locate    where the files of a recipe are, and whether its plug-ins exist

What settings become is in `grpo/stages/wiring.py`.
"""
