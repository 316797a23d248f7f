"""The fields that TRL's `GRPOConfig` adds to transformers' `TrainingArguments`, and all of them."""

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
from grpo.config.trl.trainer_fields import TRAINER_FIELDS

_ADAPTIVE = "the entropy coefficient is fixed here; set entropy_coef"
_ADAPTIVE_ONLY = "it is used with use_adaptive_entropy alone"
_ARGS = "algorithm.loss_args"
_VLLM = "with use_vllm and vllm_mode='colocate'"
_SERVER = "with use_vllm and vllm_mode='server'; `grpo serve` starts the server"
_BATCHING = "the embedded engine always batches continuously"
_PENALTY = (
    "the tokens would not be drawn from the distribution whose probabilities the learner computes; "
    "set it to 1.0, and use the reward `repetition` against repetition"
)

GRPO_FIELDS: dict[str, Field] = {
    # -- model
    "model_init_kwargs": honored(
        None,
        DICT,
        "model.dtype",
        "dtype float32 (weights are float32 in any case) and attn_implementation; others refused",
    ),
    "trust_remote_code": refused(
        False, BOOL, "code that comes with a model is never run; use a model that needs none"
    ),
    "router_aux_loss_coef": refused(
        None, NUMBER, "there is no router loss here; set it to 0.0", same=(0.0,)
    ),
    "disable_dropout": ignored(False, BOOL, "dropout is always off: the policy that sampled"),
    "cast_lm_head_to_fp32": refused(
        False, BOOL, "the head computes in model.dtype; set bf16=False for float32"
    ),
    # -- rows and lengths
    "num_generations": copied(8, INT, "rollout.num_generations"),
    "num_generations_eval": honored(None, INT, "eval.num_samples", "None: num_generations"),
    "max_completion_length": copied(512, INT, "rollout.max_completion_length"),
    "ds3_gather_for_generation": ignored(True, BOOL, "it is DeepSpeed's, which is not used"),
    "shuffle_dataset": refused(
        True, BOOL, "rows come in a fresh random order each epoch; leave it out"
    ),
    "pad_to_multiple_of": ignored("auto", ANY, "rows are packed without padding"),
    # -- generation
    "generation_batch_size": honored(
        None, INT, "rollout.prompts_per_step", "completions there, prompts here"
    ),
    "steps_per_generation": honored(
        None,
        INT,
        "rollout.prompts_per_step, algorithm.num_minibatches",
        "a multiple of gradient_accumulation_steps; their ratio is algorithm.num_minibatches",
    ),
    "temperature": honored(
        1.0, NUMBER, "rollout.temperature, eval.temperature", "evaluations use the same in TRL"
    ),
    "top_p": copied(1.0, NUMBER, "rollout.top_p"),
    "top_k": honored(0, INT, "rollout.top_k", "-1, vLLM's word for off, is 0"),
    "min_p": honored(None, NUMBER, "rollout.min_p", "None: 0"),
    "generation_kwargs": honored(
        None,
        DICT,
        "rollout",
        "temperature, top_p, top_k, min_p, stop and stop_strings; others refused by name",
    ),
    "chat_template_kwargs": honored(
        None, DICT, "data.template_args", "as its chat_template_kwargs"
    ),
    "repetition_penalty": refused(1.0, NUMBER, _PENALTY),
    "cache_implementation": ignored(None, TEXT, "the engine has its own cache"),
    "use_transformers_continuous_batching": ignored(False, BOOL, _BATCHING),
    "transformers_continuous_batching_config": ignored(None, DICT, _BATCHING),
    "use_transformers_paged": ignored(False, BOOL, _BATCHING),
    # -- vLLM
    "use_vllm": honored(False, BOOL, "rollout.engine", "vllm or server; else torch"),
    "vllm_mode": honored("colocate", TEXT, "rollout.engine", "colocate: vllm; server: server"),
    "vllm_model_impl": refused("vllm", TEXT, "vLLM's own models are used; leave it out"),
    "vllm_enable_sleep_mode": honored(False, BOOL, "rollout.engine_args.enable_sleep_mode", _VLLM),
    "vllm_structured_outputs_regex": refused(
        None, TEXT, "a constrained answer is not drawn from the policy; reward the form instead"
    ),
    "vllm_server_base_url": honored(None, TEXT, "rollout.engine_args.url", _SERVER),
    "vllm_server_host": honored("0.0.0.0", TEXT, "rollout.engine_args.url", _SERVER),
    "vllm_server_port": honored(8000, INT, "rollout.engine_args.url", _SERVER),
    "vllm_server_timeout": honored(240.0, NUMBER, "rollout.engine_args.wait", _SERVER),
    "vllm_group_port": ignored(51216, INT, "weights go to the server by its own port"),
    "vllm_gpu_memory_utilization": honored(
        0.3, NUMBER, "rollout.engine_args.gpu_memory_utilization", _VLLM
    ),
    "vllm_max_model_length": honored(None, INT, "rollout.engine_args.max_model_len", _VLLM),
    "vllm_tensor_parallel_size": honored(1, INT, "rollout.engine_args.tensor_parallel_size", _VLLM),
    # -- the objective
    "beta": copied(0.0, NUMBER, "algorithm.beta"),
    "num_iterations": copied(1, INT, "algorithm.num_iterations"),
    "epsilon": copied(0.2, NUMBER, "algorithm.epsilon"),
    "delta": honored(None, NUMBER, "algorithm.delta", "left out where the loss does not use it"),
    "epsilon_high": honored(
        None, NUMBER, "algorithm.epsilon_high", "None: epsilon, with cispo too, as in TRL"
    ),
    "sapo_temperature_neg": honored(1.05, NUMBER, _ARGS, "of sapo"),
    "sapo_temperature_pos": honored(1.0, NUMBER, _ARGS, "of sapo"),
    "vespo_k_pos": honored(2.0, NUMBER, _ARGS, "of vespo"),
    "vespo_lambda_pos": honored(3.0, NUMBER, _ARGS, "of vespo"),
    "vespo_k_neg": honored(3.0, NUMBER, _ARGS, "of vespo"),
    "vespo_lambda_neg": honored(2.0, NUMBER, _ARGS, "of vespo"),
    "importance_sampling_level": honored(
        "token", TEXT, _ARGS, "sequence is refused with vespo, token with luspo"
    ),
    "reward_weights": honored(None, LIST, "rewards.N.weight", "one for each reward"),
    "multi_objective_aggregation": honored(
        "sum_then_normalize", TEXT, "algorithm.advantage", "normalize_then_sum: gdpo"
    ),
    "scale_rewards": honored(
        "group", ANY, "algorithm.advantage", "group: grpo; batch: batch; none: dr_grpo"
    ),
    "loss_type": honored(
        "dapo", TEXT, "algorithm.loss_type", "the same name; bnpo only without accumulation: dapo"
    ),
    "mask_truncated_completions": copied(False, BOOL, "algorithm.mask_truncated_completions"),
    "sync_ref_model": honored(
        False, BOOL, "algorithm.ref_model_sync_steps", "needs ref_model_mixup_alpha=1.0"
    ),
    "ref_model_mixup_alpha": honored(
        0.6, NUMBER, "algorithm.ref_model_sync_steps", "1.0 alone: the policy replaces all of it"
    ),
    "ref_model_sync_steps": honored(
        512, INT, "algorithm.ref_model_sync_steps", "optimizer steps there, rollout batches here"
    ),
    "top_entropy_quantile": honored(
        1.0, NUMBER, _ARGS, "of all tokens of an optimizer step; TRL's of each micro-batch"
    ),
    "entropy_coef": honored(
        0.0, NUMBER, _ARGS, "mean over an optimizer step; TRL's over each micro-batch"
    ),
    "use_adaptive_entropy": refused(False, BOOL, _ADAPTIVE),
    "entropy_coef_min": ignored(0.0, NUMBER, _ADAPTIVE_ONLY),
    "entropy_coef_max": ignored(1.0, NUMBER, _ADAPTIVE_ONLY),
    "entropy_coef_delta": ignored(0.005, NUMBER, _ADAPTIVE_ONLY),
    "entropy_target": ignored(0.2, NUMBER, _ADAPTIVE_ONLY),
    "max_tool_calling_iterations": refused(
        None, INT, "completions have one turn and call no tools; use TRL for agents"
    ),
    # -- the sampler's errors
    "vllm_importance_sampling_correction": honored(
        True, BOOL, "algorithm.sampling_correction", "False, or without use_vllm: none"
    ),
    "vllm_importance_sampling_mode": honored(
        "sequence_mask", TEXT, "algorithm.sampling_correction", "the same name, with use_vllm"
    ),
    "vllm_importance_sampling_clip_max": honored(
        3.0, NUMBER, "algorithm.sampling_correction_cap", "with use_vllm; None is refused"
    ),
    "vllm_importance_sampling_clip_min": refused(
        None, NUMBER, "weights have an upper bound alone; leave it out"
    ),
    "vllm_importance_sampling_cap": honored(
        None, NUMBER, "algorithm.sampling_correction_cap", "TRL's old name of the same"
    ),
    "off_policy_mask_threshold": honored(
        None, NUMBER, _ARGS, "measured from the sampler, as TRL does with vLLM"
    ),
    "use_bias_correction_kl": refused(
        True, BOOL, "the KL term is always multiplied by the ratio; leave it out"
    ),
    # -- logging
    "log_completions": honored(
        False, BOOL, "run.num_samples_logged", "False: 0; the ledger has every completion"
    ),
    "log_multimodal": ignored(True, BOOL, "there is only text"),
    "num_completions_to_print": honored(
        None, INT, "run.num_samples_logged", "with log_completions; None: one for each prompt"
    ),
    "log_unique_prompts": ignored(False, BOOL, "one completion of a prompt is shown"),
    "log_completions_hub_repo": refused(
        None, TEXT, "nothing is uploaded; the folder `ledger` of the run has every completion"
    ),
}

FIELDS: dict[str, Field] = {**TRAINER_FIELDS, **GRPO_FIELDS}

# Names of older or other versions, and of TRL's other records -> what to write instead.
ELSEWHERE: dict[str, str] = {
    "max_prompt_length": "TRL 1.16 cuts no prompts either; leave it out, or drop long rows first",
    "warmup_ratio": "write warmup_steps with a share below 1, say warmup_steps=0.1",
    "evaluation_strategy": "it is called eval_strategy now",
    "no_cuda": "it is called use_cpu now",
    "logging_dir": "leave it out: metrics.jsonl lies in output_dir",
    "overwrite_output_dir": "leave it out: a folder that holds a run is never written over",
    "group_by_length": "leave it out: rows are packed by tokens",
    "use_liger_loss": "leave it out: the learner's own fused kernels are used",
    "wandb_log_unique_prompts": "it is called log_unique_prompts now",
    "use_peft": "give peft_config to the trainer, or model.lora in a recipe",
    "model_name_or_path": "give the model to the trainer, or model.path in a recipe",
    "attn_implementation": "leave it out: it changes no number",
    "length_penalty": "it belongs to beam search; completions are sampled",
    "num_beams": "completions are sampled: a beam is not drawn from the policy",
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "max_tokens": "write max_completion_length",
    "max_new_tokens": "write max_completion_length",
}
