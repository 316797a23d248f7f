"""One step of training, and what comes between two.

    loop                          the step itself, on one screen
    schedule                      who samples when, and from which weights (no learning rates)
    drawing, curriculum           which tasks are asked, and with which prompts
    gathering, batch_json         a batch on its way, and in a checkpoint
    delivery                      weights to the engines, and the proof that they arrived
    agreement, probes             does the engine sample from the policy that learns?
    step_limits, rollout_metrics  how far apart they may be; what a batch says of the run

The update is in `grpo/learner/`, the formulas in `grpo/method/`.
"""
