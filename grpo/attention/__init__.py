"""Attention over tokens laid flat: which token sees which, and who computes it."""
