"""The fields that `GRPOConfig` has from transformers' `TrainingArguments`, with TRL's defaults."""

from __future__ import annotations

from grpo.config.trl.field import (
    ANY,
    BOOL,
    DICT,
    INT,
    LIST,
    NUMBER,
    TEXT,
    Field,
    copied,
    honored,
    ignored,
    refused,
)

_LOADER = "rows are prepared beside the sampling, without a data loader"
_RANKS = "`accelerate launch` or `ray.learners` start the learner ranks, which sum gradients"
_LOG = "every step is written to metrics.jsonl, and how it is shown changes nothing"
_UPLOAD = "nothing is uploaded while training; upload the folder `model` of the run afterwards"
_HUB = "it only says how to upload, and nothing is uploaded"
_EVAL = "held-out completions are sampled by the rollout engine, which needs no such setting"
_UNUSED = "TRL's GRPO trainer does not use it either"
_LAUNCH = "configure it with `accelerate config` and start with `accelerate launch`; leave it out"
_DTYPES = "bf16: bfloat16; fp16: float16; bf16=False: float32; neither: the device's (`auto`)"

TRAINER_FIELDS: dict[str, Field] = {
    # -- folder, length, batches
    "output_dir": honored(None, TEXT, "run.dir", "None: runs/ and the run's name"),
    "per_device_train_batch_size": honored(
        8, INT, "rollout.prompts_per_step", "with steps_per_generation, processes and group size"
    ),
    "gradient_accumulation_steps": honored(
        1,
        INT,
        "rollout.prompts_per_step, algorithm.num_minibatches",
        "decides the optimizer steps of a rollout batch; micro-batches are cut by tokens",
    ),
    "num_train_epochs": honored(
        3.0, NUMBER, "learner.max_steps", "by TRL's arithmetic, which drops a last short batch"
    ),
    "max_steps": honored(
        -1, INT, "learner.max_steps", "optimizer steps there, rollout batches here"
    ),
    "auto_find_batch_size": refused(
        False, BOOL, "TRL refuses it too; set learner.tokens_per_micro_batch for memory"
    ),
    # -- optimizer and schedule
    "learning_rate": copied(1e-6, NUMBER, "learner.learning_rate"),
    "lr_scheduler_type": honored(
        "linear",
        TEXT,
        "learner.lr_scheduler_type, learner.lr_scheduler_step",
        "transformers' curve, counted in optimizer steps; `constant` has no warm-up there",
    ),
    "lr_scheduler_kwargs": honored(
        None, DICT, "learner.lr_scheduler_kwargs", "arguments of the curve"
    ),
    "warmup_steps": honored(
        0, NUMBER, "learner.warmup_steps", "below 1: the share of all steps, rounded up"
    ),
    "optim": honored(
        "adamw_torch_fused",
        TEXT,
        "learner.optim",
        "AdamW of torch, or of bitsandbytes in 8 bits or paged; any other is refused",
    ),
    "optim_args": refused(None, TEXT, "the optimizer takes no further arguments; leave it out"),
    "optim_target_modules": refused(
        None, ANY, "all weights are trained by one optimizer; leave it out"
    ),
    "weight_decay": copied(0.0, NUMBER, "learner.weight_decay", "of matrices, not of vectors"),
    "adam_beta1": honored(0.9, NUMBER, "learner.adam_betas", "the first of the two"),
    "adam_beta2": honored(0.999, NUMBER, "learner.adam_betas", "the second of the two"),
    "adam_epsilon": refused(1e-8, NUMBER, "AdamW's epsilon is 1e-8 here; leave it out"),
    "max_grad_norm": copied(1.0, NUMBER, "learner.max_grad_norm", "0: off, in both"),
    "average_tokens_across_devices": ignored(
        True, BOOL, "sums and means are always over all ranks"
    ),
    "label_smoothing_factor": ignored(0.0, NUMBER, _UNUSED),
    "neftune_noise_alpha": refused(
        None, NUMBER, "noise on embeddings would make another policy than the one sampled"
    ),
    # -- number types and memory
    "bf16": honored(None, BOOL, "model.dtype", _DTYPES),
    "fp16": honored(False, BOOL, "model.dtype", _DTYPES),
    "use_cpu": honored(
        False, BOOL, "model.dtype", "bfloat16 unless bf16=False, as in TRL; see ACCELERATE_USE_CPU"
    ),
    "bf16_full_eval": refused(
        False, BOOL, "held-out completions are sampled with rollout.dtype; set that"
    ),
    "fp16_full_eval": refused(
        False, BOOL, "held-out completions are sampled with rollout.dtype; set that"
    ),
    "tf32": refused(
        None, BOOL, "products of float32 are exact here; use bf16 for speed", same=(False,)
    ),
    "activation_checkpointing": honored(
        None, BOOL, "learner.gradient_checkpointing", "the newer name of gradient_checkpointing"
    ),
    "activation_checkpointing_kwargs": ignored(None, DICT, "recomputing changes no number"),
    "gradient_checkpointing": honored(
        True,
        BOOL,
        "learner.gradient_checkpointing",
        "changes no number; False is faster where memory allows",
    ),
    "gradient_checkpointing_kwargs": ignored(None, DICT, "recomputing changes no number"),
    "torch_compile": ignored(False, BOOL, "the learner's own fused kernels are used"),
    "torch_compile_backend": ignored(None, TEXT, "the learner's own fused kernels are used"),
    "torch_compile_mode": ignored(None, TEXT, "the learner's own fused kernels are used"),
    "use_liger_kernel": ignored(False, BOOL, "the learner's own fused kernels are used"),
    "liger_kernel_config": ignored(None, DICT, "the learner's own fused kernels are used"),
    "use_cache": ignored(False, BOOL, "the engine has its own cache, the learner needs none"),
    "torch_empty_cache_steps": ignored(None, INT, "it frees memory and changes no number"),
    # -- logging
    "logging_strategy": ignored("steps", TEXT, _LOG),
    "logging_steps": honored(
        10, NUMBER, "eval.steps", "only where eval_steps is None; every step is logged"
    ),
    "logging_first_step": ignored(False, BOOL, _LOG),
    "log_on_each_node": ignored(True, BOOL, _LOG),
    "logging_nan_inf_filter": ignored(True, BOOL, "a loss that is not finite stops the run"),
    "include_num_input_tokens_seen": ignored("no", ANY, "tokens are counted in every step"),
    "log_level": ignored("passive", TEXT, _LOG),
    "log_level_replica": ignored("warning", TEXT, _LOG),
    "disable_tqdm": ignored(None, BOOL, _LOG),
    "report_to": honored(
        "none", ANY, "run.trackers", "tensorboard, wandb and trackio; any other is refused"
    ),
    "run_name": honored(None, TEXT, "name", "the name of the recipe"),
    "project": ignored("huggingface", TEXT, "trackers file a run under the project `grpo`"),
    "trackio_space_id": ignored(None, TEXT, "trackio logs on this machine"),
    "trackio_bucket_id": ignored(None, TEXT, "trackio logs on this machine"),
    "trackio_static_space_id": ignored(None, ANY, "trackio logs on this machine"),
    # -- evaluation
    "eval_strategy": honored(
        "no", TEXT, "eval.steps, eval.num_tasks", "no: eval.num_tasks 0; else all evaluation rows"
    ),
    "eval_steps": honored(
        None, NUMBER, "eval.steps", "below 1: the share of all steps; in rollout batches here"
    ),
    "eval_delay": refused(0, NUMBER, "evaluations begin with the first eval.steps; leave it out"),
    "per_device_eval_batch_size": ignored(8, INT, "held-out prompts are sampled together"),
    "prediction_loss_only": ignored(False, BOOL, _UNUSED),
    "eval_on_start": honored(False, BOOL, "eval.before", "held-out tasks before the first step"),
    "eval_do_concat_batches": ignored(True, BOOL, _EVAL),
    "eval_use_gather_object": ignored(False, BOOL, _EVAL),
    "eval_accumulation_steps": ignored(None, INT, _EVAL),
    "include_for_metrics": ignored([], LIST, _UNUSED),
    "batch_eval_metrics": ignored(False, BOOL, _UNUSED),
    # -- checkpoints
    "save_strategy": honored(
        "steps", TEXT, "run.save_steps", "no: the last only; best is refused: eval.keep_best"
    ),
    "save_steps": honored(
        500, NUMBER, "run.save_steps", "below 1: the share of all steps; in rollout batches here"
    ),
    "save_total_limit": honored(None, INT, "run.save_total_limit", "None: 0, which keeps all"),
    "save_only_model": ignored(False, BOOL, "a checkpoint always has what resuming needs"),
    "save_on_each_node": ignored(False, BOOL, "the first rank writes"),
    "enable_jit_checkpoint": ignored(
        False, BOOL, "SIGTERM and Ctrl-C always save a checkpoint before the run ends"
    ),
    "load_best_model_at_end": refused(
        False, BOOL, "set eval.keep_best in the recipe: it keeps the best evaluated model"
    ),
    "metric_for_best_model": refused(None, TEXT, "eval.keep_best goes by the first reward"),
    "greater_is_better": refused(None, BOOL, "eval.keep_best takes the higher reward"),
    "resume_from_checkpoint": refused(
        None, TEXT, "continue the run itself: grpo.load_run(folder).resume()"
    ),
    "ignore_data_skip": refused(False, BOOL, "a resumed run always goes on with the next rows"),
    "restore_callback_states_from_checkpoint": refused(
        False, BOOL, "callbacks are made anew when a run is resumed; leave it out"
    ),
    # -- upload
    "push_to_hub": refused(False, BOOL, _UPLOAD),
    "hub_token": ignored(None, TEXT, _HUB),
    "hub_private_repo": ignored(None, BOOL, _HUB),
    "hub_model_id": ignored(None, TEXT, _HUB),
    "hub_strategy": ignored("every_save", TEXT, _HUB),
    "hub_always_push": ignored(False, BOOL, _HUB),
    "hub_revision": ignored(None, TEXT, _HUB),
    # -- seeds
    "full_determinism": ignored(False, BOOL, "a run with the same seed has the same bits"),
    "seed": copied(42, INT, "run.seed", "another noise than TRL's: runs agree in distribution"),
    "data_seed": ignored(None, INT, _UNUSED),
    # -- rows
    "remove_unused_columns": refused(
        False, BOOL, "rewards are given every column of a row; drop columns from the rows"
    ),
    "label_names": ignored(None, LIST, _UNUSED),
    "train_sampling_strategy": ignored("random", TEXT, _UNUSED),
    "length_column_name": ignored("length", TEXT, _UNUSED),
    "dataloader_drop_last": ignored(False, BOOL, _LOADER),
    "dataloader_num_workers": ignored(0, INT, _LOADER),
    "dataloader_pin_memory": ignored(True, BOOL, _LOADER),
    "dataloader_persistent_workers": ignored(False, BOOL, _LOADER),
    "dataloader_prefetch_factor": ignored(None, INT, _LOADER),
    "dataloader_multiprocessing_context": ignored(None, TEXT, _LOADER),
    "dataloader_in_order": ignored(True, BOOL, _LOADER),
    # -- ranks
    "ddp_find_unused_parameters": ignored(None, BOOL, _RANKS),
    "ddp_bucket_cap_mb": ignored(None, INT, _RANKS),
    "ddp_broadcast_buffers": ignored(None, BOOL, _RANKS),
    "ddp_static_graph": ignored(None, BOOL, _RANKS),
    "ddp_backend": ignored(None, TEXT, _RANKS),
    "ddp_timeout": ignored(1800, INT, _RANKS),
    "fsdp": refused(None, ANY, _LAUNCH, same=("", False, [])),
    "fsdp_config": refused(None, ANY, _LAUNCH),
    "deepspeed": refused(None, ANY, "DeepSpeed is not used; FSDP2 splits weights over GPUs"),
    "accelerator_config": refused(None, ANY, _LAUNCH),
    "parallelism_config": refused(None, ANY, "sequences are not split over GPUs; leave it out"),
    "local_rank": ignored(-1, INT, _RANKS),
    # -- the rest
    "debug": ignored("", ANY, "it prints and changes no number"),
    "skip_memory_metrics": ignored(True, BOOL, "it prints and changes no number"),
    "do_train": ignored(False, BOOL, _UNUSED),
    "do_eval": ignored(False, BOOL, "eval_strategy says whether held-out tasks are asked"),
    "do_predict": ignored(False, BOOL, _UNUSED),
}
