"""GRPO post-training on small models: reproduce DeepSeek-R1-Zero and R1 on a CPU or on GPUs.

    import grpo
    run = grpo.train(model="runs/base", dataset=[{"prompt": "0110="}], rewards=[my_function])
    run.summary, run.metrics, run.completions(step=3), run.plot(), run.model

Names are imported when they are first used, so that `import grpo` does not import torch.
"""

from __future__ import annotations

import importlib
import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

_PUBLIC = {  # name -> module and name there
    "Completion": "grpo.types:Completion",
    "FakeEngine": "grpo.rollout.fake:FakeEngine",
    "GRPOConfig": "grpo.config.trl.settings:GRPOConfig",
    "GRPOTrainer": "grpo.commands.api.trainer:GRPOTrainer",
    "Group": "grpo.types:Group",
    "GrpoError": "grpo.errors:GrpoError",
    "PromptTemplate": "grpo.data.prompts:PromptTemplate",
    "Recipe": "grpo.config.schema:Recipe",
    "RewardSet": "grpo.rewards.compose:RewardSet",
    "Run": "grpo.commands.api.run:Run",
    "Score": "grpo.types:Score",
    "Task": "grpo.types:Task",
    "TorchEngine": "grpo.rollout.embedded.torch_engine:TorchEngine",
    "TorchLearner": "grpo.learner.learner:TorchLearner",
    "clustered_bootstrap": "grpo.evaluation.statistics:clustered_bootstrap",
    "distill": "grpo.commands.api.calls:distill",
    "evaluate": "grpo.commands.api.calls:evaluate",
    "generate": "grpo.commands.api.sampling:generate",
    "load_recipe": "grpo.config.config:load",
    "load_run": "grpo.commands.api.run:load_run",
    "pass_at_k": "grpo.evaluation.statistics:pass_at_k",
    "pipeline": "grpo.commands.api.calls:pipeline",
    "plot": "grpo.commands.api.pictures:plot",
    "reject": "grpo.commands.api.calls:reject",
    "score": "grpo.commands.api.scoring:score",
    "setup": "grpo.commands.api.packages:setup",
    "sft": "grpo.commands.api.calls:sft",
    "train": "grpo.commands.api.calls:train",
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'grpo' has no attribute {name!r}")
    module, _, attr = _PUBLIC[name].partition(":")
    with _loading():
        value = getattr(importlib.import_module(module), attr)
    globals()[name] = value
    return value


def _loading() -> AbstractContextManager[None]:
    """In a notebook, a sign of life while torch is imported."""
    if "IPython" not in sys.modules or "torch" in sys.modules:
        return nullcontext()
    return importlib.import_module("grpo.commands.api.output").loading("loading torch")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


def _is_news(record: logging.LogRecord) -> bool:
    """False for a line of bitsandbytes about a package that nothing here needs.

    On CPUs with AVX-512 it comes with every import, and peft and trl import bitsandbytes wherever
    it is installed. That a kernel failed to load although the package is there still shows.
    """
    return "from kernels-community: No module named 'kernels'" not in record.getMessage()


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)
