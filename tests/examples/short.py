"""Overrides that make a shipped recipe a run of seconds."""

SHORT = [
    "learner.max_steps=2",
    "learner.learning_rate=1e-3",
    "rollout.prompts_per_step=4",
    "eval.num_tasks=2",
    "eval.num_samples=1",
    "run.threads=1",
]
