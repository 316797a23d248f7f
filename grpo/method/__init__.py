"""The method, as pure functions: no device, no settings, no files.

table           every estimator and objective: name, arguments, least group
arguments       what the value of an argument may be
advantage       how much better than its group a completion was
token_values    one number a completion, or one a token
weighted_rows   groups with advantages -> rows, and what each token weighs
objective       what a token loss, its weight and its columns are; the weights
losses          what one token contributes, clipped or not, and the terms around it
entropy         which tokens count for their entropy
repeated        sums over rows that repeat, in one order
"""
