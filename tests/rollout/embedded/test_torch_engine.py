"""The embedded engine against the plain forward pass, transformers' generate and itself."""

import functools
import logging
import time

import numpy as np
import pytest
import torch

from grpo.errors import EngineError, WeightsError
from grpo.model.canary import canary_logprob
from grpo.model.content_hash import content_hash
from grpo.rollout.embedded import decoder
from grpo.rollout.embedded.engine_weights import copy_weights, own_weights
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.types import Engine, Version
from tests.rollout.tiny_models import (
    V0,
    VOCAB,
    Letters,
    drain,
    full_logprobs,
    ragged,
    request,
    run,
    tiny,
)

V1 = Version(step=1, hash="one")


def engine(model=None, max_rows=64, **kwargs):
    return TorchEngine(model or tiny("llama"), Letters(), version=V0, max_rows=max_rows, **kwargs)


def same(a, b):
    assert a.keys() == b.keys()
    for key, completion in a.items():
        assert completion.ids.tolist() == b[key].ids.tolist(), key
        np.testing.assert_allclose(completion.logprobs, b[key].logprobs, atol=1e-4)
        assert (completion.text, completion.finish) == (b[key].text, b[key].finish)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_compiled_model_gives_the_same(kind, monkeypatch):
    """What torch.compile captures, run without its code generator (minutes on a CPU)."""
    used = []
    compiled = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda *a, **kw: used.append(1) or compiled(*a, **kw))
    requests = ragged(max_tokens=40)
    same(run(engine(tiny(kind), compile=True), requests), run(engine(tiny(kind)), requests))
    assert used


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma2", "gpt2", "deepseek"])
@pytest.mark.parametrize("max_rows", [4, 64])
def test_logprobs_equal_the_plain_forward_pass(kind, max_rows, caplog):
    model = tiny(kind)
    with caplog.at_level(logging.WARNING):
        eng = engine(model, max_rows)
    assert [r for r in caplog.records if "own cache" in r.message] == []
    requests = ragged(temperature=0.8)
    for key, completion in run(eng, requests).items():
        prompt = next(r.ids for r in requests if r.uid == key[0])
        want = full_logprobs(model, prompt, completion.ids, 0.8)
        np.testing.assert_allclose(completion.logprobs, want, atol=1e-4)


def test_a_model_the_slot_cache_cannot_serve_uses_its_own_and_says_so_once(caplog, monkeypatch):
    model = tiny("mistral")
    want = run(engine(model), ragged(eos_ids=(3, 4)))
    monkeypatch.setattr(decoder, "_refusal", lambda _: "layers unheard of")
    with caplog.at_level(logging.WARNING):
        same(run(engine(model, max_rows=2), ragged(eos_ids=(3, 4))), want)
    assert sum("own cache" in r.message for r in caplog.records) == 1


def test_greedy_equals_generate():
    model = tiny("llama")
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
    got = run(
        engine(model),
        [request(str(i), p, temperature=0, max_tokens=20) for i, p in enumerate(prompts)],
    )
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        want = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert got[str(i), 0].ids.tolist() == want[0, len(prompt) :].tolist()


@pytest.mark.parametrize("max_rows", [1, 3, 7])
def test_completions_do_not_depend_on_the_batch(max_rows):
    requests = ragged(n=4, eos_ids=(3, 4, 5))
    want = run(engine(), requests)
    assert len({tuple(c.ids.tolist()) for c in want.values()}) > 15
    assert {c.finish for c in want.values()} == {"stop", "length"}
    same(run(engine(max_rows=max_rows), requests), want)
    alone = run(engine(max_rows=max_rows), requests[2:3])
    same(alone, {k: v for k, v in want.items() if k[0] == "r2"})


def test_samples_of_one_prefill_equal_separate_prompts():
    """The copied prompt gives every sample what reading the prompt again would."""
    model = tiny("llama")
    joint = run(engine(model, 64), ragged(count=1, n=6))
    one_row = run(engine(model, 1), ragged(count=1, n=6))
    same(joint, one_row)
    assert len({tuple(c.ids.tolist()) for c in joint.values()}) == 6


def test_rows_outgrow_the_first_cache():
    model = tiny("llama")
    requests = [request("a", [1, 2], n=2, max_tokens=100), request("b", [3], max_tokens=4)]
    for key, completion in run(engine(model), requests).items():
        prompt = requests[0].ids if key[0] == "a" else requests[1].ids
        want = full_logprobs(model, prompt, completion.ids, 1.0)
        np.testing.assert_allclose(completion.logprobs, want, atol=1e-4)


def test_sampled_tokens_follow_the_softmax():
    model, draws = tiny("llama"), 6000
    eng = engine(model, max_rows=500)
    got = run(eng, [request("x", [5, 6, 7], n=draws, max_tokens=1, temperature=1.5)])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    want = torch.softmax(logits / 1.5, -1).double()
    counts = torch.bincount(torch.tensor([int(c.ids[0]) for c in got.values()]), minlength=VOCAB)
    often = want * draws >= 5
    chi = ((counts - draws * want) ** 2 / (draws * want))[often].sum()
    freedom = int(often.sum()) - 1
    assert freedom > 3
    assert chi < freedom + 4 * (2 * freedom) ** 0.5


def test_eos_is_part_of_the_completion_and_any_of_several_ends_it():
    got = run(engine(), ragged(n=8, eos_ids=(7, 0, 9), max_tokens=30))
    ends = set()
    for completion in got.values():
        ids = completion.ids.tolist()
        assert not set(ids[:-1]) & {0, 7, 9}
        assert (completion.finish == "stop") == (ids[-1] in {0, 7, 9})
        assert len(completion.logprobs) == len(ids)
        assert completion.text == Letters().decode(ids)
        ends.add(ids[-1])
    assert {0, 7, 9} <= ends  # 0 doubles as the padding id and has no text


def test_stop_strings_keep_the_match():
    free = run(engine(), ragged(n=4, max_tokens=24))
    stops = ("x", free["r1", 2].text[4:7])
    got = run(engine(), ragged(n=4, max_tokens=24, stop=stops))
    stopped = 0
    for key, completion in got.items():
        ends = [free[key].text.find(s) + len(s) for s in stops if s in free[key].text]
        if not ends:
            assert completion.finish == "length"
            continue
        stopped += 1
        assert completion.finish == "stop"
        assert completion.text == free[key].text[: min(ends)]
        assert completion.ids.tolist() == free[key].ids[: len(completion)].tolist()
        assert Letters().decode(completion.ids.tolist()) == completion.text
    assert stopped >= 2


def test_filters_reach_the_rows():
    got = run(engine(), [*ragged(top_k=1), request("free", [9], n=4, max_tokens=12, key=9)])
    greedy = run(engine(), ragged(temperature=0))
    for key, completion in greedy.items():
        assert got[key].ids.tolist() == completion.ids.tolist()
        assert got[key].logprobs.tolist() == [0.0] * len(completion)
    assert (got["free", 0].logprobs < 0).all()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_load_weights_replaces_the_model(kind):
    old, new = tiny(kind), tiny(kind, seed=1)
    eng = engine(old)
    run(eng, ragged())
    ack = eng.load_weights(new.named_parameters(), V1)
    assert ack.version == Version(step=1, hash=content_hash(new.named_parameters()))
    assert ack.tensors == len(list(new.named_parameters()))
    assert ack.canary == pytest.approx(canary_logprob(new), abs=1e-3)
    assert abs(ack.canary - canary_logprob(old)) > 1
    got = run(eng, ragged())
    same(got, run(engine(new), ragged()))
    assert {s.version for c in got.values() for s in c.segments} == {V1}
    # The engine's copy is its own: the model it was made from has not changed.
    same(run(engine(old), ragged()), run(engine(tiny(kind)), ragged()))


def test_wrong_weights_are_refused_and_nothing_is_sampled_from_a_mixture():
    eng, good = engine(), dict(tiny("llama", seed=1).named_parameters())
    eng.submit(ragged())
    with pytest.raises(WeightsError, match=r"model\.norm\.weight"):
        eng.load_weights([*good.items(), ("model.norm.weigth", good["model.norm.weight"])], V1)
    with pytest.raises(WeightsError, match="load a full set"):
        eng.poll()
    with pytest.raises(WeightsError, match=r"1 weights did not arrive.*norm"):
        eng.load_weights([(k, v) for k, v in good.items() if k != "model.norm.weight"], V1)
    with pytest.raises(WeightsError, match="shape"):
        eng.load_weights([("model.norm.weight", torch.zeros(3))], V1)
    eng.load_weights(good.items(), V1)
    same(drain(eng), run(engine(tiny("llama", seed=1)), ragged()))


def start(eng, requests, steps):
    """Submit, and decode `steps` tokens of the running rows."""
    eng.submit(requests)
    for _ in range(steps):
        assert eng.poll(timeout=0) == []


def test_continue_gives_two_segments_and_new_samples_the_new_weights():
    new = tiny("llama", seed=1)
    eng = engine(max_rows=2)
    start(eng, [request("a", [1, 2, 3], n=3, max_tokens=9)], steps=4)
    eng.load_weights(new.named_parameters(), V1, in_flight="continue")
    got = drain(eng)
    plain = run(engine(), [request("a", [1, 2, 3], n=3, max_tokens=9)])
    fresh = run(engine(new), [request("a", [1, 2, 3], n=3, max_tokens=9)])
    for index in (0, 1):
        first, second = got["a", index].segments
        assert (first.version, second.version) == (V0, V1)
        assert len(first.ids) + len(second.ids) == 9
        assert first.ids.tolist() == plain["a", index].ids[: len(first.ids)].tolist()
    assert [s.version for s in got["a", 2].segments] == [V1]
    assert got["a", 2].ids.tolist() == fresh["a", 2].ids.tolist()


def test_a_sample_whose_prompt_alone_was_read_starts_with_the_new_weights():
    new = tiny("llama", seed=1)
    asked = [request("a", [1, 2, 3], n=4, max_tokens=4)]
    eng = engine(max_rows=2)
    eng.submit(asked)
    first = [c for _ in range(3) for c in eng.poll(timeout=0)]
    assert [c.index for c in first] == [0, 1]  # their rows have just gone to samples 2 and 3
    eng.load_weights(new.named_parameters(), V1, in_flight="continue")
    got, fresh = drain(eng), run(engine(new), asked)
    same(got, {key: fresh[key] for key in (("a", 2), ("a", 3))})
    assert {s.version for c in got.values() for s in c.segments} == {V1}


def test_finish_keeps_started_requests_on_the_old_weights():
    new = tiny("llama", seed=1)
    requests = [request(u, [1, 2, 3], n=3, max_tokens=9, key=i) for i, u in enumerate("ab")]
    eng = engine(max_rows=2)
    start(eng, requests, steps=4)
    eng.load_weights(new.named_parameters(), V1)
    got = drain(eng)
    a, b = run(engine(), requests), run(engine(new), requests)
    same(got, {k: (a if k[0] == "a" else b)[k] for k in a})


def test_completions_under_way_are_finished_or_continued_and_nothing_else():
    with pytest.raises(EngineError, match=r"in_flight 'abort'\. Valid: continue, finish\."):
        engine().load_weights(tiny("llama").named_parameters(), V1, in_flight="abort")


def test_deadlines_abort_running_and_queued():
    eng = engine(max_rows=2)
    soon = time.monotonic() + 0.2
    start(eng, [request("a", [1, 2], n=3, max_tokens=100, deadline=soon)], steps=3)
    eng.submit([request("b", [1, 2], max_tokens=3)])
    time.sleep(0.25)
    got = drain(eng)
    assert [got["a", i].finish for i in range(3)] == ["abort"] * 3
    assert len(got["a", 0]) >= 3
    assert len(got["a", 2]) == 0
    assert got["a", 2].ids.dtype == np.int64
    assert got["b", 0].finish == "length"


def test_cancel_forgets_without_disturbing_the_rest():
    requests = ragged(n=3)
    want = run(engine(), requests)
    eng = engine(max_rows=7)
    start(eng, requests, steps=3)
    eng.cancel(["r1", "r4", "nobody"])
    same(drain(eng), {k: v for k, v in want.items() if k[0] not in {"r1", "r4"}})


def test_sleep_refuses_work_under_way_and_wake_goes_on():
    eng = engine()
    want = run(eng, ragged())
    start(eng, [request("a", [1], max_tokens=9)], steps=1)
    with pytest.raises(EngineError, match="under way"):
        eng.sleep()
    drain(eng)
    eng.sleep()
    eng.wake()
    same(run(eng, ragged()), want)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (request("a", []), "no prompt"),
        (request("a", [VOCAB]), "outside 0..39"),
        (request("a", [1], n=0), "n=0"),
        (request("a", [1] * 100, max_tokens=29), "129 positions"),
        (request("busy", [1]), "queued already"),
    ],
)
def test_requests_that_cannot_be_sampled_are_refused(bad, match):
    eng = engine()
    eng.submit([request("busy", [1], max_tokens=2)])
    with pytest.raises(EngineError, match=match):
        eng.submit([request("good", [1], max_tokens=2), bad])
    assert {k[0] for k in drain(eng)} == {"busy"}


def test_shared_storage_follows_the_model_and_a_cast_copy_does_not():
    model = tiny("llama")
    shared = engine(model, share_storage=True)
    cast = engine(model, share_storage=True, dtype="bfloat16")
    before = canary_logprob(cast.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    assert canary_logprob(shared.model) == pytest.approx(canary_logprob(model), abs=1e-4)
    assert canary_logprob(cast.model) == before
    assert next(cast.model.parameters()).dtype == torch.bfloat16
    assert isinstance(shared, Engine)
    assert model.config._attn_implementation == "sdpa"
    assert next(model.parameters()).requires_grad


def test_tied_weights_may_come_under_either_or_both_names():
    new = tiny("llama", seed=1)
    for weights in (new.named_parameters(), new.state_dict().items()):
        model = tiny("llama")
        copy_weights(own_weights(model, False), weights)
        assert canary_logprob(model) == canary_logprob(new)


def test_content_hash_sees_bytes_names_and_dtypes_but_not_order():
    named = [("a", torch.arange(6.0).view(2, 3)), ("b", torch.ones(3, dtype=torch.bfloat16))]
    base = content_hash(named)
    assert base == content_hash(named[::-1])
    assert len(base) == 16
    variants = [
        [("a", named[0][1].view(3, 2)), named[1]],
        [("a", named[0][1] + torch.tensor(1e-7)), named[1]],
        [("b", named[0][1]), ("a", named[1][1])],
        [named[0], ("b", torch.ones(3, dtype=torch.float16))],
        named[:1],
        [*named, ("c", torch.zeros(0))],
        [*named, ("c", torch.tensor(1.0))],
    ]
    assert len({base, *map(content_hash, variants)}) == 8
