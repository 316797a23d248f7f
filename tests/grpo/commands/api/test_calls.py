"""`grpo.train` and its brothers: what objects train is what a recipe of files trains."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo
from grpo.errors import RewardError, RunError

BASE = "assets/parity-base"
FOLDER = str(Path(str(grpo.__file__)).parent / "recipes" / BASE)
ROWS = [
    {
        "prompt": f"{number * 2654435761 % 65536:016b}=",
        "answer": str(number % 2),
        "half": number / 2,
    }
    for number in range(24)
]
SHORT: dict[str, Any] = {
    "max_steps": 2,
    "num_generations": 4,
    "prompts_per_step": 4,
    "max_completion_length": 24,
    "learning_rate": 1e-3,
    "eval": {"num_tasks": 2, "num_samples": 1},
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def length(completions: list[str], half: list[float], **_: Any) -> list[float]:
    """A reward that reads a column."""
    return [len(text) / 100 + h / 1000 for text, h in zip(completions, half, strict=True)]


def weights(run: grpo.Run) -> str:
    """A hash of the trained weights."""
    return hashlib.sha256((run.left_model() / "model.safetensors").read_bytes()).hexdigest()


def test_objects_train_the_same_bits_as_files(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "mine.py").write_text(
        "def length(completions, half, **_):\n"
        "    return [len(t) / 100 + h / 1000 for t, h in zip(completions, half, strict=True)]\n"
    )
    held = {"data": {"args": {"heldout_fraction": 0.2}}}
    files = grpo.train(
        model=BASE, dataset="rows.jsonl", rewards=["accuracy", "mine.py:length"], **SHORT, **held
    )
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    objects = grpo.train(model=model, dataset=ROWS, rewards=["accuracy", length], **SHORT, **held)
    assert weights(files) == weights(objects)
    assert weights(objects) != weights(
        grpo.train(model=BASE, dataset=ROWS, rewards=length, **SHORT)
    )
    untouched = AutoModelForCausalLM.from_pretrained(FOLDER)
    pairs = zip(model.parameters(), untouched.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert any(
        not torch.equal(mine, trained)
        for mine, trained in zip(model.parameters(), objects.model.parameters(), strict=True)
    )


def test_rewards_of_every_kind_score_together() -> None:
    class Stateful:
        calls = 0

        async def __call__(self, completions: list[str], **_: Any) -> list[float]:
            self.calls += 1
            return [0.25] * len(completions)

    stateful, offset = Stateful(), 0.5
    run = grpo.train(
        model=BASE,
        dataset=ROWS,
        rewards=[
            lambda completions, **_: [offset] * len(completions),
            stateful,
            "accuracy",
            {"name": length, "label": "long", "weight": 2.0},
            lambda completions, **_: [None] * len(completions),
        ],
        reward_weights=[1.0, 2.0, 1.0, 3.0, 1.0],
        **SHORT,
    )
    found = run.completions(step=2)
    assert list(found.columns[3:8]) == ["lambda", "Stateful", "accuracy", "long", "lambda_2"]
    assert stateful.calls > 0
    assert (found["lambda"] == 0.5).all()
    assert (found["Stateful"] == 0.25).all()
    assert found["lambda_2"].isna().all()
    expected = 0.5 + 2 * 0.25 + found["accuracy"] + 3 * found["long"]
    assert found["reward"].to_list() == pytest.approx(expected.to_list())


def test_a_pipeline_of_calls_starts_each_stage_from_the_one_before() -> None:
    taught = [{"prompt": row["prompt"], "completion": "<answer>1</answer>"} for row in ROWS]
    run = grpo.pipeline(
        [
            {"kind": "sft", "model": BASE, "dataset": taught, "max_steps": 2, "batch_size": 4},
            {"kind": "rl", "dataset": ROWS, "rewards": [length], **SHORT},
        ],
        seed=3,
        threads=1,
    )
    assert list(run.summaries) == ["sft", "rl"]
    assert run.recipe.run.seed == 3
    assert run.recipe.stages[1].model_dump()["model"]["path"] == "stage:sft"
    assert list(run.metrics.index) == [("sft", 1), ("sft", 2), ("rl", 1), ("rl", 2)]
    tuned = grpo.sft(model=BASE, dataset=taught, max_steps=2, batch_size=4, seed=3, threads=1)
    trained = grpo.train(model=tuned, dataset=ROWS, rewards=[length], seed=3, threads=1, **SHORT)
    assert weights(trained) == weights(run)


def test_a_reward_model_in_memory_scores_as_one_from_a_folder(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    config = AutoModelForCausalLM.from_pretrained(FOLDER).config
    config.num_labels = 1
    torch.manual_seed(0)
    judge = LlamaForSequenceClassification(config)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    judge.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    from_folder = {"name": "reward_model", "args": {"path": str(tmp_path / "judge")}}
    runs = [
        grpo.train(model=BASE, dataset=ROWS, rewards=[reward], **SHORT)
        for reward in ((judge, tokenizer), from_folder)
    ]
    assert weights(runs[0]) == weights(runs[1])
    scores = [run.completions(step=1)["reward_model"] for run in runs]
    assert scores[0].to_list() == scores[1].to_list()
    assert scores[0].std() > 0


def test_evaluate_compares_models_on_every_row() -> None:
    run = grpo.train(model=BASE, dataset=ROWS, rewards=[length], **SHORT)
    found = grpo.evaluate(
        model=[BASE, run], dataset=ROWS, rewards=[length, "accuracy"], max_completion_length=24
    )
    assert found.summary["details"]["parity-base"]["tasks"] == len(ROWS)
    own = run.evaluate(dataset=ROWS[:7], num_samples=2)
    assert [d["tasks"] for d in own.summary["details"].values()] == [7, 7]
    assert own.summary["baseline"] == "parity-base"


def test_folders_are_numbered_named_and_replaced(tmp_path: Path) -> None:
    def go(**keywords: Any) -> grpo.Run:
        return grpo.train(model=BASE, dataset=ROWS, rewards=length, **SHORT, **keywords)

    assert [go().folder.name, go().folder.name, go(name="mine").folder.name] == [
        "train-1",
        "train-2",
        "mine-1",
    ]
    assert go(dir="here").folder == tmp_path / "here"
    few = {"max_steps": 1, "eval": {"num_tasks": 1, "num_samples": 1}, "prompts_per_step": 2}
    assert grpo.train("parity-r1-zero", **few).folder.name == "parity-r1-zero-1"
    recipe = grpo.load_recipe("parity-r1-zero", [f"run.dir={tmp_path / 'said'}"])
    assert grpo.train(recipe, **few).folder == tmp_path / "said"
    with pytest.raises(RunError, match=r"already holds a run.*overwrite=True"):
        go(dir="here")
    before = weights(grpo.load_run("here"))
    assert weights(go(dir="here", overwrite=True, seed=7)) != before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="no run"):
        go(dir="other", overwrite=True)
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_a_call_that_fails_leaves_no_folder_and_the_next_one_is_as_ever() -> None:
    def broken(completions: list[str], **_: Any) -> list[float]:
        raise KeyError("gold")

    good = weights(grpo.train(model=BASE, dataset=ROWS, rewards=[length], **SHORT))
    with pytest.raises(RewardError, match=r"'broken' raised KeyError: 'gold' at .*test_calls\.py"):
        grpo.train(model=BASE, dataset=ROWS, rewards=[broken], **SHORT)
    assert [place.name for place in Path("runs").iterdir()] == ["train-1"]
    assert weights(grpo.train(model=BASE, dataset=ROWS, rewards=[length], **SHORT)) == good


def test_a_run_in_the_making_goes_on_with_the_same_objects() -> None:
    def stopping(completions: list[str], half: list[float], **_: Any) -> list[float]:
        with open("calls", "a+") as file:
            file.write(".")
            if Path("stops").exists() and file.tell() > 12:
                raise RuntimeError("enough")
        return length(completions, half)

    Path("stops").touch()
    long = {**SHORT, "max_steps": 6, "save_steps": 1}
    with pytest.raises(RewardError, match="enough"):
        grpo.train(model=BASE, dataset=ROWS, rewards=[stopping], name="stopped", **long)
    run = grpo.load_run("runs/stopped-1")
    with pytest.raises(RunError, match=r"resume\(rewards=\[stopping\], dataset=…\)"):
        run.resume()
    with pytest.raises(RunError, match="rows"):
        run.resume(rewards=[stopping], dataset=ROWS[:-1])
    Path("stops").unlink()
    run.resume(rewards=[stopping], dataset=ROWS)
    whole = grpo.train(model=BASE, dataset=ROWS, rewards=[stopping], name="whole", **long)
    assert weights(run) == weights(whole)


def test_a_model_in_memory_generates_as_its_folder_and_is_not_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {"prompts": [row["prompt"] for row in ROWS[:3]], "n": 2, "seed": 1}
    asked["max_completion_length"] = 24
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    from_folder = grpo.generate(model=BASE, **asked)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were written")

    monkeypatch.setattr(type(model), "save_pretrained", never)
    found = grpo.generate(model=model, **asked)
    assert found["completion"].to_list() == from_folder["completion"].to_list()
    assert found["logprob"].to_list() == pytest.approx(from_folder["logprob"].to_list(), abs=1e-4)
    with torch.no_grad():  # the weights that it has now
        model.get_output_embeddings().weight.mul_(0.1)
    assert grpo.generate(model=model, **asked)["logprob"].sum() < found["logprob"].sum()
