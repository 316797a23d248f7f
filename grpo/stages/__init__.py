"""The kinds of stage, a file each: `pretrain`, `sft`, `rl`, `reject`, `distill`, `eval`.

    rl        wiring (settings become objects), rl_folder, rl_evaluations, remote_rewards
    sft       sft_trainer, slm, supervised_rows
    sampling  shards, served (a teacher behind a server), card (of the data set that is left)
    all       inputs, origins, prompting, endings, lengths, interrupt; from_scratch for tiny models

`preflight/` looks at all stages before the first one starts. A step of training is in
`grpo/training/`, what all stages save in `grpo/rundir/`.
"""
