"""The recipe schema: every setting with its type, default, unit and meaning, and nothing else.

Names are TRL's where the meaning is TRL's. Unknown keys are refused; combinations that cannot run
are refused here, before torch is imported. `common` has the sections that stages share; `rl`,
`sft`, `pretrain`, `reject`, `distill` and `evaluation` are a kind of stage each, and a new one is
one file and one line in `recipe.STAGES`. `grpo.config.config.load` reads a YAML file into these
classes and words the errors.
"""

from grpo.config.schema.common import (
    Data,
    Lora,
    Model,
    Plugin,
    Ray,
    RewardSpec,
    Rollout,
    Run,
    Section,
)
from grpo.config.schema.distill import DistillStage, Teacher
from grpo.config.schema.evaluation import EvalStage
from grpo.config.schema.pretrain import PretrainData, PretrainStage
from grpo.config.schema.recipe import REFERENCE, STAGES, AnyStage, Recipe, artefact, references
from grpo.config.schema.reject import Filter, RejectStage
from grpo.config.schema.rl import (
    Algorithm,
    Eval,
    Learner,
    RLStage,
    Schedule,
)
from grpo.config.schema.sft import SLM, SFTData, SFTLearner, SFTStage

__all__ = [
    "REFERENCE",
    "SLM",
    "STAGES",
    "Algorithm",
    "AnyStage",
    "Data",
    "DistillStage",
    "Eval",
    "EvalStage",
    "Filter",
    "Learner",
    "Lora",
    "Model",
    "Plugin",
    "PretrainData",
    "PretrainStage",
    "RLStage",
    "Ray",
    "Recipe",
    "RejectStage",
    "RewardSpec",
    "Rollout",
    "Run",
    "SFTData",
    "SFTLearner",
    "SFTStage",
    "Schedule",
    "Section",
    "Teacher",
    "artefact",
    "references",
]
