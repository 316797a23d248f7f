"""Sampling settings that people know from other engines, and why a recipe has none of that name.

The learner computes the probability of every sampled token under softmax(logits / temperature),
filtered by top-k, top-p and min-p. A penalty, a bias or a grammar draws from another distribution,
one that depends on the text so far. Importance ratios of such samples would be wrong without a
word, so these settings are refused by name. Settings that change no probability have a place
already, which the message names.
"""

from __future__ import annotations

_OTHER = (
    "it changes the distribution that is sampled, and the learner would compute other "
    "probabilities than those the tokens were drawn with"
)
_REPEATS = f"{_OTHER}; against repetition use the reward 'repetition'"
_FORM = f"{_OTHER}; reward the form with 'format' or a function of yours instead"
_BEAMS = "completions are sampled from the policy, and a beam search draws none"
_LENGTH = "write rollout.max_completion_length"
_NUMBER = "write rollout.num_generations"
_END = "completions end at every eos of the model; name further ends in rollout.stop"
_TEXT = "rewards are given the text without special tokens, whatever the engine writes"

REASONS: dict[str, str] = {
    **dict.fromkeys(
        (
            "repetition_penalty",
            "encoder_repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "dry_multiplier",
        ),
        _REPEATS,
    ),
    **dict.fromkeys(
        (
            "logit_bias",
            "logits_processor",
            "logits_processors",
            "sequence_bias",
            "bad_words",
            "bad_words_ids",
            "suppress_tokens",
            "begin_suppress_tokens",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "exponential_decay_length_penalty",
            "allowed_token_ids",
            "min_tokens",
            "min_new_tokens",
            "min_length",
            "ignore_eos",
            "typical_p",
            "epsilon_cutoff",
            "eta_cutoff",
            "top_h",
            "guidance_scale",
            "watermarking_config",
            "renormalize_logits",
            "remove_invalid_values",
            "assistant_early_exit",
            "penalty_alpha",
            "dola_layers",
        ),
        _OTHER,
    ),
    **dict.fromkeys(
        (
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "guided_decoding",
            "guided_decoding_backend",
            "guided_whitespace_pattern",
            "structured_outputs",
            "structured_outputs_config",
            "response_format",
            "constraints",
            "force_words_ids",
            "prefix_allowed_tokens_fn",
        ),
        _FORM,
    ),
    **dict.fromkeys(
        (
            "num_beams",
            "num_beam_groups",
            "beam_width",
            "best_of",
            "use_beam_search",
            "early_stopping",
            "length_penalty",
            "diversity_penalty",
        ),
        _BEAMS,
    ),
    **dict.fromkeys(("max_tokens", "max_new_tokens", "max_length"), _LENGTH),
    **dict.fromkeys(("n", "num_return_sequences"), _NUMBER),
    **dict.fromkeys(("stop_token_ids", "eos_token_id", "stop_words"), _END),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens", "detokenize"), _TEXT),
    "do_sample": "completions are always sampled; rollout.temperature says how",
    "stop_strings": "write rollout.stop",
    "include_stop_str_in_output": "a string of rollout.stop always stays in the completion",
    "seed": "write run.seed, from which every sample's noise is made",
    "temperature": "write rollout.temperature",
    "top_p": "write rollout.top_p",
    "top_k": "write rollout.top_k",
    "min_p": "write rollout.min_p",
    "stop": "write rollout.stop",
    "logprobs": "the log-prob of every sampled token is always taken",
    "prompt_logprobs": "prompts are not trained on, so theirs are not needed",
    "generation_config": "of the model's only the eos tokens are read",
}


def reason(name: str) -> str:
    """Why there is no sampling setting `name`, and what to write instead."""
    return f"{name}: {REASONS.get(name, 'no engine here takes it; leave it out')}"
