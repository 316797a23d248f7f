"""Speculative decoding in vLLM: its settings, its acceptance, and whether it pays.

A step with drafts checks k+1 tokens a row instead of one. It pays when the tokens it brings per
second are more than plain steps bring, which depends on machine, batch and policy; so both are
measured: after `restart`, some steps run plain and some with drafts, and drafting stays on only
while it is faster. Acceptance says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from grpo.errors import EngineError
from grpo.rollout.vllm import compat
from grpo.types import Metrics

TRIAL = 24  # steps of each kind in one comparison
LOSSES = 3  # comparisons in a row that drafting has to lose before it is off
_DRAFTS = "vllm:spec_decode_num_drafts"
_DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens"
_COUNTERS = (_DRAFTS, _DRAFT_TOKENS, _ACCEPTED)


@dataclass(kw_only=True)
class Speculation:
    """Speculation of `tokens` drafts a step; `model` is "" (n-grams of the text so far), "mtp"
    (the checkpoint's own prediction layer) or a draft model's folder or hub id.

    Only n-gram drafting can be switched off while the engine runs; a draft model stays on, and its
    metrics say what it brings.
    """

    tokens: int
    model: str = ""
    on: bool = True
    losses: int = 0  # comparisons lost in a row
    _steps: int = 0  # of the current trial, both kinds
    _rates: dict[bool, list[float]] = field(default_factory=dict[bool, list[float]])
    _before: Mapping[str, float] = field(default_factory=dict[str, float])
    _last_gain: float = 0.0
    _propose: Any = None  # vLLM's drafting function while ours stands in for it

    def config(self) -> dict[str, Any]:
        """vLLM's speculative_config."""
        if self.tokens < 1:
            raise EngineError(
                f"speculative_tokens = {self.tokens}; valid: 0 (off), or drafts per step, say 3"
            )
        if not self.model:
            return {
                "method": "ngram",
                "num_speculative_tokens": self.tokens,
                "prompt_lookup_max": 4,
                "prompt_lookup_min": 2,
            }
        if self.model == "mtp":
            return {"method": "mtp", "num_speculative_tokens": self.tokens}
        return {
            "method": "draft_model",
            "model": self.model,
            "num_speculative_tokens": self.tokens,
        }

    def observe(self, llm: Any, tokens: int, seconds: float) -> None:
        """Count a step that brought `tokens` tokens in `seconds`; switch drafting on or off.

        A trial is `TRIAL` steps with drafts and `TRIAL` without; drafting that was slower in
        `LOSSES` trials in a row is off until the next weights.
        """
        if self.model or not self.on or not tokens:
            return
        drafting = self._steps < TRIAL
        # The first steps of either kind still carry what the other left.
        if self._steps % TRIAL >= 2:
            self._rates.setdefault(drafting, []).append(tokens / max(seconds, 1e-9))
        self._steps += 1
        if self._steps == TRIAL:
            self._draft(llm, False)
        elif self._steps == 2 * TRIAL:
            gain = self.gain()
            self.losses = self.losses + 1 if gain < 1.0 else 0
            self.on = self.losses < LOSSES
            self._steps, self._rates = 0, {}
            self._last_gain = gain
            if self.on:
                self._draft(llm, True)

    def gain(self) -> float:
        """Tokens per second with drafts over those without, medians over the trial's steps."""
        return median(self._rates[True]) / max(median(self._rates[False]), 1e-9)

    def restart(self, llm: Any) -> None:
        """New weights: drafting gets another chance."""
        self._steps, self._rates, self.losses, self.on = 0, {}, 0, True
        self._draft(llm, True)

    def take_metrics(self, llm: Any) -> Metrics:
        """Share of drafts accepted, tokens accepted per draft, and whether drafting is on."""
        now = {m.name: float(m.value) for m in llm.get_metrics() if m.name in _COUNTERS}
        new = {name: now.get(name, 0.0) - self._before.get(name, 0.0) for name in _COUNTERS}
        self._before = now
        metrics = {"rollout/draft_on": float(self.on)}
        if new[_DRAFTS]:
            metrics["rollout/draft_acceptance"] = new[_ACCEPTED] / max(new[_DRAFT_TOKENS], 1.0)
            metrics["rollout/accepted_per_draft"] = new[_ACCEPTED] / new[_DRAFTS]
        if self._last_gain:
            metrics["rollout/draft_gain"] = self._last_gain
        return metrics

    def _draft(self, llm: Any, on: bool) -> None:
        """Let vLLM's n-gram drafter work, or have it propose nothing."""
        if self.model:
            return
        drafter = compat.worker(llm).model_runner.drafter
        if on and self._propose is not None:
            drafter.propose, self._propose = self._propose, None
        elif not on and self._propose is None:
            self._propose = drafter.propose
            drafter.propose = _no_drafts


def _no_drafts(*arguments: Any, **_: Any) -> list[list[int]]:
    """No draft for any row; the second argument has one entry per row."""
    return [[] for _ in arguments[1]]
