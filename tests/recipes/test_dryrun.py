"""Every shipped recipe passes `grpo plan` and its dry run; a dry run sees what is broken."""

from __future__ import annotations

import io
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.cli import main
from grpo.commands import dryrun
from grpo.commands.architectures import FAMILIES, family_of, make_tiny
from grpo.commands.dialects import DIALECTS
from grpo.commands.dryrun import TinyModels, dry_run
from grpo.commands.plan import print_plan
from grpo.commands.shrink import changes, fixture, shrink
from grpo.config import config
from grpo.errors import GrpoError, RecipeError
from grpo.learner import saved
from grpo.outside.terminal.console import Console
from grpo.recipes.make_openr1 import convert

RECIPES = sorted(Path(__file__).resolve().parents[2].glob("recipes/*.yaml"))
NAMES = [file.stem for file in RECIPES]

# Of libraries: adapters name parts that a dense model lacks; and what they themselves deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:peft.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of tiny models for all recipes, so that each family is made once."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def shared(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = TinyModels.__init__

    def init(self: TinyModels, folder: Path, architecture: str | None) -> None:
        made(self, models, architecture)

    monkeypatch.setattr(TinyModels, "__init__", init)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_planned_and_runs_dry(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for made in ("openr1-math-220k", "openr1-cold-start"):  # by recipes/make_openr1.py
        (tmp_path / f"{made}.jsonl").write_bytes(Path(fixture("openr1")).read_bytes())
    recipe = config.load(name)
    shown = io.StringIO()
    with suppress(RecipeError):  # vllm is not installed, say; the tables stand there all the same
        print_plan(recipe, Console(file=shown, width=100))
    assert all(stage.name in shown.getvalue() for stage in recipe.stages)
    checks = dry_run(recipe, console=Console(quiet=True))
    assert [check for check in checks if not check.passed] == []
    learned = [stage.name for stage in recipe.stages if stage.kind in ("rl", "sft", "distill")]
    assert [check.stage for check in checks if check.what == "gradient"] == learned
    assert [check.what for check in checks].count("resumes") == 1


@pytest.mark.parametrize("file", RECIPES, ids=NAMES)
def test_a_recipe_says_what_it_is_in_forty_lines_a_stage(file: Path) -> None:
    lines = file.read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert lines[0].startswith("# ")
    stages = len(config.load(file.stem).stages)
    assert len(lines) - len(head) <= 40 * stages
    if re.search(r"^\s*(engine: vllm|path: Qwen)", file.read_text(), re.M):
        said = "\n".join(head)
        assert "Expected:" in said
        assert "Hardware:" in said
        assert "hours:" in said.lower()
        assert "not run here" in said.lower()
        assert re.search(r"\b2[45]\d\d\.\d{5}\b|github\.com|rllm-project|Mini-R1|verl", said)


def test_nothing_learned_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the coin every completion of the untrained model may earn the same.
    recipe = config.load("gsm8k-qwen2.5-0.5b", ["learner.max_grad_norm=0"])
    monkeypatch.setitem(dryrun.NOISE, "args", {"probability": 0.0})
    checks = {c.what: c for c in dry_run(recipe, console=Console(quiet=True))}
    assert checks["model loads"].passed
    assert not all(check.passed for check in checks.values())
    assert checks["steps"].passed


def test_a_model_half_saved_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    write = saved.write_model

    def forgetful(model: Any, state: dict[str, Any], *rest: Any, **more: Any) -> None:
        final = Path(rest[0]).parent.name == "run"  # not a checkpoint
        kept = {name: t for name, t in state.items() if not final or "layers.1" not in name}
        write(model, kept, *rest, **more)

    monkeypatch.setattr(saved, "write_model", forgetful)
    with pytest.raises(GrpoError, match=r"layers\.1"):
        dry_run(config.load("gsm8k-qwen2.5-0.5b"), console=Console(quiet=True))


def test_a_real_interruption_is_not_taken_for_the_planned_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dryrun, "train_recipe", stop)
    with pytest.raises(KeyboardInterrupt):
        dry_run(config.load("parity-r1-zero"), console=Console(quiet=True))


def test_every_change_is_listed_and_the_point_of_a_recipe_stays(models: Path) -> None:
    recipe = config.load("dapo-qwen2.5-32b")
    tiny = TinyModels(models, None)
    small = shrink(recipe, tiny.policy, tiny.scorer)
    listed = {setting: (was, now) for _, setting, was, now in changes(recipe, small)}
    assert listed["rollout.max_completion_length"] == ("20480", "24")
    assert listed["rollout.backend"] == ("ray", "local")
    assert listed["rewards.soft_overlong.cache"] == ("4096", "6")
    before, after = recipe.stages[0], small.stages[0]
    assert before.kind == after.kind == "rl"
    for name in ("advantage", "loss_type", "epsilon_high", "beta"):
        assert getattr(before.algorithm, name) == getattr(after.algorithm, name)
        assert f"algorithm.{name}" not in listed
    assert [r.title for r in after.rewards] == ["math", "soft_overlong", "dry_run_noise"]
    assert [r.weight for r in after.rewards[:2]] == [r.weight for r in before.rewards]
    assert after.model.lora.rank == 8
    assert after.rollout.max_rounds == 2


def test_rewards_inside_rewards_are_shrunk(models: Path) -> None:
    nested = (
        "rewards=[{name: gate, args: {reward: soft_overlong, reward_args: "
        "{max_length: 512, cache: 64}}}, {name: routed, args: {routes: "
        "{sums: {name: reward_model, args: {path: org/rm}}}}}]"
    )
    tiny = TinyModels(models, None)
    stage = shrink(config.load("gsm8k-qwen2.5-0.5b", [nested]), tiny.policy, tiny.scorer).stages[0]
    assert stage.kind == "rl"
    assert stage.rewards[0].args["reward_args"] == {"max_length": 24, "cache": 6}
    assert stage.rewards[1].args["routes"]["sums"]["args"]["path"] == tiny.scorer()


@pytest.mark.parametrize(
    ("path", "architecture", "dialect"),
    [
        ("Qwen/Qwen2.5-7B", "qwen2", "chatml"),
        ("Qwen/Qwen2.5-Math-1.5B", "qwen2-tied", "chatml"),
        ("Qwen/Qwen3-8B-Base", "qwen3", "qwen3"),
        ("meta-llama/Llama-3.1-8B", "llama", "llama3"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "llama-tied", "chatml"),
        ("deepseek-ai/DeepSeek-V3-Base", "deepseek_v3", "deepseek"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen2", "deepseek"),
    ],
)
def test_the_family_of_a_hub_id(path: str, architecture: str, dialect: str) -> None:
    family = family_of(path)
    assert (family.architecture, family.dialect) == (architecture, dialect)
    with pytest.raises(RecipeError, match=r"'org/unheard'.*--architecture"):
        family_of("org/unheard")
    assert family_of("org/unheard", "qwen3").architecture == "qwen3"


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama", "deepseek_v3"])
def test_a_tiny_model_writes_and_ends(architecture: str, tmp_path: Path) -> None:
    family = family_of("", architecture)
    make_tiny(family, tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.model_type == architecture
    text = "2 + 3 = 5? Ja, ganz gewiß: 是的 <think>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 3?"}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    torch.manual_seed(0)
    out = model.generate(**inputs, do_sample=True, max_new_tokens=24, num_return_sequences=32)
    ends = tokenizer.convert_tokens_to_ids(list(DIALECTS[family.dialect].ends))
    ended = sum(any(end in row for end in ends) for row in out[:, len(inputs.input_ids[0]) :])
    assert ended >= 4  # of 32: enough for a stage that keeps complete answers only


def test_every_pattern_names_an_architecture_and_a_dialect(tmp_path: Path) -> None:
    thinker = next(f for pattern, f in FAMILIES if "R1-Distill-Qwen" in pattern)
    make_tiny(thinker, tmp_path)
    prompt = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<think>\n")


def test_the_command_prints_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dry-run", "parity-r1-zero", "--out", str(tmp_path / "kept")]) == 0
    said = capsys.readouterr().err
    assert "what the dry run changed" in said
    assert "the recipe runs" in said
    summary = json.loads((tmp_path / "kept" / "run" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert main(["dry-run", "parity-r1-zero", "--out", str(tmp_path)]) == 2
    assert "name a new folder" in capsys.readouterr().err
    assert main(["dry-run", "gsm8k-qwen2.5-0.5b", "model.path=org/unheard"]) == 2
    assert main(["dry-run", "gsm8k-qwen2.5-0.5b", "data.args={dataset: org/unheard}"]) == 2
    assert "no rows are shipped" in capsys.readouterr().err


def test_openr1_rows_are_those_that_were_checked() -> None:
    row = {
        "problem": "2+2?",
        "generations": ["cut", "wrong", "right", "right too"],
        "is_reasoning_complete": [False, True, True, True],
        "correctness_math_verify": [True, False, False, True],
        "correctness_llama": [True, False, True, True],
    }
    assert list(convert([row])) == [{"prompt": "2+2?", "completion": "right"}]
    unchecked = {**row, "correctness_llama": None, "correctness_math_verify": [False] * 4}
    assert list(convert([unchecked])) == []
