"""Which type `auto` is on which device, and what a GPU without bfloat16 is told. No GPU needed."""

from __future__ import annotations

import json

import pytest
import torch

from grpo.cli import main
from grpo.commands import plan
from grpo.commands.out_of_memory import LEARNING, cheaper, of_tasks
from grpo.commands.train import resume_run, train_recipe
from grpo.config import config
from grpo.errors import RecipeError
from grpo.model import compute_types
from grpo.model.compute_types import check, check_kernels, check_type, chosen, narrow, settled
from grpo.stages import preflight

NAMES = {
    (7, 0): "Tesla V100",
    (7, 5): "Tesla T4",
    (8, 0): "NVIDIA A100",
    (8, 9): "NVIDIA L4",
    (9, 0): "NVIDIA H200",
    (12, 1): "NVIDIA GB10",
    (13, 0): "a later one",
}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    """Call it with a capability: torch then says that there is such a GPU. Nothing runs on it."""

    def fake(*capability: int) -> None:
        archs = ["sm_75", "sm_80", "sm_90a", "sm_120", "compute_120"]
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: archs)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: NAMES[capability])
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as on a T4

    return fake


def recipe(*overrides: str):
    return config.load("parity-r1-zero", list(overrides))


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")],
)
def test_auto_goes_by_the_capability_of_the_gpu(card, capability, expected):
    card(*capability)
    assert chosen("auto") == chosen("auto", GPU) == narrow() == expected
    assert chosen("auto", CPU) == chosen("auto", torch.device("mps")) == "float32"


def test_on_a_cpu_auto_is_float32_also_beside_a_gpu(card, monkeypatch):
    assert chosen("auto") == "float32"
    assert narrow() == "bfloat16"
    card(9, 0)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert chosen("auto") == "float32"


def test_what_a_person_names_stays(card):
    card(7, 5)
    for name in ("float32", "bfloat16", "float16"):
        assert chosen(name) == name


def test_amd_has_bfloat16_whatever_its_number(card, monkeypatch):
    card(7, 5)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert chosen("auto") == "bfloat16"
    check_type("model.dtype", "bfloat16")


def test_every_setting_of_every_stage_is_settled(card):
    card(7, 5)
    tree = config.resolved(recipe("rollout.dtype=auto"))
    rl = tree["stages"][0]
    sample = {key: rl[key] for key in ("data", "rewards")}
    second = {"kind": "eval", "models": ["stage:rl"], **sample}
    two = config.from_dict({**tree, "stages": [rl, second]})
    assert [stage.model_dump()["dtype"] for stage in two.stages[1:]] == ["auto"]
    done = settled(two)
    assert done.stages[0].model.dtype == done.stages[0].rollout.dtype == "float16"
    assert done.stages[1].dtype == "float16"
    assert settled(done, CPU) == done  # settled once
    assert "auto" not in json.dumps(config.resolved(done))
    assert settled(recipe(), CPU).stages[0].rollout.dtype is None


@pytest.mark.parametrize("setting", ["model.dtype", "rollout.dtype"])
def test_a_gpu_without_bfloat16_refuses_it_with_what_to_write(card, setting):
    wanted = recipe(f"{setting}=bfloat16")
    check(wanted.stages[0])  # a CPU takes it
    card(8, 0)
    check(wanted.stages[0])
    card(7, 5)
    with pytest.raises(RecipeError) as caught:
        check(wanted.stages[0], "rl.")
    said = str(caught.value)
    assert said.startswith(f"rl.{setting} = bfloat16, which Tesla T4 (compute capability 7.5)")
    assert f"set rl.{setting}=float16 or rl.{setting}=auto" in said
    for name in ("auto", "float16", "float32"):
        check(recipe(f"{setting}={name}").stages[0])


def test_an_engine_elsewhere_may_compute_in_what_this_gpu_lacks(card):
    card(7, 5)
    served = ["rollout.engine=server", "rollout.engine_args.url=http://127.0.0.1:1"]
    check(recipe("rollout.dtype=bfloat16", *served).stages[0])
    with pytest.raises(RecipeError, match=r"model\.dtype = bfloat16"):
        check(recipe("model.dtype=bfloat16", *served).stages[0])


def test_plan_and_preflight_refuse_it_before_anything_starts(card, capsys):
    card(7, 5)
    with pytest.raises(RecipeError, match="Tesla T4"):
        preflight.check(recipe("model.dtype=bfloat16"))
    assert main(["plan", "parity-r1-zero", "model.dtype=bfloat16"]) == 2
    assert "set model.dtype=float16 or model.dtype=auto" in capsys.readouterr().err


def test_a_gpu_that_pytorch_was_not_compiled_for_is_refused(card):
    check_kernels()  # a CPU
    for capability in NAMES:
        card(*capability)
        if capability != (7, 0):
            check_kernels()
            continue
        with pytest.raises(RecipeError, match=r"no code for Tesla V100 .*, only for sm_75, sm_80"):
            check_kernels()
        with pytest.raises(RecipeError, match="install a PyTorch that has"):
            preflight.check(recipe())


def test_plan_counts_the_type_that_will_be_used(card, capsys):
    plan.print_plan(recipe())
    assert "engine's copy" not in capsys.readouterr().out
    card(7, 5)
    plan.print_plan(recipe())
    line = next(n for n in capsys.readouterr().out.splitlines() if "engine's copy" in n)
    assert "float16" in line


def test_less_memory_is_advised_in_a_type_that_there_is(card):
    stage = recipe("model.dtype=float32").stages[0]
    assert "model.dtype=bfloat16 (now float32)" in list(cheaper(stage, LEARNING))
    assert "--dtype bfloat16" in of_tasks("torch", {}, 0, "auto")
    card(7, 5)
    assert "model.dtype=float16 (now float32)" in list(cheaper(stage, LEARNING))
    assert "--dtype float16" in of_tasks("torch", {}, 0, "float32")
    assert not any("--dtype" in text for text in of_tasks("torch", {}, 0, "auto"))


def test_a_run_is_recorded_with_the_type_and_goes_on_with_it(tmp_path):
    small = ["learner.max_steps=1", "eval.num_tasks=2", "agreement.steps=0", "run.threads=1"]
    small += ["rollout.prompts_per_step=2", "rollout.num_generations=2"]
    small += ["rollout.max_completion_length=8"]
    folder = tmp_path / "run"
    train_recipe(recipe(f"run.dir={folder}", *small))
    (stage,) = json.loads((folder / "resolved.json").read_text())["stages"]
    assert stage["model"]["dtype"] == "float32"
    resume_run(folder)  # the same settings as were recorded


def test_a_recorded_type_is_not_chosen_anew(card):
    """A run of an A100 has bfloat16 in its resolved.json, and a T4 says so instead of going on."""
    card(8, 0)
    written = config.resolved(settled(recipe()))
    card(7, 5)
    found = config.from_dict(written)
    assert found.stages[0].model.dtype == "bfloat16"
    with pytest.raises(RecipeError, match=r"goes on on a GPU of 8\.0 or newer"):
        compute_types.check(found.stages[0])
