"""Selective language modeling: which tokens, which gradient, and the references on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo.config.config import from_dict
from grpo.config.schema import SLM, Model, Run, SFTData, SFTLearner, SFTStage
from grpo.errors import RecipeError
from grpo.outside.terminal.console import Console
from grpo.stages import sft_trainer, slm
from grpo.stages.from_scratch import build_tokenizer
from grpo.stages.sft import fine_tune
from grpo.stages.sft_trainer import settings, training_set
from grpo.stages.slm import SLMTrainer, columns, reference_losses, select_tokens
from grpo.stages.supervised_rows import TokenRow
from tests.grpo.tiny_bases import LETTERS, save_tiny_base

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_base(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_base(tmp_path_factory.mktemp("reference"), 1)


@pytest.fixture(scope="module")
def rows() -> list[TokenRow]:
    rng = np.random.default_rng(0)

    def ids(longest: int) -> tuple[int, ...]:
        return tuple(rng.integers(6, 14, rng.integers(1, longest)).tolist())

    return [TokenRow(prompt_ids=ids(6), ids=(*ids(9), 1)) for _ in range(12)]


def load(path: str, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def token_losses(model: Any, row: TokenRow) -> torch.Tensor:
    """Nats of each completion token, one row at a time and straight from the definition."""
    logits = model(torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0]
    start = len(row.prompt_ids) - 1
    logp = logits[start : start + len(row.ids)].log_softmax(-1)
    return -logp[torch.arange(len(row.ids)), torch.tensor(row.ids)]


def test_selection_worked_out_by_hand() -> None:
    losses = torch.tensor([3.0, 0.5, 2.0, 1.0, 4.0])
    known = torch.tensor([2.9, 0.1, 0.5, 1.5, 4.0])  # excess 0.1, 0.4, 1.5, -0.5, 0

    def kept(select: Any, keep: float) -> list[int]:
        mask = select_tokens(losses, known, SLM.model_construct(select=select, keep=keep), (0, 0))
        return mask.nonzero().flatten().tolist()

    assert kept("excess", 0.6) == [0, 1, 2]
    assert kept("excess", 0.4) == [1, 2]
    assert kept("highest", 0.4) == [0, 4]
    assert kept("excess", 0.01) == [2]  # never none
    assert kept("excess", 1.0) == kept("random", 1.0) == [0, 1, 2, 3, 4]
    known = losses.clone()  # all the same: the earlier ones
    assert kept("excess", 0.4) == [0, 1]


def test_random_selection_is_by_seed_and_step_and_even() -> None:
    control = SLM(select="random", keep=0.25)
    zeros = torch.zeros(40_000)
    first, again, other = (select_tokens(zeros, zeros, control, (0, s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.sum() == 10_000
    both = float((first & other).sum())  # independent draws: 2,500 in the mean
    assert abs(both - 2500) < 5 * math.sqrt(10_000 * 0.25 * 0.75)
    assert abs(float(first[:20_000].sum()) - 5000) < 5 * math.sqrt(5000 * 0.75)


def test_references_are_the_definition_and_come_from_disk_the_second_time(
    reference: str, policy: str, rows: list[TokenRow], tmp_path: Path, monkeypatch: Any
) -> None:
    model = load(reference)
    found = reference_losses(model, rows, tmp_path)
    exact = load(reference, torch.float64)
    for row, ours in zip(rows, found, strict=True):
        expected = token_losses(exact, row).detach().numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)

    computed: list[int] = []

    def count(*_: Any) -> np.ndarray:
        computed.append(1)
        return np.concatenate(found)

    monkeypatch.setattr(slm, "_computed", count)
    again = reference_losses(model, rows, tmp_path)
    assert not computed
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(found))
    reference_losses(model, rows[::-1], tmp_path)  # other rows, then another reference
    assert len(computed) == 1
    reference_losses(load(policy), rows[::-1], tmp_path)
    assert len(computed) == 2


def gradient(
    policy: str,
    rows: list[TokenRow],
    losses: list[np.ndarray],
    setting: SLM,
    folder: Path,
    packing: bool = False,
) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradient and trained tokens of the trainer's first optimizer step over all rows."""
    learner = SFTLearner(batch_size=12, num_train_epochs=1, packing=packing, max_length=40)
    data = training_set(rows, learner, 0, columns(rows, losses))
    args = settings(data, learner, Run(), folder, "float32", torch.device("cpu"))
    model = load(policy)
    tokenizer = build_tokenizer(LETTERS)
    trainer = SLMTrainer(
        slm=setting, model=model, args=args, train_dataset=data.data, processing_class=tokenizer
    )
    steps = args.gradient_accumulation_steps
    stream = iter(trainer.get_train_dataloader())
    batches, count = trainer.get_batch_samples(stream, steps, torch.device("cpu"))
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(model, batch, num_items_in_batch=count)
        loss.backward()
        total += loss.item()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return total, gradients, trainer.tokens_trained


@pytest.mark.parametrize("micro_tokens", [40, 10_000])
@pytest.mark.parametrize("select", ["excess", "highest"])
def test_the_gradient_is_that_of_the_selected_tokens_however_the_step_is_cut(
    policy: str,
    reference: str,
    rows: list[TokenRow],
    tmp_path: Path,
    monkeypatch: Any,
    select: Any,
    micro_tokens: int,
) -> None:
    monkeypatch.setattr(sft_trainer, "MICRO_TOKENS", micro_tokens)
    known = [token_losses(load(reference), row).detach().numpy() for row in rows]
    setting = SLM.model_construct(select=select, keep=0.5, reference="")
    loss, gradients, trained = gradient(policy, rows, known, setting, tmp_path)

    exact = load(policy, torch.float64)
    losses = torch.cat([token_losses(exact, row) for row in rows])
    scores = losses.detach().numpy()
    if select == "excess":
        scores = scores - np.concatenate(known)
    best = np.argsort(-scores)[: round(0.5 * len(scores))]
    expected = losses[torch.from_numpy(best)].mean()
    expected.backward()
    assert trained == len(best)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in exact.named_parameters():
        if name in gradients:
            found = gradients[name].double()
            torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_packed_rows_select_the_same_tokens(
    policy: str, reference: str, rows: list[TokenRow], tmp_path: Path
) -> None:
    known = [token_losses(load(reference), row).detach().numpy() for row in rows]
    setting = SLM.model_construct(select="excess", keep=0.5, reference="")
    one, plain, count = gradient(policy, rows, known, setting, tmp_path / "a")
    two, packed, more = gradient(policy, rows, known, setting, tmp_path / "b", packing=True)
    assert more == count
    assert two == pytest.approx(one, rel=1e-5)
    for name in plain:
        torch.testing.assert_close(packed[name], plain[name], rtol=1e-3, atol=1e-6)


def tuned(policy: str, rows: list[TokenRow], setting: SLM, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    summary = fine_tune(
        rows,
        stage=SFTStage(
            model=Model(path=policy),
            data=SFTData(path="rows"),
            learner=SFTLearner(batch_size=4, max_steps=4, learning_rate=1e-2),
            slm=setting,
        ),
        tokenizer=build_tokenizer(LETTERS),
        run=Run(threads=1, save_steps=0),
        folder=folder,
        console=Console(quiet=True),
    )
    weights = load(str(folder / "model")).state_dict()
    return {**summary, "weights": weights}


def test_keeping_all_tokens_is_plain_fine_tuning(
    policy: str, reference: str, rows: list[TokenRow], tmp_path: Path
) -> None:
    plain = tuned(policy, rows, SLM(), tmp_path / "plain")
    everything = SLM(select="excess", reference=reference, keep=1.0)
    found = tuned(policy, rows, everything, tmp_path / "all")
    assert found["loss"] == plain["loss"]
    assert found["tokens_trained"] == plain["tokens_trained"]
    for name, tensor in plain["weights"].items():
        assert torch.equal(found["weights"][name], tensor), name
    half = tuned(policy, rows, SLM(select="random", keep=0.5), tmp_path / "half")
    assert half["tokens_trained"] == pytest.approx(plain["tokens_trained"] / 2, abs=4)


def test_a_reference_of_other_tokens_is_refused(
    policy: str, rows: list[TokenRow], tmp_path: Path
) -> None:
    other = save_tiny_base(tmp_path / "other", letters=LETTERS + "xyz")
    with pytest.raises(RecipeError, match=r"slm\.reference = .* has other tokens than"):
        tuned(policy, rows, SLM(select="excess", reference=other), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"slm\.reference = '\./no/where': there is no such"):
        tuned(policy, rows, SLM(select="excess", reference="./no/where"), tmp_path / "run2")


def test_excess_needs_a_reference_and_nothing_else_takes_one(policy: str) -> None:
    stage = {"kind": "sft", "model": {"path": policy}, "data": {"path": "x"}}
    for setting in ({"select": "excess"}, {"select": "random", "reference": policy}):
        with pytest.raises(RecipeError, match="needs a reference model"):
            from_dict({"name": "x", "stages": [{**stage, "slm": setting}]})
