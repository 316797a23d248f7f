"""The vLLM engine against transformers' forward pass, under updates and with planted faults."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from grpo.errors import EngineError, WeightsError
from grpo.model.canary import canary_logprob
from grpo.model.content_hash import content_hash
from grpo.types import Engine, EngineSpec, Request, Sampling, Version
from tests.rollout.contract import EngineContract
from tests.rollout.tiny_models import V0, drain, full_logprobs, request, run

from .faults import WEIGHTS_FAULTS, fault, guard_off, hotter_sampler

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
BASE = str(Path(__file__).parents[3] / "recipes/assets/parity-base")
LENGTH = 64


def load(path: str = BASE, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def named(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, p.detach()) for name, p in model.named_parameters()]


def version(model: Any, step: int = 1) -> Version:
    return Version(step=step, hash=content_hash(named(model)))


def moved(seed: int, scale: float = 0.05) -> Any:
    """The base with noise on every matrix, far enough to tell the log-probs apart."""
    model = load()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * scale * p.std())
    return model


def prompts(count: int, n: int = 4, **sampling: Any) -> list[Request]:
    limit = sampling.pop("max_tokens", 16)
    return [
        request(f"r{i}", [5, 6, i % 10, 4], n=n, key=i, max_tokens=limit, **sampling)
        for i in range(count)
    ]


def check_logprobs(model: Any, requests: list[Request], done: Any, atol: float = 1e-4) -> None:
    ids = {r.uid: r.ids for r in requests}
    for (uid, _), completion in done.items():
        want = full_logprobs(
            model, ids[uid], completion.ids, requests[0].sampling.temperature or 1.0
        )
        np.testing.assert_allclose(completion.logprobs, want, atol=atol)


@pytest.fixture(scope="module")
def base() -> Any:
    return load()


@pytest.fixture(scope="module")
def vllm_engine():
    pytest.importorskip("vllm")
    from grpo.rollout import ENGINES

    torch.set_num_threads(1)
    before = torch.set_num_threads, torch.get_rng_state(), torch.get_default_dtype()
    engine = ENGINES["vllm"](
        spec=EngineSpec(model=BASE, max_length=LENGTH, threads=1), max_num_seqs=12, kv_cache_gib=0.1
    )
    assert torch.set_num_threads is before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.get_default_dtype() == before[2]
    assert torch.is_grad_enabled()
    yield engine
    engine.close()
    assert not torch.distributed.is_initialized()


@pytest.fixture
def engine(vllm_engine: Any, base: Any) -> Any:
    """The engine with the base's weights and nothing under way."""
    vllm_engine.cancel(list(vllm_engine._active()))
    vllm_engine.load_weights(named(base), version(base, 0))
    return vllm_engine


def test_it_is_an_engine_and_leaves_accelerate_alone(engine):
    from accelerate import PartialState

    assert isinstance(engine, Engine)
    assert PartialState().num_processes == 1


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_equal_the_plain_forward_pass(engine, base, temperature):
    requests = prompts(5, temperature=temperature)  # 20 samples through 12 rows
    done = run(engine, requests)
    assert len(done) == 20
    check_logprobs(base, requests, done)
    assert all(len(c) == 16 and c.finish == "length" for c in done.values())


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}])
def test_filtered_logprobs_are_those_of_the_embedded_engine(engine, base, filters):
    """The learner applies the same filters; what is left of the vocabulary has to agree."""
    from grpo.model.filters import filtered_probs, make_plan

    requests = prompts(4, **filters)
    for (uid, _), c in run(engine, requests).items():
        r = next(r for r in requests if r.uid == uid)
        both = torch.tensor([[*r.ids, *c.ids.tolist()]])
        with torch.no_grad():
            logits = base(input_ids=both).logits[0, len(r.ids) - 1 : -1].float()
        plan = make_plan([r.sampling] * len(c), logits.shape[1], logits.device)
        want = filtered_probs(logits.softmax(-1), plan).log()
        got = want.gather(1, both[0, len(r.ids) :, None])[:, 0]
        np.testing.assert_allclose(c.logprobs, got, atol=1e-4)


def test_noise_belongs_to_the_key_and_the_sample_not_to_the_batch(engine):
    alone = run(engine, prompts(1, n=4))
    crowd = run(engine, prompts(6, n=4))
    for key, completion in alone.items():
        assert completion.ids.tolist() == crowd[key].ids.tolist()
    split = run(engine, prompts(1, n=30))  # more than there are rows: in several vLLM requests
    for key, completion in alone.items():
        assert completion.ids.tolist() == split[key].ids.tolist()
    again = request("r0", [5, 6, 0, 4], n=4, key=99, max_tokens=16)
    fresh = run(engine, [again])
    assert [c.ids.tolist() for c in fresh.values()] != [c.ids.tolist() for c in alone.values()]
    assert len({tuple(c.ids.tolist()) for c in split.values()}) > 5


def test_greedy_is_the_argmax_and_its_logprobs_are_at_temperature_1(engine, base):
    requests = prompts(2, n=1, temperature=0.0)
    done = run(engine, [*requests, request("hot", [5, 6, 1], n=2, key=7, max_tokens=5)])
    greedy = {key: done[key] for key in (("r0", 0), ("r1", 0))}
    check_logprobs(base, requests, greedy)
    for (uid, _), c in greedy.items():
        prompt = next(r.ids for r in requests if r.uid == uid)
        with torch.no_grad():
            logits = base(torch.tensor([[*prompt, *c.ids.tolist()]])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == c.ids.tolist()


def test_any_of_the_eos_ids_ends_a_completion_and_is_part_of_it(engine, base):
    free = run(engine, prompts(4))
    eos = int(free["r0", 0].ids[3])
    done = run(engine, prompts(4, eos_ids=(eos, 9)))
    for key, c in done.items():
        plain = free[key].ids.tolist()
        ends = [i for i, t in enumerate(plain) if t in (eos, 9)]
        want = plain[: ends[0] + 1] if ends else plain
        assert c.ids.tolist() == want
        assert c.finish == ("stop" if ends else "length")
    # The checkpoint's own eos ends nothing when it is not listed.
    own = engine.tokenizer.eos_token_id
    assert any(own in c.ids.tolist()[:-1] for c in free.values()) or own not in set(
        np.concatenate([c.ids for c in free.values()]).tolist()
    )


def test_stop_strings_are_kept_and_nothing_after_them(engine):
    free = run(engine, prompts(4))
    text = free["r0", 0].text
    stop = text[2:4]
    done = run(engine, prompts(4, stop=(stop, "never there")))
    for key, c in done.items():
        plain = free[key].text
        if stop in plain:
            assert c.text == plain[: plain.index(stop) + len(stop)]
            assert c.finish == "stop"
            assert c.ids.tolist() == free[key].ids.tolist()[: len(c)]
            assert stop not in engine.tokenizer.decode(c.ids[:-1].tolist(), True)
        else:
            assert c.text == plain
            assert c.finish == "length"


def test_requests_that_cannot_be_sampled_are_refused_and_none_is_queued(engine):
    bad = [
        (request("x", [], max_tokens=4), "no prompt tokens"),
        (request("x", [99], max_tokens=4), "token ids outside 0..9"),
        (request("x", [1], max_tokens=LENGTH), "needs 65 positions"),
        (request("x", [1], max_tokens=4, top_p=0.5, min_p=0.1), "another order"),
    ]
    for wrong, message in bad:
        with pytest.raises(EngineError, match=message):
            engine.submit([*prompts(1), wrong])
    engine.submit(prompts(1))
    with pytest.raises(EngineError, match="queued already"):
        engine.submit(prompts(1))
    assert len(drain(engine)) == 4


def test_deadline_and_cancel(engine):
    late = prompts(2, n=20, max_tokens=40)
    late = [
        Request(
            uid=r.uid, ids=r.ids, n=r.n, sampling=r.sampling, key=r.key,
            deadline=time.monotonic() + (60 if r.uid == "r1" else 0.02),
        )
        for r in late
    ]  # fmt: skip
    engine.submit(late)
    engine.poll(timeout=0)
    engine.cancel(["r1"])
    time.sleep(0.03)
    done = drain(engine)
    assert set(done) == {("r0", i) for i in range(20)}
    aborted = [c for c in done.values() if c.finish == "abort"]
    assert any(len(c) == 0 for c in aborted)  # never begun
    assert any(0 < len(c) < 40 and len(c) == len(c.logprobs) for c in aborted)
    assert engine._active() == set()


def test_updates_arrive_and_are_acknowledged(engine):
    for step, count in ((1, 1), (2, 5)):
        for k in range(count):
            model = moved(10 * step + k)
            ack = engine.load_weights(named(model), version(model, step))
        assert ack.version == version(model, step)
        assert ack.tensors == len(named(model))
        assert ack.canary == pytest.approx(canary_logprob(model), abs=1e-3)
        requests = prompts(3)
        check_logprobs(model, requests, run(engine, requests))


def test_float32_weights_reach_an_engine_of_a_narrower_type():
    """The hash is of what arrived, the comparison with what it becomes (here: the same type)."""
    from grpo.rollout.vllm.readback import Resident, _same

    layer = torch.nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    resident = Resident(name="w", module=layer, attribute="weight", parts=("w",), packed=False)
    sent = torch.tensor([[1.0, 2.0], [3.0, 1.001]])
    held = sent.to(torch.bfloat16)
    assert _same(held, sent, resident)
    assert not _same(held, sent + 0.01, resident)


@pytest.mark.parametrize("in_flight", ["continue", "finish"])
def test_weights_that_come_while_samples_are_under_way(engine, base, in_flight):
    requests = prompts(5, n=4, max_tokens=24)  # 20 samples, 12 rows: 8 have not begun
    engine.submit(requests)
    for _ in range(6):
        engine.poll(timeout=0)
    model = moved(3)
    old, new = engine.version, version(model, 7)
    engine.load_weights(named(model), new, in_flight=in_flight)
    done = drain(engine)
    assert len(done) == 20
    spans = {key: [s.version for s in c.segments] for key, c in done.items()}
    begun = [key for key, versions in spans.items() if versions[0] == old]
    assert len(begun) == 12
    for key, completion in done.items():
        prompt = next(r.ids for r in requests if r.uid == key[0])
        first = completion.segments[0]
        source = base if key in begun else model
        want = full_logprobs(source, prompt, first.ids, 1.0)
        np.testing.assert_allclose(first.logprobs, want, atol=1e-4)
        if key not in begun:
            assert spans[key] == [new]
            assert len(completion) == 24
        elif in_flight == "continue":
            assert spans[key] == [old, new]
            assert len(completion) == 24
            # The next token is drawn from old keys and values read by new weights: neither model.
            second = completion.segments[1]
            either = full_logprobs(base, prompt, completion.ids, 1.0)[len(first.ids) :]
            assert np.abs(second.logprobs - either).max() > 1e-3
        else:
            assert spans[key] == [old]
            assert completion.finish == "length"


def test_continued_tokens_are_those_of_the_new_weights_on_the_old_cache(engine, base):
    """With weights that do not change, continuing changes nothing but the version."""
    requests = prompts(2, max_tokens=24)
    want = run(engine, requests)
    engine.submit(requests)
    for _ in range(6):
        engine.poll(timeout=0)
    engine.load_weights(named(base), version(base, 9), in_flight="continue")
    for key, completion in drain(engine).items():
        assert [s.version.step for s in completion.segments] == [0, 9]
        assert completion.ids.tolist() == want[key].ids.tolist()
        np.testing.assert_allclose(completion.logprobs, want[key].logprobs, atol=1e-4)


def test_samples_carry_the_version_that_arrived(engine):
    model = moved(4)
    engine.load_weights(named(model), Version(step=8, hash="announced"))
    done = run(engine, prompts(1))
    assert {s.version for c in done.values() for s in c.segments} == {version(model, 8)}


def test_the_prefix_cache_is_not_stale_after_an_update(engine):
    long = [request("long", [1 + i % 9 for i in range(40)], n=4, max_tokens=16)]
    run(engine, long)
    run(engine, long)  # the prompt's blocks are cached now
    model = moved(5)
    engine.load_weights(named(model), version(model, 2))
    check_logprobs(model, long, run(engine, long))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("dropped", "model.layers.0.mlp.down_proj.weight"),
        ("corrupted", "model.layers.1.mlp.up_proj.weight"),
        ("half_delivered", "model.layers."),
        ("acknowledged_not_loaded", "model.embed_tokens.weight"),
        ("layer_skipped", "model.layers.1.self_attn.q_proj.weight"),
    ],
)
def test_a_planted_fault_is_an_error_that_names_the_tensor(engine, name, tensor):
    assert name in WEIGHTS_FAULTS
    model = moved(6)
    with fault(engine, name), pytest.raises(WeightsError, match=f"{tensor}.* is not what was sent"):
        engine.load_weights(named(model), version(model))
    engine.submit(prompts(1))
    with pytest.raises(WeightsError, match="load a full set first"):
        engine.poll()


def test_with_the_guard_off_a_fault_passes_silently(engine, base):
    model = moved(6)
    sent = version(model, 4)
    with (
        guard_off(engine, lambda: sent, lambda: canary_logprob(model)),
        fault(engine, "acknowledged_not_loaded"),
    ):
        ack = engine.load_weights(named(model), sent)
    assert ack.version == sent
    requests = prompts(2)
    check_logprobs(base, requests, run(engine, requests))  # still the old weights


def test_sets_that_are_not_complete_are_refused_before_anything_is_loaded(engine, base):
    with pytest.raises(WeightsError, match=r"1 weights did not arrive.*norm.weight"):
        engine.load_weights([i for i in named(base) if i[0] != "model.norm.weight"], version(base))
    extra = [*named(base), ("model.layers.9.mlp.up_proj.weight", torch.zeros(1))]
    with pytest.raises(WeightsError, match=r"unknown weight 'model\.layers\.9"):
        engine.load_weights(extra, version(base))


def test_the_planted_sampler_draws_hotter_than_it_reports(engine, base):
    requests = prompts(6, n=8, max_tokens=24)
    plain = run(engine, requests)
    with hotter_sampler(engine, 3.0):
        hot = run(engine, requests)
    check_logprobs(base, requests, hot)  # what is reported fits the temperature asked for
    surprise = [np.mean([-c.logprobs.mean() for c in d.values()]) for d in (plain, hot)]
    assert surprise[1] > 2 * surprise[0]


def test_the_learners_random_numbers_are_not_consumed(engine):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    run(engine, prompts(2))
    assert torch.equal(torch.rand(3), want)


def test_sleep_and_wake_keep_everything_on_a_cpu(engine):
    engine.submit(prompts(1))
    engine.poll(timeout=0)
    with pytest.raises(EngineError, match="4 completions are under way"):
        engine.sleep()
    drain(engine)
    engine.sleep()
    engine.wake()
    assert len(run(engine, prompts(1))) == 4
    assert engine.take_metrics() == {}


def test_sampling_defaults_are_the_recipes(engine):
    """No temperature, filter or penalty of the checkpoint's generation_config applies."""
    assert Sampling().temperature == 1.0
    assert engine.llm.model_config.generation_config == "vllm"


class TestContract(EngineContract):
    """The contract of all engines."""

    closes = False
    vocab_size: ClassVar[int] = 10
    positions: ClassVar[int] = LENGTH

    def model(self, seed: int = 0) -> Any:
        return moved(seed) if seed else load()

    def asked(self, count: int = 5, n: int = 3, **sampling: Any) -> list[Request]:
        return prompts(count, n, **{"max_tokens": 12, **sampling})

    @pytest.fixture
    def engine(self, vllm_engine: Any) -> Any:
        vllm_engine.cancel(list(vllm_engine._active()))
        vllm_engine.load_weights(named(load()), V0)
        vllm_engine.version = V0  # as if made with it; a load says what arrived
        return vllm_engine
