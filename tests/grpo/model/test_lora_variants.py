"""rsLoRA, DoRA, chosen layers and adapters to start from: the numbers of peft, and its refusals."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import RecipeError
from grpo.learner.learner import TorchLearner
from grpo.learner.packing import micro_batches, place
from grpo.model.adapter import adapter_parameters, add_adapter, base_alone, merged
from grpo.model.adapter_config import CONFIG, PREFIX, read_adapter
from grpo.model.adapter_files import write_adapter
from grpo.model.canary import canary_logprob
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.types import LoraSpec, Version
from tests.grpo.learner.test_learner import rows_of
from tests.grpo.rows import three_groups, tiny_model

RANK = 4
IDS = torch.arange(12)[None]
DORA = LoraSpec(rank=RANK, use_dora=True)
SPECS = {
    "rsLoRA": LoraSpec(rank=RANK, alpha=6.0, use_rslora=True),
    "DoRA": DORA,
    "both, two layers": LoraSpec(
        rank=RANK, alpha=3.5, use_rslora=True, use_dora=True, target_modules=("q_proj", "v_proj")
    ),
    "a regex": LoraSpec(rank=RANK, target_modules=r".*layers\.1\..*_proj"),
}


def stirred(model: Any) -> Any:
    """`model` with a random adapter, as after some training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def adapted(spec: LoraSpec, dtype: torch.dtype = torch.float64) -> Any:
    model = tiny_model(dtype=dtype)
    torch.manual_seed(1)
    add_adapter(model, spec)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def of_peft(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(tiny_model(), str(folder), autocast_adapter_dtype=False)


def learner(spec: LoraSpec, model: Any = None, **algorithm: Any) -> TorchLearner:
    return TorchLearner(
        tiny_model() if model is None else model,
        algorithm=Algorithm(sampling_correction="none", **algorithm),
        config=Config(learning_rate=1e-2, max_grad_norm=0.0, tokens_per_micro_batch=60),
        lora=spec,
    )


@pytest.mark.parametrize("name", SPECS)
def test_forward_merged_and_files_are_those_of_peft(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    model = adapted(spec)
    torch.testing.assert_close(logits(model), logits(tiny_model()), rtol=0, atol=1e-12)
    ours = logits(stirred(model))
    assert (ours - logits(tiny_model())).abs().max() > 1e-2
    tensors = {n: p.detach().clone() for n, p in adapter_parameters(model).items()}
    write_adapter(model, tensors, spec, None, tmp_path)
    theirs = of_peft(tmp_path)
    torch.testing.assert_close(logits(theirs), ours, rtol=0, atol=1e-12)
    state = {n: make() for n, make in merged(model, lambda t: t)}
    plain = theirs.merge_and_unload()
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(state[key], tensor, rtol=0, atol=1e-12)
    plain.load_state_dict(state)
    torch.testing.assert_close(logits(plain), ours, rtol=0, atol=1e-12)
    settings = json.loads((tmp_path / CONFIG).read_text())
    assert (settings["use_rslora"], settings["use_dora"]) == (spec.use_rslora, spec.use_dora)
    assert settings["lora_alpha"] == spec.lora_alpha


def test_the_scale_is_alpha_over_the_rank_or_its_root() -> None:
    assert LoraSpec(rank=16).scaling == 2
    assert LoraSpec(rank=16, alpha=8).scaling == 0.5
    assert LoraSpec(rank=16, alpha=8, use_rslora=True).scaling == 2


def test_dora_by_hand() -> None:
    """m (W + s B A) / |W + s B A| x, and the gradient takes the norm for a constant."""
    model = stirred(adapted(LoraSpec(rank=RANK, use_dora=True, target_modules=("q_proj",))))
    name = "model.layers.0.self_attn.q_proj"
    parts = {
        key.removeprefix(f"{PREFIX}{name}.lora_"): p
        for key, p in adapter_parameters(model).items()
        if name in key
    }
    layer = model.get_submodule(name)
    x, weight = torch.randn(5, layer.in_features, dtype=torch.float64), layer.base_layer.weight
    down, up, norms = (parts[k] for k in ("A.weight", "B.weight", "magnitude_vector"))
    whole = weight + 2 * up @ down
    expected = x @ (norms[:, None] * whole / whole.norm(dim=1, keepdim=True).detach()).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    by_hand = torch.autograd.grad(expected.square().sum(), (down, up, norms))
    layer(x).square().sum().backward()
    for parameter, gradient in zip((down, up, norms), by_hand, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("share", [True, False])
def test_gradients_of_the_loss_are_those_of_peft(share: bool) -> None:
    ours = learner(DORA)
    ours.share_prompts = share
    rows = rows_of(three_groups())
    ours.step(rows)  # B is zero at first, and the gradient of A with it
    trained = {name: p.detach().clone() for name, p in ours.trained.items()}
    ours.step(rows)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        plain: Any = get_peft_model(
            tiny_model(),
            LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", use_dora=True),
            autocast_adapter_dtype=False,
        )
    theirs = adapter_parameters(plain.base_model.model)
    assert theirs.keys() == trained.keys()
    assert sum("magnitude" in name for name in theirs) == 14
    with torch.no_grad():
        for name, p in theirs.items():
            p.copy_(trained[name])
    (batch,) = micro_batches(rows, 10_000, False, 0)
    found = plain(input_ids=torch.from_numpy(batch.ids)).logits.log_softmax(-1).flatten(0, 1)
    logp = found[torch.from_numpy(batch.sources), torch.from_numpy(batch.targets)]
    factor = torch.from_numpy(batch.weights.astype("float64") * batch.columns["advantages"])
    (-factor * logp).sum().backward()
    for name, p in theirs.items():
        torch.testing.assert_close(ours.trained[name].grad, p.grad, rtol=1e-6, atol=1e-9)


def test_the_reference_of_dora_is_the_base() -> None:
    made = learner(DORA, beta=0.1)
    rows = rows_of(three_groups())
    assert made.step(rows)["kl"] == pytest.approx(0.0, abs=1e-12)
    assert made.step(rows)["kl"] > 0.0
    stirred(made.model)
    (batch,) = micro_batches(rows, 10_000, True, 0)
    placed = place(batch, made.device)
    expected = learner(LoraSpec(rank=1)).scorer.score_alone(placed).logp
    torch.testing.assert_close(made.scorer.reference_logp(placed), expected, rtol=0, atol=0)
    with base_alone(made.model):
        assert canary_logprob(made.model) == canary_logprob(tiny_model())
    assert made.canary() != pytest.approx(canary_logprob(tiny_model()), abs=1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_engine_and_resumed_learner_hold_the_policy(name: str, tmp_path: Path) -> None:
    def fresh() -> TorchLearner:
        return learner(SPECS[name], tiny_model(dtype=torch.float32))

    rows = rows_of(three_groups())
    first = fresh()
    first.step(rows)
    stirred(first.model)
    first._version = None  # whose weights were changed under its hands
    engine = TorchEngine(
        tiny_model(dtype=torch.float32), None, version=Version(step=0, hash=""), lora=SPECS[name]
    )
    ack = engine.load_weights(first.weights(), first.version())
    assert ack.version == first.version()
    assert ack.tensors == len(first.trained)
    assert ack.canary == pytest.approx(first.canary(), abs=1e-4)
    assert ack.canary != pytest.approx(canary_logprob(tiny_model()), abs=1e-2)
    first.save(str(tmp_path))
    first.step(rows)
    second = fresh()
    second.load(str(tmp_path))
    second.step(rows)
    assert second.version() == first.version()


@pytest.mark.parametrize(
    ("targets", "layers", "leaves"),
    [
        (("q_proj", "v_proj"), 4, {"q_proj", "v_proj"}),
        (("layers.1.mlp.up_proj",), 1, {"up_proj"}),
        (r".*\.(o|down)_proj", 4, {"o_proj", "down_proj"}),
        ("all-linear", 14, {f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")}),
    ],
)
def test_the_adapter_is_where_peft_would_have_it(
    targets: Any, layers: int, leaves: set[str]
) -> None:
    names = adapter_parameters(adapted(LoraSpec(rank=2, target_modules=targets)))
    listed = targets if isinstance(targets, str) else list(targets)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        plain: Any = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=listed))
    assert names.keys() == adapter_parameters(plain.base_model.model).keys()
    assert len(names) == 2 * layers
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == leaves


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("q_proj", "query"), r"target_modules: 'query' matches no layer of Llama.*q_proj"),
        (".*[.]query", r"target_modules: '\.\*\[\.\]query' matches no layer"),
        (("lm_head",), r"'lm_head' matches 'lm_head', which is no plain linear layer"),
        (".*self_attn", r"matches 'model\.layers\.0\.self_attn', which is no plain linear layer"),
        (("embed_tokens",), r"matches 'model\.embed_tokens', which is no plain"),
    ],
)
def test_targets_that_are_no_layers_are_refused(targets: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        adapted(LoraSpec(rank=2, target_modules=targets))


def left(folder: Path, spec: LoraSpec, base: str | None = None) -> TorchLearner:
    """A learner after a step, whose adapter lies in `folder`."""
    made = learner(spec, tiny_model(dtype=torch.float32))
    made.step(rows_of(three_groups()))
    stirred(made.model)
    made._version = None
    tensors = {n: p.detach().clone() for n, p in made.trained.items()}
    write_adapter(made.model, tensors, spec, base, folder)
    return made


@pytest.mark.parametrize("name", SPECS)
def test_learner_and_engine_start_from_an_adapter(name: str, tmp_path: Path) -> None:
    first = left(tmp_path, SPECS[name])
    spec = read_adapter(str(tmp_path), "base")
    assert (spec.rank, spec.scaling) == (RANK, SPECS[name].scaling)
    second = learner(spec, tiny_model(dtype=torch.float32), beta=0.1)
    assert dict(second.weights()).keys() == dict(first.weights()).keys()
    assert second.version().hash == first.version().hash
    assert second.canary() == first.canary()
    engine = TorchEngine(
        tiny_model(dtype=torch.float32), None, version=Version(step=0, hash=""), lora=spec
    )
    assert canary_logprob(engine.model) == pytest.approx(first.canary(), abs=1e-4)
    assert second.step(rows_of(three_groups()))["kl"] > 0  # from the base, not from the start


def test_an_adapter_of_peft_own_making_is_taken(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        plain: Any = get_peft_model(
            tiny_model(), LoraConfig(r=3, lora_alpha=5, lora_dropout=0.1, target_modules=["q_proj"])
        )
    stirred(plain.base_model.model).eval()
    plain.save_pretrained(str(tmp_path))
    spec = read_adapter(str(tmp_path), "base")
    assert spec.target_modules == tuple(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))
    torch.testing.assert_close(logits(adapted(spec)), logits(plain), rtol=0, atol=1e-6)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base, other, folder = (tmp_path / name for name in ("base", "other", "adapter"))
    base.mkdir()
    other.mkdir()
    left(folder, DORA, str(base))
    spec = read_adapter(str(folder), str(base / ".." / "base"))  # the same folder
    with pytest.raises(RecipeError, match=r"is an adapter of '.*base', and model\.path = '.*other"):
        read_adapter(str(folder), str(other))
    narrow: nn.Module = tiny_model(intermediate_size=24)
    with pytest.raises(RecipeError, match=r"belongs to another model: .* is \[32, 4\], and"):
        add_adapter(narrow, spec)
    with pytest.raises(
        RecipeError, match=r"model\.lora\.adapter: 'model\.layers\.1\..* matches no"
    ):
        add_adapter(tiny_model(num_hidden_layers=1), spec)


def test_dora_keeps_its_base(tmp_path: Path) -> None:
    model = adapted(DORA, torch.bfloat16)
    before = copy.deepcopy(tiny_model(dtype=torch.bfloat16).state_dict())
    stirred(model)
    assert {p.dtype for p in adapter_parameters(model).values()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(tensor, before[name.replace(".base_layer.", ".")])
