"""What crosses the border of the process, each kind in a folder of its own.

    code        plug-ins, and what they may not leave changed
    files       ours, whole or not at all; those of others, within bounds
    rows        data sets that others published
    templates   chat templates, which are programs
    terminal    the way of text to a terminal
    web         HTTP to servers

Completions are judged elsewhere (`rewards/sandbox/`), and so are an engine's answers
(`rollout/answers.py`).
"""
