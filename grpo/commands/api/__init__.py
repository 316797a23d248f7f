"""What `import grpo` offers: the verbs of the command line as functions of Python objects.

    run = grpo.train(model="runs/base", dataset=[{"prompt": "2+2=", "answer": "4"}], rewards=[f])

`calls` has the functions and `run` what they return. `settings` makes a recipe of keywords, and
`given` makes recipe entries of objects (`grpo/outside/code/objects.py`). What then trains is
`grpo/commands/train.py`, as for a recipe.
"""
