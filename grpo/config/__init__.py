"""Recipes: their settings, and how they are read. No torch."""
