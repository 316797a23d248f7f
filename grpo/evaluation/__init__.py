"""Held-out tasks, and what their answers add up to.

    heldout                       asks the policy with the engine that trains it
    builtin_tasks                 the tasks of `grpo eval --tasks`, a row each
    statistics, tally, behaviors  pass@k and intervals; sums by reward; words of reflection
    figures, report               results in words; in tables and in lm-eval's layout
    screen, decontaminate         which completions and rows a `reject` stage keeps

The verifiers are in `rewards/`, the verb in `grpo/commands/eval.py`, its stage in
`grpo/stages/eval.py`.
"""
