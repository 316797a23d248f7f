"""The method, as pure functions: no device, no settings, no files.

advantage       how much better than its group a completion was
weighted_rows   groups with advantages -> rows, and what each token weighs
losses          what one token contributes, clipped or not
objective       which of the losses, at which level, divided by what
entropy         which tokens count for their entropy
repeated        sums over rows that repeat, in one order
"""
