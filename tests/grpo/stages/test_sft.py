"""The sft stage on a tiny model: what is trained, how it is cut and packed, kills, what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.config.schema import Lora, Model, Run, SFTData, SFTLearner, SFTStage
from grpo.errors import LearnerError, RecipeError
from grpo.model.quantize import round_base
from grpo.outside.terminal.console import Console
from grpo.stages import sft_trainer
from grpo.stages.sft import fine_tune, longest_row
from grpo.stages.sft_trainer import IGNORED, StageTrainer, settings, training_set
from grpo.stages.supervised_rows import TokenRow
from tests.grpo.tiny_bases import LETTERS, save_tiny_base

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PEAK = 1e-2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows() -> list[TokenRow]:
    rng = np.random.default_rng(0)

    def ids(longest: int) -> tuple[int, ...]:
        return tuple(rng.integers(6, 14, rng.integers(1, longest)).tolist())

    return [TokenRow(prompt_ids=ids(6), ids=(*ids(9), 1)) for _ in range(12)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty rows whose completion is the prompt in capital order: something to learn."""
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list(LETTERS), 4)) for _ in range(30)]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"prompt": w, "completion": "".join(sorted(w))}) for w in words]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def recipe(base: str, file: str, folder: Path, **sections: Any) -> dict[str, Any]:
    stage: dict[str, Any] = {
        "kind": "sft",
        "model": {"path": base},
        "data": {"path": file},
        "learner": {"batch_size": 8, "max_steps": 10, "learning_rate": PEAK},
    }
    run = {"dir": str(folder), "threads": 1, "save_steps": 2}
    return {"name": "tiny-sft", "run": run, "stages": [stage | sections]}


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def first_step(
    base: str, rows: list[TokenRow], folder: Path, **changes: Any
) -> tuple[float, dict[str, torch.Tensor], StageTrainer]:
    """Loss and gradient of the trainer's first optimizer step, and the trainer."""
    learner = SFTLearner(batch_size=12, **{"max_length": 40, "num_train_epochs": 1.0, **changes})
    data = training_set(rows, learner, 0)
    args = settings(data, learner, Run(), folder, "float32", torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = StageTrainer(
        model=model,
        args=args,
        train_dataset=data.data,
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    stream = iter(trainer.get_train_dataloader())
    batches, count = trainer.get_batch_samples(
        stream, args.gradient_accumulation_steps, torch.device("cpu")
    )
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(model, batch, num_items_in_batch=count)
        loss.backward()
        total += loss.item()
    return total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, trainer


def test_loss_and_gradient_are_those_of_the_completions_packed_or_not(
    base: str, rows: list[TokenRow], tmp_path: Path, monkeypatch: Any
) -> None:
    exact = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    losses = []
    for row in rows:  # one by one: nothing to pad, nobody to see
        ids = torch.tensor([[*row.prompt_ids, *row.ids]])
        logp = exact(ids[:, :-1]).logits[0].log_softmax(-1)
        losses.append(-logp[torch.arange(len(row) - 1), ids[0, 1:]][-len(row.ids) :])
    expected = torch.cat(losses).mean()
    expected.backward()
    for changes, micro_tokens in (({}, 4096), ({}, 30), ({"packing": True}, 4096)):
        monkeypatch.setattr(sft_trainer, "MICRO_TOKENS", micro_tokens)
        loss, gradients, trainer = first_step(base, rows, tmp_path, **changes)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert trainer.tokens_trained == sum(len(row.ids) for row in rows)
        for name, parameter in exact.named_parameters():
            if name in gradients:
                torch.testing.assert_close(
                    gradients[name].double(), parameter.grad, rtol=1e-3, atol=1e-6, msg=name
                )


def test_how_a_step_is_cut_changes_neither_loss_nor_weights(
    base: str, rows: list[TokenRow], tmp_path: Path, monkeypatch: Any
) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for micro_tokens in (4096, 30):
        monkeypatch.setattr(sft_trainer, "MICRO_TOKENS", micro_tokens)
        folder = tmp_path / str(micro_tokens)
        folder.mkdir()
        summary = fine_tune(
            rows,
            stage=SFTStage(
                model=Model(path=base),
                data=SFTData(path="rows"),
                learner=SFTLearner(batch_size=8, max_steps=3, learning_rate=1e-3),
            ),
            tokenizer=AutoTokenizer.from_pretrained(base),
            run=Run(threads=1, save_steps=0),
            folder=folder,
            console=Console(quiet=True),
        )
        found.append(AutoModelForCausalLM.from_pretrained(summary["model"]).state_dict())
    first, second = (metrics(tmp_path / name) for name in ("4096", "30"))
    for one, other in zip(first, second, strict=True):
        for name in ("loss", "grad_norm", "tokens_trained"):  # 8 rows or 1 in a forward pass
            assert one[name] == pytest.approx(other[name], rel=1e-4)
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_eos_is_trained_on_where_it_is_the_pad_token_too(
    base: str, rows: list[TokenRow], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    learner = SFTLearner(batch_size=12, num_train_epochs=1)
    data = training_set(rows, learner, 0)
    args = settings(data, learner, Run(), tmp_path, "float32", torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = StageTrainer(
        model=model, args=args, train_dataset=data.data, processing_class=tokenizer
    )
    (batch,) = iter(trainer.get_train_dataloader())
    assert (batch["labels"] == 1).sum() == len(rows)
    assert (batch["labels"] != IGNORED).sum() == sum(len(row.ids) for row in rows)
    assert (batch["input_ids"] == 1).sum() > len(rows)  # padded with it as well


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own(rows: list[TokenRow]) -> None:
    def seen(learner: SFTLearner, seed: int = 0) -> tuple[list[list[int]], int]:
        made = training_set(rows, learner, seed)
        return [list(ids) for ids in made.data["input_ids"]], made.steps

    every = sorted([*row.prompt_ids, *row.ids] for row in rows)
    ordered, steps = seen(SFTLearner(batch_size=5, num_train_epochs=2.5))
    assert (len(ordered), steps) == (30, 6)
    assert all(2 <= ordered.count(ids) <= 3 for ids in every)
    assert ordered != seen(SFTLearner(batch_size=5, num_train_epochs=2.5), seed=1)[0]
    whole, steps = seen(SFTLearner(batch_size=4, max_steps=9))
    epochs = [whole[12 * epoch : 12 * epoch + 12] for epoch in range(3)]
    assert (steps, [sorted(epoch) for epoch in epochs]) == (9, [every] * 3)
    assert epochs[0] != epochs[1] != epochs[2]
    for start in range(0, 36, 4):  # the longest of a step first: less padding
        lengths = [len(ids) for ids in whole[start : start + 4]]
        assert lengths == sorted(lengths, reverse=True)


def test_a_stage_learns_and_leaves_a_model_with_its_tokenizer(
    base: str, file: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    summary = train_recipe(from_dict(recipe(base, file, folder)), Console(quiet=True))
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert summary["loss"] == pytest.approx(np.mean([line["loss"] for line in lines]))
    assert (summary["rows"], summary["steps"], summary["dropped_rows"]) == (30, 10, 0)
    assert summary["tokens_trained"] == 80 * 5 == lines[-1]["tokens_trained"]
    assert "30 rows, loss" in summary["result"]
    # warm-up of 3% of ten steps is one step, at the peak; then a cosine down to a tenth of it
    rates = [line["learning_rate"] for line in lines]
    assert rates[0] == pytest.approx(PEAK)
    assert rates[-1] == pytest.approx(PEAK / 10)
    middle = PEAK * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 4 / 9)))
    assert rates[4] == pytest.approx(middle, rel=1e-4)

    model = summary["model"]
    for name in ("tokenizer.json", "generation_config.json"):
        assert (Path(model) / name).read_bytes() == (Path(base) / name).read_bytes()
    told = json.loads((Path(model) / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)
    assert AutoConfig.from_pretrained(model).to_diff_dict() == (
        AutoConfig.from_pretrained(base).to_diff_dict()
    )
    assert GenerationConfig.from_pretrained(model).eos_token_id == 1
    assert not list(folder.rglob("README.md"))
    assert not (folder / "trainer.tmp").exists()
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step_000008", "step_000010"]


@pytest.mark.parametrize("kind", ["selected tokens", "four bits"])
def test_kill_and_resume_end_in_the_same_weights(
    kind: str, base: str, file: str, tmp_path: Path
) -> None:
    chosen: dict[str, Any] = {"slm": {"select": "excess", "reference": base}}
    if kind == "four bits":
        chosen = {"model": {"path": base, "lora": {"rank": 4}, "quantization": "nf4"}}
    finished, folder = tmp_path / "finished", tmp_path / "killed"
    train_recipe(from_dict(recipe(base, file, finished, **chosen)), Console(quiet=True))
    yaml = tmp_path / "tiny.yaml"
    yaml.write_text(json.dumps(recipe(base, file, folder, **chosen)))  # JSON is YAML
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo.cli", "train", str(yaml)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_bytes().splitlines()) < 5:  # in the second epoch
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()

    cached = folder / "reference_losses.safetensors"
    written = cached.stat().st_mtime_ns if cached.exists() else 0
    resumed = resume_run(folder, Console(quiet=True))
    assert metrics(folder) == metrics(finished)
    assert resumed["tokens_trained"] == metrics(finished)[-1]["tokens_trained"]
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in (folder, finished)]
    assert weights[0] == weights[1]
    assert (cached.stat().st_mtime_ns if cached.exists() else 0) == written
    assert (written > 0) == (kind == "selected tokens")

    # killed once more, after the last checkpoint and before the model was written
    shutil.rmtree(folder / "model")
    (folder / "summary.json").unlink()
    resume_run(folder, Console(quiet=True))
    assert (folder / "model" / "model.safetensors").read_bytes() == weights[1]
    assert metrics(folder) == metrics(finished)
    assert not (folder / "trainer.tmp").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_merged_and_lies_beside_the_model(
    base: str, rows: list[TokenRow], tmp_path: Path, dtype: Any
) -> None:
    summary = fine_tune(
        rows,
        stage=SFTStage(
            model=Model(path=base, lora=Lora(rank=2), dtype=dtype),
            data=SFTData(path="rows"),
            learner=SFTLearner(batch_size=4, max_steps=4, learning_rate=PEAK),
        ),
        tokenizer=AutoTokenizer.from_pretrained(base),
        run=Run(threads=1, save_steps=2),
        folder=tmp_path,
        console=Console(quiet=True),
    )
    merged = AutoModelForCausalLM.from_pretrained(summary["model"])
    compute = getattr(torch, dtype)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=compute).float()
    beside = PeftModel.from_pretrained(plain, f"{summary['model']}/adapter")
    ids = torch.tensor([[6, 7, 8, 9, 10]])
    with torch.no_grad():
        ours, theirs = merged(ids).logits, beside(ids).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        untrained = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    assert (ours - untrained).abs().max() > 1e-3
    assert merged.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_under_an_adapter_a_base_in_four_bits_is_what_is_merged(
    base: str, rows: list[TokenRow], tmp_path: Path, dtype: Any
) -> None:
    lora = Lora(rank=2, alpha=8, target_modules=("q_proj", "up_proj"))
    summary = fine_tune(
        rows,
        stage=SFTStage(
            model=Model(path=base, lora=lora, dtype=dtype, quantization="nf4"),
            data=SFTData(path="rows"),
            learner=SFTLearner(batch_size=4, max_steps=4, learning_rate=PEAK),
        ),
        tokenizer=AutoTokenizer.from_pretrained(base),
        run=Run(threads=1, save_steps=2),
        folder=tmp_path,
        console=Console(quiet=True),
    )
    merged = AutoModelForCausalLM.from_pretrained(summary["model"])
    rounded = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    round_base(rounded)
    rounded.float()
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, tensor in merged.state_dict().items():
        own = rounded.state_dict()[name]
        trained = name.split(".")[-2] in ("q_proj", "up_proj")
        assert torch.equal(tensor, own) == (not trained), name
        if name.endswith("proj.weight"):  # what four bits cannot hold is not in it
            assert not torch.equal(own, before[name])
    beside = PeftModel.from_pretrained(rounded, f"{summary['model']}/adapter")
    ids = torch.tensor([[6, 7, 8, 9, 10]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, beside(ids).logits, rtol=1e-4, atol=1e-5)
    held = load_file(tmp_path / "checkpoints" / "step_000004" / "adapter_model.safetensors")
    left = load_file(Path(summary["model"]) / "adapter" / "adapter_model.safetensors")
    assert held.keys() == left.keys()
    assert all(torch.equal(held[name], left[name]) for name in left)


def test_fine_tuning_goes_on_from_an_adapter(
    base: str, rows: list[TokenRow], tmp_path: Path
) -> None:
    def tune(folder: Path, lora: Lora, rate: float) -> Path:
        folder.mkdir()
        found = fine_tune(
            rows,
            stage=SFTStage(
                model=Model(path=base, lora=lora),
                data=SFTData(path="rows"),
                learner=SFTLearner(batch_size=4, max_steps=2, learning_rate=rate),
            ),
            tokenizer=AutoTokenizer.from_pretrained(base),
            run=Run(threads=1),
            folder=folder,
            console=Console(quiet=True),
        )
        return Path(found["model"]) / "adapter"

    dora = Lora(rank=2, use_dora=True, target_modules=r".*\.[qv]_proj")
    first = tune(tmp_path / "first", dora, PEAK)
    second = tune(tmp_path / "second", Lora(adapter=str(first)), 1e-9)
    old, new = (load_file(place / "adapter_model.safetensors") for place in (first, second))
    assert old.keys() == new.keys()
    assert {name.rpartition(".lora_")[2] for name in old} == {
        *("A.weight", "B.weight", "magnitude_vector"),
    }
    for name, tensor in old.items():
        torch.testing.assert_close(new[name], tensor, rtol=0, atol=1e-6)
    assert max(float(t.abs().max()) for n, t in old.items() if "lora_B" in n) > 1e-3


def test_bfloat16_computes_so_and_keeps_float32_weights(
    base: str, file: str, tmp_path: Path
) -> None:
    model = {"path": base, "dtype": "bfloat16"}
    learner = {"batch_size": 8, "max_steps": 2, "learning_rate": 1e-6}
    settings = recipe(base, file, tmp_path / "run", model=model, learner=learner)
    summary = train_recipe(from_dict(settings), Console(quiet=True))
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = AutoModelForCausalLM.from_pretrained(summary["model"]).state_dict()
    moved = [(after[n] - before[n]).abs().max() for n in before]
    assert all(t.dtype == torch.float32 for t in after.values())
    assert 0 < max(moved) < 1e-5  # an update that bfloat16 would have rounded away


def test_what_cannot_be_run_is_refused(base: str, file: str, tmp_path: Path) -> None:
    def run(name: str, **sections: Any) -> None:
        train_recipe(from_dict(recipe(base, file, tmp_path / name, **sections)))

    with pytest.raises(RecipeError, match=r"unknown data\.template_args 'prefil'.*prefill"):
        run("a", data={"path": file, "template_args": {"prefil": "x"}})
    with pytest.raises(RecipeError, match=r"model\.path = './none': there is no such"):
        run("b", model={"path": "./none"})
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match=r"model\.dtype = float16 needs an accelerator"):
            run("c", model={"path": base, "dtype": "float16"})
    with pytest.raises(LearnerError, match=r"lower learner\.learning_rate = 1e\+38"):
        run("d", learner={"batch_size": 8, "max_steps": 5, "learning_rate": 1e38})


def test_rows_are_no_longer_than_the_model_has_positions(base: str) -> None:
    assert longest_row(base, SFTLearner()) == 64
    assert longest_row(base, SFTLearner(max_length=32)) == 32
