"""LoRA: the gradients of plain peft, only the adapter travels, and the base stays as it was."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import RecipeError, RunError, WeightsError
from grpo.learner.forward import token_scores
from grpo.learner.learner import TorchLearner
from grpo.learner.packing import micro_batches, place
from grpo.model.adapter import adapter_parameters, add_adapter, base_alone
from grpo.model.canary import canary_logprob
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.types import LoraSpec, Request, Sampling, Version
from tests.grpo.learner.test_learner import rows_of
from tests.grpo.rows import three_groups, tiny_model

RANK = 4
LINEARS = 2 * 7  # two layers; q, k, v, o, gate, up, down
START = Version(step=0, hash="")


def make(model=None, dtype="float32", algorithm=None, rank=RANK, **config):
    return TorchLearner(
        tiny_model() if model is None else model,
        algorithm=Algorithm(**(algorithm or {})),
        config=Config(**{"learning_rate": 1e-2, "max_grad_norm": 0.0, **config}),
        dtype=dtype,
        lora=LoraSpec(rank=rank) if rank else None,
    )


def test_an_old_torchao_does_not_keep_peft_from_its_layers(monkeypatch):
    from peft.tuners.lora import torchao

    def refuses():
        raise ImportError("Found an incompatible version of torchao. Found version 0.10.0")

    monkeypatch.setattr(torchao, "is_torchao_available", refuses)
    model = tiny_model()
    add_adapter(model, LoraSpec(rank=RANK))
    assert len(adapter_parameters(model)) == 2 * LINEARS


class Letters:
    """A tokenizer of single letters."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(97 + i) for i in ids)


def engine_for(model, **arguments):
    return TorchEngine(model, Letters(), version=START, lora=LoraSpec(rank=RANK), **arguments)


@pytest.mark.parametrize("share", [True, False])
def test_gradients_are_those_of_plain_peft(share):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    algorithm = {"sampling_correction": "none"}
    learner = make(algorithm=algorithm, share_prompts=share, tokens_per_micro_batch=60)
    rows = rows_of(three_groups())
    learner.step(rows)  # B is zero at first, and the gradient of A with it
    trained = {name: p.detach().clone() for name, p in learner.trained.items()}
    learner.step(rows)

    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        plain = get_peft_model(
            tiny_model(),
            LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0),
        )
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if p.requires_grad:
                p.copy_(trained.pop(name.replace(".default.", ".")))
    assert not trained
    assert set(get_peft_model_state_dict(plain)) == set(dict(learner.weights()))
    (batch,) = micro_batches(rows, 10_000, False, 0)
    logits = plain(input_ids=torch.from_numpy(batch.ids)).logits.log_softmax(-1).flatten(0, 1)
    logp = logits[torch.from_numpy(batch.sources), torch.from_numpy(batch.targets)]
    # on-policy, the surrogate's gradient is that of weight * A * logp
    factor = batch.weights.astype(np.float64) * batch.columns["advantages"]
    (-torch.from_numpy(factor) * logp).sum().backward()
    for name, p in plain.named_parameters():
        if p.requires_grad:
            ours = learner.trained[name.replace(".default.", ".")].grad
            torch.testing.assert_close(ours, p.grad, rtol=1e-6, atol=1e-9)


def test_only_the_adapter_moves_and_travels():
    model = tiny_model(dtype=torch.bfloat16)
    base = {n: p.detach().clone() for n, p in model.named_parameters()}
    learner = make(model, dtype="bfloat16")
    before = learner.version()
    assert learner.step(rows_of(three_groups()))["optimizer_steps"] == 1
    assert learner.version() != before
    assert {p.dtype for p in learner.trained.values()} == {torch.float32}
    weights = dict(learner.weights())
    assert len(weights) == 2 * LINEARS
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in weights
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    now = {n.replace(".base_layer.", "."): p for n, p in learner.model.named_parameters()}
    for name, tensor in base.items():
        assert torch.equal(now[name], tensor), name


def test_the_reference_is_the_base():
    learner = make(algorithm={"beta": 0.1})
    assert learner.ref is None
    rows = rows_of(three_groups())
    assert learner.step(rows)["kl"] == 0.0
    assert learner.step(rows)["kl"] > 0.0
    (batch,) = micro_batches(rows, 10_000, True, 0)
    placed = place(batch, learner.device)
    with torch.no_grad():
        expected = token_scores(tiny_model(), placed, 1.0).logp
    torch.testing.assert_close(learner.scorer.reference_logp(placed), expected, rtol=0, atol=0)
    with base_alone(learner.model):
        assert canary_logprob(learner.model) == canary_logprob(tiny_model())
    assert learner.canary() != pytest.approx(canary_logprob(tiny_model()), abs=1e-3)


def test_the_saved_model_is_merged_and_plain(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tiny_model(dtype=torch.bfloat16, tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    learner = make(str(tmp_path / "base"), dtype="bfloat16")
    rows = rows_of(three_groups())
    learner.step(rows)
    learner.save_model(str(tmp_path / "model"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.float32
    assert not any("lora" in name for name, _ in loaded.named_modules())
    # float32 arithmetic on both sides: the base's values are bfloat16's, the adapter's are not
    exact = learner.model.float()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, exact(ids).logits, rtol=1e-4, atol=1e-3)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        peft = PeftModel.from_pretrained(base, str(tmp_path / "model" / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(peft(ids).logits, exact(ids).logits, rtol=1e-5, atol=1e-5)


def test_resume_is_bit_identical(tmp_path):
    def fresh(rank=RANK):
        model = tiny_model(dtype=torch.float32)
        return make(model, weight_decay=0.1, max_grad_norm=0.5, rank=rank)

    rows = rows_of(three_groups())
    whole = fresh()
    for _ in range(2):
        whole.step(rows)
    whole.save(str(tmp_path))
    whole.step(rows)
    resumed = fresh()
    resumed.load(str(tmp_path))
    resumed.step(rows)
    assert resumed.version() == whole.version()
    moments = load_file(tmp_path / "optimizer.safetensors")
    assert len(moments) == 3 * 2 * LINEARS
    # the merged weights would load, and the optimizer would silently start anew
    with pytest.raises(RunError, match=r"model\.lora"):
        fresh(rank=0).load(str(tmp_path))


def test_the_engine_takes_the_adapter_and_nothing_less():
    learner = make(tiny_model(dtype=torch.float32))
    for _ in range(2):
        learner.step(rows_of(three_groups()))
    engine = engine_for(tiny_model(dtype=torch.float32))
    version = learner.version()
    ack = engine.load_weights(learner.weights(), version)
    assert ack.version == version
    assert ack.tensors == 2 * LINEARS
    assert ack.canary == pytest.approx(learner.canary(), abs=1e-4)
    assert ack.canary != pytest.approx(canary_logprob(tiny_model()), abs=1e-2)

    tensors = list(learner.weights())
    with pytest.raises(WeightsError, match="1 weights did not arrive"):
        engine.load_weights(tensors[1:], version)
    with pytest.raises(WeightsError, match="unknown weight"):
        engine.load_weights([*tensors, ("model.norm.weight", torch.ones(16))], version)
    narrow = [(name, tensor[..., :1]) for name, tensor in tensors]
    with pytest.raises(WeightsError, match="has shape"):
        engine.load_weights(narrow, version)
    engine.load_weights(tensors, version)
    assert engine.poll(0) == []  # serves again


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_samples_with_the_adapter(temperature):
    learner = make(tiny_model(dtype=torch.float32), learning_rate=0.1)
    learner.step(rows_of(three_groups()))
    learner.step(rows_of(three_groups()))
    engine = engine_for(tiny_model(dtype=torch.float32))
    engine.load_weights(learner.weights(), learner.version())
    prompt = (3, 4, 5)
    sampling = Sampling(temperature=temperature, max_tokens=6)
    engine.submit([Request(uid="a", ids=prompt, n=3, sampling=sampling, key=(0,))])
    done = []
    while len(done) < 3:
        done += engine.poll()
    for completion in done:
        ids = torch.tensor([[*prompt, *completion.ids]])
        with torch.no_grad():
            logits = learner.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            base = tiny_model(dtype=torch.float32)(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        targets = ids[0, len(prompt) :, None]
        expected = logits.log_softmax(-1).gather(-1, targets)[:, 0].numpy()
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
        without = base.log_softmax(-1).gather(-1, targets)[:, 0].numpy()
        assert np.abs(completion.logprobs - without).max() > 1e-2


def test_a_fresh_adapter_changes_nothing_and_covers_every_linear_layer_but_the_head():
    model = tiny_model()
    before = canary_logprob(model)
    add_adapter(model, LoraSpec(rank=RANK))
    assert canary_logprob(model) == before
    assert len(adapter_parameters(model)) == 2 * LINEARS
    assert type(model.lm_head) is nn.Linear


def test_without_peft_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(RecipeError, match="pip install 'grpo-toolkit\\[lora\\]'"):
        add_adapter(tiny_model(), LoraSpec(rank=RANK))
