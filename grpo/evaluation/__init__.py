"""Held-out tasks and what their answers add up to."""
