"""GRPO post-training on small models: reproduce DeepSeek-R1-Zero and R1 on a CPU or on GPUs.

    import grpo
    recipe = grpo.load_recipe("parity-r1-zero", ["run.seed=7"])
    grpo.train_recipe(recipe)

Names are imported when they are first used, so that `import grpo` does not import torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

_PUBLIC = {  # name -> module and name there
    "Completion": "grpo.types:Completion",
    "Engine": "grpo.types:Engine",
    "FakeEngine": "grpo.rollout.fake:FakeEngine",
    "Group": "grpo.types:Group",
    "GrpoError": "grpo.errors:GrpoError",
    "Learner": "grpo.types:Learner",
    "PromptTemplate": "grpo.data.prompts:PromptTemplate",
    "Recipe": "grpo.config.schema:Recipe",
    "Reward": "grpo.types:Reward",
    "RewardSet": "grpo.rewards.compose:RewardSet",
    "Sampling": "grpo.types:Sampling",
    "Score": "grpo.types:Score",
    "Task": "grpo.types:Task",
    "TaskSource": "grpo.types:TaskSource",
    "TorchEngine": "grpo.rollout.embedded.torch_engine:TorchEngine",
    "TorchLearner": "grpo.learner.learner:TorchLearner",
    "Verifier": "grpo.types:Verifier",
    "clustered_bootstrap": "grpo.evaluation.statistics:clustered_bootstrap",
    "evaluate_model": "grpo.commands.eval_recipe:evaluate_model",
    "load_recipe": "grpo.config.config:load",
    "pass_at_k": "grpo.evaluation.statistics:pass_at_k",
    "resume_run": "grpo.commands.train:resume_run",
    "score_file": "grpo.rewards.score_file:score_file",
    "train_recipe": "grpo.commands.train:train_recipe",
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'grpo' has no attribute {name!r}")
    module, _, attr = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(module), attr)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


def _is_news(record: logging.LogRecord) -> bool:
    """False for a line of bitsandbytes about a package that nothing here needs.

    On CPUs with AVX-512 it comes with every import, and peft and trl import bitsandbytes wherever
    it is installed. That a kernel failed to load although the package is there still shows.
    """
    return "from kernels-community: No module named 'kernels'" not in record.getMessage()


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)
