"""What a run leaves on disk, and the way back from it.

    run_folder, claim                     the folder, and the one process that trains in it
    checkpoint, finished                  checkpoints, stages that are done, leftovers of a kill
    record, identity, provenance          what the run was started with, compared when it resumes
    ledger, log, health                   every rollout; metrics; whether the run still learns

The weights in a checkpoint are written by `grpo/learner/saved.py` and `state.py`, a stage's own
files by `grpo/stages/`.
"""
