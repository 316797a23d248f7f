"""The learner: rows in, a better policy out.

    learner                     one optimizer step after another
    packing                     rows -> micro-batches on the device
    scoring, forward, head      micro-batches -> log-probs, of the policy and of the reference
    layers                      layers of Llama-like models on a CPU, with a backward pass by hand
    optimizers, step_sums       AdamW and learning rates; what is reported of a step
    policy, saved, state        weights loaded and written; what else a resumed run needs
    export                      weights by name for the engines, with their hash

The loss is in `grpo/method/`, when a step is made in `grpo/training/`.
"""
