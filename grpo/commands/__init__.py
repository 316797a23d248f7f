"""The verbs of the command line, a file each: `grpo/cli.py` parses, and these do it.

A verb of several words has a file for each form (`eval`, `eval_recipe`, `eval_tasks`). Beside them
lies what verbs share: `reading` and `options` of the command line, `process` for what decides a
run's bits and is no setting, `ray_learners`, `summary`, `memory`, `out_of_memory`,
and `shrink`, `architectures` and `dialects` for `grpo dry-run`. What a stage does is in
`grpo/stages/`.
"""
