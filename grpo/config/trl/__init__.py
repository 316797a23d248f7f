"""TRL's `GRPOConfig` (version 1.16), read as a recipe. TRL itself is never imported.

field           what may be said of one field of TRL's: honored, ignored, or refused
trainer_fields  the fields that come from transformers' `TrainingArguments`
grpo_fields     those that TRL adds, and `FIELDS`, all of them
settings        `GRPOConfig`: TRL's names and defaults, checked against `FIELDS`
batches         TRL's batch arithmetic: prompts, optimizer steps and epochs of a rollout batch
convert         `to_recipe`: the sections of a recipe with the same numbers; `parts` helps it
script          the arguments of `trl grpo` that are not `GRPOConfig`'s
"""
