"""The learner: rows in, a better policy out."""
