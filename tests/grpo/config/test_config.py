"""Recipes: what is accepted means what it says, and what is refused says why in one sentence."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from grpo.config import config
from grpo.config.schema import STAGES, AnyStage, PretrainStage, RLStage
from grpo.errors import RecipeError
from grpo.method.advantage import reward_matrix
from grpo.method.table import (
    ADVANTAGES,
    OBJECTIVES,
    bound_advantage,
    find_objective,
    least_group,
    settable,
)
from tests.grpo.rows import group

ONE_STAGE = """
model: {path: MODEL}
data: {source: parity, args: {bits: 8}}
rewards:
  - {name: accuracy}
"""
TWO_STAGES = """
name: two
stages:
  - name: base
    kind: pretrain
    data: {source: parity}
  - name: rl
    model: {path: "stage:base"}
    data: {source: parity}
    rewards: [{name: accuracy}]
"""


@pytest.fixture
def one(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    file = tmp_path / "one.yaml"
    file.write_text(ONE_STAGE.replace("MODEL", "model"))
    return file


@pytest.fixture
def two(tmp_path: Path) -> Path:
    file = tmp_path / "two.yaml"
    file.write_text(TWO_STAGES)
    return file


def rl(recipe: config.Recipe) -> RLStage:
    stage = recipe.stages[-1]
    assert isinstance(stage, RLStage)
    return stage


def test_one_stage_at_top_level_has_trl_defaults(one: Path) -> None:
    recipe = config.load(one)
    stage = rl(recipe)
    assert (recipe.name, recipe.run_dir, stage.kind, stage.name) == ("one", "runs/one", "rl", "rl")
    assert stage.rollout.temperature == 1.0
    assert stage.rollout.num_generations == 8
    assert (stage.algorithm.epsilon, stage.algorithm.beta) == (0.2, 0.0)
    assert stage.algorithm.epsilon_high is None
    assert stage.rewards[0].weight == 1.0
    assert stage.model.path == str(one.parent / "model")  # beside the recipe, made absolute


def test_overrides_are_yaml_and_reach_lists_and_args(one: Path) -> None:
    recipe = config.load(
        one,
        [
            "run.seed=7",
            "run.dir=/some/dir",
            "learner.learning_rate=1e-4",
            "rollout.stop=[a, b]",
            "rewards.0.weight=-2",
            "data.args.bits=4",
            "algorithm.epsilon_high=null",
            "data.template_args.prefill=<think>",
        ],
    )
    stage = rl(recipe)
    assert (recipe.run.seed, recipe.run_dir) == (7, "/some/dir")
    assert stage.learner.learning_rate == 1e-4
    assert stage.rollout.stop == ("a", "b")
    assert stage.rewards[0].weight == -2
    assert stage.data.args == {"bits": 4}
    assert stage.data.template_args == {"prefill": "<think>"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.sed=1", ["'sed'", "run", "Did you mean 'seed'", "threads"]),
        ("rollout.num_generation=3", ["'num_generation'", "rollout", "'num_generations'"]),
        ("num_generations=3", ["'num_generations'", "mean 'rollout.num_generations'?"]),
        ("rolout.top_k=3", ["'rolout'", "'rollout'"]),
        ("parity.steps=3", ["unknown key 'parity'", "mean 'agreement'"]),
        ("rollout.num_generations=many", ["rollout.num_generations", "'many'", "whole number"]),
        ("rollout.num_generations=2.5", ["rollout.num_generations", "2.5"]),
        ("rollout.num_generations='8'", ["rollout.num_generations", "'8'", "whole number"]),
        ("run.seed=true", ["run.seed", "True", "whole number"]),
        ("run.seed=-1", ["run.seed", "-1", "greater than or equal to 0"]),
        ("rollout.top_p=1.5", ["rollout.top_p", "1.5", "less than or equal to 1"]),
        ("learner.learning_rate=.nan", ["learner.learning_rate"]),
        ("data.template=r1", ["data.template", "'r1'", "'r1_zero', 'chat' or 'raw'"]),
        ("model.dtype=fp16", ["model.dtype", "'fp16'", "'float16'"]),
        ("rewards=[]", ["rewards", "at least 1"]),
        ("rewards.0.name=acuracy", ["rewards.0", "'acuracy'", "'accuracy'", "format", "path/file"]),
        ("rewards.0.args.strictness=1", ["rewards.0", "'strictness'", "extraction"]),
        ("rewards.1.name=format", ["rewards", "valid: 0"]),
        ("eval.rewards=[{name: formt}]", ["eval.rewards.0", "'formt'", "'format'"]),
        ("data.source=party", ["data.source", "'party'", "'parity'"]),
        ("data.args.bit=3", ["data.source", "'bit'", "'bits'"]),
        ("rollout.engine=vlm", ["rollout.engine", "'vlm'", "torch"]),
        ("algorithm.loss_type=gpo", ["algorithm.loss_type", "'gpo'", "'grpo'", "bnpo"]),
        ("algorithm.advantage=rlo", ["algorithm.advantage", "'rlo'", "'rloo'"]),
        ("callbacks=[{name: notify}]", ["callbacks.0.name", "'notify'", "package.module:attr"]),
        ("rewards.0.name=no/such.py:f", ["rewards.0", "no/such.py"]),
        ("model.path=./nowhere", ["model.path", "'./nowhere'"]),
        ("model.path=stage:base", ["model.path", "'stage:base'", "none"]),
        ("kind=reinforce", ["'reinforce'", "pretrain, reject, rl"]),
        ("run.seed", ["'run.seed'", "section.key=value"]),
        ("run.seed.x=1", ["run.seed", "'x'"]),
        ("rollout.num_generations=1", ["rollout.num_generations = 1", "algorithm.advantage"]),
        (
            "algorithm={advantage: pass@k, advantage_args: {k: 8}}",
            ["rollout.num_generations = 8", "'pass@k'", "at least 9"],
        ),
        ("algorithm.advantage=pass@8", ["algorithm.advantage", "'pass@8'", "'pass@k'", "rloo"]),
        (
            "algorithm={advantage: pass@k, advantage_args: {n: 8}}",
            ["argument of algorithm.advantage = 'pass@k'", "'n'", "k"],
        ),
        *(
            (
                f"algorithm={{advantage: pass@k, advantage_args: {{k: {k}}}}}",
                [f"algorithm.advantage_args.k = {k}", "a whole number above 0"],
            )
            for k in ("0", "2.5", "True")
        ),
        (
            "algorithm.advantage_args={groups: 1}",
            ["algorithm.advantage = 'grpo' takes no arguments", "'groups'"],
        ),
        ("rewards.0.name=gdpo", ["rewards.0", "'gdpo' is no reward", "algorithm.advantage: gdpo"]),
        ("algorithm.loss_args={kl_estimator: k4}", ["loss_args.kl_estimator", "'k4'", "k3"]),
        (
            "algorithm={loss_type: sapo, loss_args: {sapo_temperature_pos: -1}}",
            ["algorithm.loss_args.sapo_temperature_pos = -1", "a number above 0"],
        ),
        ("algorithm.loss_args={entropy_coeff: 1}", ["'dapo'", "'entropy_coeff'", "'entropy_coef'"]),
        ("algorithm.loss_args={vespo_k_pos: 1}", ["'dapo'", "'vespo_k_pos'", "kl_estimator"]),
        ("algorithm={loss_type: sapo, delta: 2.0}", ["'sapo'", "algorithm.delta = 2.0"]),
        ("algorithm={loss_type: vespo, epsilon_high: 2.0}", ["'vespo'", "epsilon_high = 2.0"]),
        ("algorithm.loss_type=cispo", ["'cispo'", "algorithm.epsilon_high"]),
        (
            "algorithm={loss_type: vespo, sampling_correction: sequence_mask}",
            ["'vespo'", "'sequence_mask'", "token_truncate"],
        ),
        ("algorithm.num_minibatches=7", ["algorithm.num_minibatches = 7", "divisor of 32"]),
        ("algorithm.num_minibatches=64", ["algorithm.num_minibatches = 64", "divisor of 32"]),
        ("eval.rewards=[{name: format}, {name: format}]", ["eval.rewards.1", "'format'", "label"]),
        ("run.trackers=[tensorbord]", ["run.trackers.0", "'tensorbord'", "'tensorboard'"]),
        ("learner.tokens_per_micro_batch=100", ["tokens_per_micro_batch = 100", "512 + 256 = 768"]),
        ("learner.warmup_steps=101", ["learner.warmup_steps = 101", "0 to 100"]),
        ("run={seed: 1, seed: 2}", ["'seed'", "twice"]),
        ("run={seed: [1}", ["run", "not valid YAML"]),
    ],
)
def test_bad_settings_name_the_field_the_value_and_the_choices(
    one: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        config.load(one, [override])
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not message.endswith("..")


def test_single_generation_is_fine_without_a_group_baseline(one: Path) -> None:
    overrides = ["rollout.num_generations=1", "algorithm.advantage=none"]
    assert rl(config.load(one, overrides)).rollout.num_generations == 1


def test_missing_settings_are_named(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("data: {source: parity}\nrewards: [{name: accuracy}]\n")
    with pytest.raises(RecipeError, match=r"^model is missing"):
        config.load(file)
    file.write_text("- a\n- b\n")
    with pytest.raises(RecipeError, match="not a mapping"):
        config.load(file)


def test_missing_files_and_names_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe file.*nowhere\.yaml"):
        config.load(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match=r"unknown recipe 'parity-r1-zer'.*'parity-r1-zero'"):
        config.load("parity-r1-zer")


def test_stages_are_addressed_by_name_where_both_have_the_key(two: Path) -> None:
    recipe = config.load(
        two, ["base.learner.max_steps=3", "model.hidden_size=64", "rollout.top_k=5"]
    )
    base, stage = recipe.stages
    assert isinstance(base, PretrainStage)
    assert (base.learner.max_steps, base.model.hidden_size) == (3, 64)
    assert isinstance(stage, RLStage)
    assert (stage.learner.max_steps, stage.rollout.top_k) == (100, 5)
    with pytest.raises(RecipeError, match=r"base\.learner\.max_steps or rl\.learner\.max_steps"):
        config.load(two, ["learner.max_steps=3"])
    with pytest.raises(RecipeError, match=r"'max_step' in base\.learner.*'max_steps'"):
        config.load(two, ["base.learner.max_step=3"])
    with pytest.raises(RecipeError, match=r"^rl\.algorithm\.num_minibatches = 7"):
        config.load(two, ["rl.algorithm.num_minibatches=7"])
    with pytest.raises(RecipeError, match=r"valid: stage:base"):
        config.load(two, ["rl.model.path=stage:bass"])
    with pytest.raises(RecipeError, match=r"stage name 'base' is taken"):
        config.load(two, ["rl.name=base"])


def test_resolved_round_trips(one: Path, two: Path) -> None:
    for file in (one, two):
        recipe = config.load(file, ["run.seed=3"])
        text = json.dumps(config.resolved(recipe))
        assert config.from_dict(json.loads(text)) == recipe


def test_paths_prefer_the_working_directory(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "model").mkdir(parents=True)
    (one.parent / "my.py").write_text("")
    monkeypatch.chdir(elsewhere)
    stage = rl(config.load(one, ["rewards.0.name=my.py:f"]))
    assert stage.model.path == str(elsewhere / "model")
    assert stage.rewards[0].name == f"{one.parent / 'my.py'}:f"
    assert rl(config.load(one, ["model.path=org/name"])).model.path == "org/name"  # a hub id


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_shipped_recipes_load_and_are_short(name: str) -> None:
    recipe = config.load(name)
    assert recipe.name == name
    text = config.shipped()[name].read_text()
    lines = [x for x in text.splitlines() if x.strip() and not x.lstrip().startswith("#")]
    assert len(lines) <= 40 * len(recipe.stages)


def num_fields(stage: type[AnyStage], known: Sequence[type[AnyStage]] = ()) -> int:
    """Settings a reader of a stage has to know: all but its name and kind.

    A section met a second time (the rewards of an evaluation) counts as one; one that a stage of a
    `known` kind has as well, as none.
    """
    met: set[type] = set()

    def count(model: type[BaseModel], free: set[type]) -> int:
        met.update(model.__mro__)
        total = 0
        for info in model.model_fields.values():
            inner = config._model_in(info.annotation)
            if inner is None or (inner in met and inner not in free):
                total += 1
            elif inner not in free:
                total += count(inner, free)
        return total

    for other in known:
        count(other, set())
    return count(stage, set(met)) - len({"name", "kind"})


def test_schema_stays_small_and_every_setting_is_explained() -> None:
    assert num_fields(RLStage) <= 80
    known = [RLStage]
    for kind in ("pretrain", "sft", "reject", "distill", "eval"):
        assert num_fields(STAGES[kind], known) <= 15, kind
        known.append(STAGES[kind])
    for model in (config.Run, *STAGES.values()):
        for name, info in config.section_types(model).items():
            assert info.description or name in ("kind", "name"), name


def test_the_table_has_the_arguments_that_the_token_losses_take() -> None:
    for name, objective in OBJECTIVES.items():
        taken = inspect.signature(find_objective(name).token_loss).parameters.values()
        own = {p.name: p.default for p in taken if p.kind is p.KEYWORD_ONLY}
        assert own == {name: argument.default for name, argument in objective.arguments.items()}
        assert settable(objective) == settable(find_objective(name))


def test_the_least_group_of_an_advantage_is_the_smallest_that_compares() -> None:
    for name, args in (*((name, {}) for name in ADVANTAGES), ("pass@k", {"k": 8})):
        least = least_group(name, args)
        assert least == {"none": 1, "pass@k": args.get("k", 4) + 1}.get(name, 2)
        for size, compares in ((least - 1, False), (least, True)):
            rewards = [(*[0.0] * (size - 1), last)[:size] for last in (0.5, 1.0)]
            groups = [group(i, 1, [1] * size, row) for i, row in enumerate(rewards)]
            advantage = bound_advantage(name, args, reward_weights={"mine": 1.0})
            assert advantage(reward_matrix(groups), groups).any() == compares


def test_loading_a_recipe_imports_neither_torch_nor_sympy(one: Path) -> None:
    code = (
        "import sys; from grpo.config import config; import grpo.cli; "
        f"config.load({str(one)!r}); "
        "print([m for m in ('torch', 'transformers', 'sympy', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
