"""The embedded engine on the card: logits, greedy and sampled completions, log-probs, weights.

First suspicion: logits fail, the slot cache's attention (mask, positions or the kernel torch picks
for a mask); completions alone, sampling (test_sampling); only `compile`, what torch.compile makes
of the model; only `max_rows`, rows that read one another's slots; the hash, a copy that had not
arrived when it was read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from grpo.learner.learner import TorchLearner
from grpo.method.weighted_rows import make_rows
from grpo.model.content_hash import content_hash
from grpo.rollout.embedded.decoder import SlotDecoder, make_decoder
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.rollout.embedded.ways import ways_on
from grpo.types import Completion, Group, Prompt, Request, Rollout, Score, Task, Version
from tests.gpu.learners import distance, learner
from tests.gpu.memory import in_use
from tests.gpu.ties import check_parting, check_same
from tests.rollout.tiny_models import V0, VOCAB, Letters, ragged, request, run, tiny

KINDS = ["llama", "qwen2", "mistral", "gemma2", "gpt2", "deepseek"]


def engine(model: Any, where: torch.device, **settings: Any) -> TorchEngine:
    """An engine with its own copy of `model` on `where`; on a CPU not the compiled decoders'."""
    settings = {"max_rows": 64, "packed": False, **settings}
    return TorchEngine(model.to(where), Letters(), version=V0, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_ragged_rows(device: torch.device, kind: str, dtype: torch.dtype) -> None:
    """Prefill, copies, 40 tokens and a row that moves, against forward passes in float64.

    float32: 1e-5, see `learners.FLOAT32`. Half types: 1.5 times what the model's own forward pass
    over the whole text is off by, and no less than one rounding of a logit.
    """
    exact = tiny(kind).double()
    model = tiny(kind).to(device, dtype)
    plain = tiny(kind).to(device, dtype)
    if not isinstance(
        make_decoder(tiny(kind), ways_on(torch.device("cpu")), packed=False), SlotDecoder
    ):
        pytest.skip(f"with this transformers the slot cache does not serve {kind} anywhere")
    decoder = make_decoder(model, ways_on(device), packed=False)
    assert isinstance(decoder, SlotDecoder)
    model.config._attn_implementation = "grpo_slots"
    rng = np.random.default_rng(0)
    texts = [rng.integers(VOCAB, size=n).tolist() for n in (3, 17, 40)]
    logits = [decoder.prefill(texts, [0, 1, 2])]
    places = [(row, len(texts[row])) for row in range(3)]  # of each row of logits: text and length
    decoder.copy([1, 1], [3, 4], [len(texts[1])] * 2)
    texts += [list(texts[1]), list(texts[1])]
    rows = list(range(5))  # the text in each row
    for step in range(40):
        if step == 20:  # row 0 ends, the last one moves into its place
            decoder.compact([(4, 0)], 4, len(texts[4]))
            rows = [4, 1, 2, 3]
        tokens = rng.integers(VOCAB, size=len(rows))
        positions = np.array([len(texts[row]) for row in rows])
        logits.append(decoder.decode(tokens, positions).clone())
        for row, token in zip(rows, tokens.tolist(), strict=True):
            texts[row].append(token)
            places.append((row, len(texts[row])))
    found = torch.cat([part.double().cpu() for part in logits])
    right, theirs = (_logits(m, texts, places) for m in (exact, plain))
    assert found.shape == right.shape == (3 + 20 * 5 + 20 * 4, VOCAB)
    bar = 1e-5
    if dtype != torch.float32:
        bar = 1.5 * distance(theirs, right) + torch.finfo(dtype).eps
    assert distance(found, right) < bar
    # and no text is off by itself: the error of one is a fourteenth in the norm of all
    each = (found - right).norm(dim=1) / right.norm(dim=1)
    assert each.max() < 6 * bar, places[int(each.argmax())]


@torch.no_grad()
def _logits(model: Any, texts: list[list[int]], places: list[tuple[int, int]]) -> torch.Tensor:
    """float64 on the host, after the first tokens of texts: one pass over each whole text."""
    whole = [
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        for ids in texts
    ]
    return torch.stack([whole[text][length - 1].double().cpu() for text, length in places])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_completions_are_those_of_the_host(
    device: torch.device, kind: str, temperature: float
) -> None:
    """`ties` says where they may part. The host's are of its own compiled decoders where it can."""
    requests = ragged(n=4, temperature=temperature, eos_ids=(3, 4), max_tokens=24)
    ours = run(engine(tiny(kind), device), requests)
    theirs = run(TorchEngine(tiny(kind), Letters(), version=V0), requests)
    assert len({tuple(c.ids.tolist()) for c in ours.values()}) >= 3
    check_same(tiny(kind), requests, ours, theirs)


@pytest.mark.parametrize("max_rows", [1, 3, 7])
def test_completions_do_not_depend_on_the_rows_beside_them(
    device: torch.device, max_rows: int
) -> None:
    """To the token but for near-ties: a product of another number of rows is another kernel."""
    requests = ragged(n=4, eos_ids=(3, 4, 5))
    wanted = run(engine(tiny("llama"), device), requests)
    check_same(
        tiny("llama"),
        requests,
        run(engine(tiny("llama"), device, max_rows=max_rows), requests),
        wanted,
    )
    alone = run(engine(tiny("llama"), device, max_rows=max_rows), requests[2:3])
    check_same(tiny("llama"), requests, alone, {k: v for k, v in wanted.items() if k[0] == "r2"})


def test_the_same_twice(device: torch.device) -> None:
    """One card, one batch, one seed: the same bits, log-probs included."""
    requests = ragged(n=4)
    first, second = (run(engine(tiny("llama"), device), requests) for _ in range(2))
    for key, completion in first.items():
        assert completion.ids.tolist() == second[key].ids.tolist()
        assert completion.logprobs.tobytes() == second[key].logprobs.tobytes()


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_compiled_model_gives_the_same(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """In a rehearsal nothing is compiled (a minute on a CPU; tests/rollout does it)."""
    if device.type == "cpu":
        monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    compiled, plain = (engine(tiny(kind), device, compile=it) for it in (True, False))
    for temperature in (0.0, 1.0):
        requests = ragged(max_tokens=40, temperature=temperature)
        check_same(tiny(kind), requests, run(compiled, requests), run(plain, requests))


def test_greedy_equals_generate(device: torch.device) -> None:
    model = tiny("llama").to(device)
    requests = [
        request(str(i), ids, temperature=0, max_tokens=40)
        for i, ids in enumerate([[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]])
    ]
    found = run(engine(tiny("llama"), device), requests)
    parted = 0
    for one in requests:
        ids = torch.tensor([one.ids], device=device)
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(one.ids) :].tolist()
        ours = found[one.uid, 0].ids.tolist()
        parted += check_parting(tiny("llama"), one, 0, ours, wanted)
    assert parted <= 1


@pytest.mark.parametrize(
    ("dtype", "gap"),
    # float32: rounding of two ways of attention. Half types: the gate's own bar, a mean in nats
    [("float32", 1e-4), ("bfloat16", 0.05), ("float16", 0.05)],
)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 9}])
def test_log_probs_are_the_learners(
    device: torch.device, dtype: str, gap: float, sampling: dict[str, Any]
) -> None:
    requests = ragged(n=4, max_tokens=24, **sampling)
    drawn = requests[0].sampling
    model = _trained_looking()
    found = run(engine(_trained_looking(), device, dtype=dtype), requests)
    groups = [_group(one, [found[one.uid, i] for i in range(4)]) for one in requests]
    advantages = np.ones((len(groups), 4))
    rows = make_rows(groups, advantages, loss_type="dapo", max_completion_length=64)
    scored = learner(
        model,
        device,
        dtype=dtype,
        temperature=drawn.temperature,
        truncation=drawn if drawn.truncates else None,
    ).logprobs(rows)
    gaps = np.concatenate(
        [abs(a - r.columns["logp_sampler"]) for a, r in zip(scored, rows, strict=True)]
    )
    assert gaps.mean() < gap
    if dtype == "float32":
        assert gaps.max() < gap


@torch.no_grad()
def _trained_looking() -> Any:
    """Weights of the size that training leaves; `tiny`'s are larger, and so is their rounding."""
    model = tiny("llama")
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(0.35)
    return model


def _group(asked: Request, completions: list[Completion]) -> Group:
    prompt = Prompt(task=Task(uid=asked.uid, prompt="?"), text="?", ids=asked.ids)
    score = Score(value=1.0, status="scored")
    rollouts = tuple(Rollout(prompt=prompt, completion=c, score=score) for c in completions)
    return Group(prompt=prompt, visit=0, rollouts=rollouts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_arrive_are_those_that_were_sent(device: torch.device, dtype: str) -> None:
    """The hash of what lies in the engine is the learner's, and that of the same bytes here."""
    sender = learner(tiny("llama", seed=1), device, dtype=dtype)
    receiver = engine(tiny("llama"), device, dtype=dtype)
    before = receiver.model.lm_head.weight.detach().clone()
    ack = receiver.load_weights(sender.weights(), sender.version())
    assert ack.version == sender.version()
    assert ack.version.hash == content_hash((n, t.cpu()) for n, t in sender.weights())
    assert not torch.equal(before, receiver.model.lm_head.weight)
    if dtype == "float32":  # a sum of 32 log-probs of two ways of attention, 1e-4 each
        assert ack.canary == pytest.approx(sender.canary(), abs=3e-3)
    # The next completions are of the new weights: what a prompt left in the cache is not used.
    requests = ragged(n=2)
    run(receiver, requests)
    again = Version(step=2, hash="two")
    receiver.load_weights(TorchLearner.weights(sender), again)
    after = run(receiver, requests)
    fresh = run(engine(tiny("llama", seed=1), device, dtype=dtype), requests)
    assert {k: c.ids.tolist() for k, c in after.items()} == {
        k: c.ids.tolist() for k, c in fresh.items()
    }


def test_sleep_gives_the_memory_back(device: torch.device) -> None:
    made = engine(tiny("llama"), device)
    requests = ragged(n=8, max_tokens=40)
    run(made, requests)
    assert made._decoder.cache.buffers
    made.sleep()
    assert not made._decoder.cache.buffers
    made.wake()
    run(made, requests)
    made.sleep()
    before = in_use(device)
    run(made, requests)
    grown = in_use(device) - before
    # 2 layers, keys and values, 40 rows, 2 heads of 16, 64 slots or more, in float32
    assert grown > 2 * 2 * 40 * 2 * 16 * 64 * 4
    made.sleep()
    assert in_use(device) - before < 2**16
