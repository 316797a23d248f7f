"""What rewards see of sampled ids, and where stop strings end them: the same from every engine."""

from __future__ import annotations

import string
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from grpo.rewards.form import Format
from grpo.rollout import samples
from grpo.rollout.embedded import torch_engine
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.rollout.fake import FakeEngine
from grpo.rollout.remote import server_answers
from grpo.rollout.texts import completion_text, cut, whole_characters
from grpo.rollout.vllm import arguments, compat
from grpo.stages.from_scratch import build_model, build_tokenizer
from grpo.types import Request, Sampling, Version

from .tiny_models import run

V0 = Version(step=0, hash="zero")
GOOD = "<think>7 * 8 is 56</think><answer>56</answer>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a character; the tags and <|im_end|> are special tokens."""
    made = build_tokenizer(string.printable)
    tags = ["<think>", "</think>", "<answer>", "</answer>", "<|im_end|>"]
    made.add_special_tokens({"additional_special_tokens": tags})
    assert made.decode(made.encode(GOOD), skip_special_tokens=True) == "7 * 8 is 5656"
    return made


def played(tokenizer: Any, ids: list[int], sampling: Sampling, monkeypatch: Any) -> Any:
    """The embedded engine's completion where the sampler draws `ids`, one after another."""
    torch.set_num_threads(1)
    model = build_model(
        tokenizer,
        architecture="llama",
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        intermediate_size=16,
        max_position=128,
        seed=0,
    )
    drawn, real = iter(ids), torch_engine.sample

    def forced(logits: Any, noise: Any, plan: Any, room: Any = None) -> Any:
        tokens, logprobs = real(logits, noise, plan, room)
        return torch.full_like(tokens, next(drawn)), logprobs

    monkeypatch.setattr(torch_engine, "sample", forced)
    asked = Request(uid="r", ids=(5, 6), n=1, sampling=sampling, key=(0,))
    return run(TorchEngine(model, tokenizer, version=V0), [asked])["r", 0]


def served(tokenizer: Any, ids: list[int], sampling: Sampling) -> Any:
    """What the server engine makes of ids on the wire."""
    asked = Request(uid="r", ids=(5, 6), n=1, sampling=sampling, key=(0,))
    choice = {
        "index": 0,
        "token_ids": ids,
        "logprobs": {"content": [{"logprob": -1.0}] * len(ids)},
        "weight_versions": [{"version": "v", "start": 0, "end": len(ids)}],
        "text": "the server's own",
        "finish_reason": "stop",
    }
    (found,) = server_answers.completions_from(
        asked, {"choices": [choice]}, {"v": V0}, aborted=False, tokenizer=tokenizer
    )
    return found


def in_process(tokenizer: Any, ids: list[int], sampling: Sampling, stopped: bool) -> Any:
    """What the vLLM engine makes of ids that vLLM has sampled."""
    request = Request(uid="r", ids=(5, 6), n=1, sampling=sampling, key=(0,))
    job = samples.Job(request=request, waiting=deque())
    sample = samples.Sample(
        job=job, index=0, marks=[(0, V0)], ids=list(ids), logprobs=[-1.0] * len(ids)
    )
    return samples.finished(sample, tokenizer, "stop", stopped=stopped)


def test_tags_that_are_special_tokens_reach_the_rewards_from_every_engine(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    eos = tokenizer.eos_token_id
    ids = [*tokenizer.encode(GOOD), eos]
    sampling = Sampling(max_tokens=64, eos_ids=(eos,))
    asked = Request(uid="r", ids=(5, 6), n=1, sampling=sampling, key=(0,))
    fake = FakeEngine(lambda _request, _index: ids, tokenizer, version=V0)
    found = [
        played(tokenizer, ids, sampling, monkeypatch),
        served(tokenizer, ids, sampling),
        in_process(tokenizer, ids, sampling, stopped=False),
        run(fake, [asked])["r", 0],
    ]
    for completion in found:
        assert (completion.text, completion.finish) == (GOOD, "stop")
        assert completion.ids.tolist() == ids
        assert Format()(completions=[completion.text], prompts=["q"]) == [1.0]


def test_left_out_are_pad_and_a_special_eos_at_the_very_end(tokenizer: Any) -> None:
    end, eos = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id
    four = tokenizer.encode("4")
    assert completion_text(tokenizer, [*four, eos], (eos,)) == "4"
    assert completion_text(tokenizer, np.array([*four, eos]), (eos, end)) == "4"  # type: ignore
    assert completion_text(tokenizer, [*four, end, *four, eos], (eos,)) == "4<|im_end|>4"
    assert completion_text(tokenizer, [*four, end], (eos,)) == "4<|im_end|>"
    assert completion_text(tokenizer, four, tuple(four)) == "4"  # an eos with a text keeps it
    pad = tokenizer.pad_token_id
    assert completion_text(tokenizer, [pad, *four, pad, end, eos], (eos,)) == "4<|im_end|>"
    assert completion_text(tokenizer, [], (eos,)) == completion_text(tokenizer, [eos], (eos,)) == ""


@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [
        ("<answer>4</answer>\nand so on", "</answer>", "<answer>4</answer>"),
        ("4<|im_end|>\n5", "4<|im_end|>\n", "4<|im_end|>\n"),  # special amid the string
        ("4</answer><|im_end|>5", "</answer><|im_end|>", "4</answer><|im_end|>"),
    ],
)
def test_a_stop_string_may_hold_special_tokens(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, said: str, stop: str, text: str
) -> None:
    sampling = Sampling(max_tokens=40, eos_ids=(tokenizer.eos_token_id,), stop=(stop, "never"))
    ids = tokenizer.encode(said)
    whole = tokenizer.encode(text)
    found = [
        played(tokenizer, ids, sampling, monkeypatch),
        served(tokenizer, whole, sampling),
        in_process(tokenizer, ids, sampling, stopped=True),
    ]
    for completion in found:
        assert (completion.text, completion.finish) == (text, "stop")
        assert completion.ids.tolist() == whole


def test_vllm_is_asked_to_look_for_stop_strings_among_special_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vllm = SimpleNamespace(SamplingParams=lambda **settings: settings)
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta"))
    monkeypatch.setattr(compat, "import_vllm", lambda: vllm)
    monkeypatch.setattr(compat, "module", lambda _name: kinds)
    sampling = Sampling(max_tokens=9, eos_ids=(1, 7), stop=("</answer>",))
    asked = Request(uid="r", ids=(5, 6), n=2, sampling=sampling, key=(0,))
    found: Any = arguments.sampling_params(asked, 0, 2)
    on_the_wire = server_answers.body_for(asked, "r")["sampling_params"]
    for settings in (found, on_the_wire):
        assert settings["skip_special_tokens"] is False
        assert settings["stop"] == ["</answer>"]
        assert settings["stop_token_ids"] == [1, 7]


def test_a_server_of_text_alone_is_not_asked_to_cut_the_stop_string_out() -> None:
    sampling = Sampling(max_tokens=9, eos_ids=(1,), stop=("</a>",))
    asked = Request(uid="r", ids=(5, 6), n=1, sampling=sampling, key=(0,))
    assert "stop" not in server_answers.plain_body(asked, "m")
    choice = {"index": 0, "text": "<a>4</a> more \ud83d", "finish_reason": "length"}
    (found,) = server_answers.plain_completions(asked, {"choices": [choice]}, {"v": V0})
    assert (found.text, found.finish) == ("<a>4</a>", "stop")


def test_the_first_stop_string_to_end_cuts_and_broken_pairs_are_replaced() -> None:
    assert cut("abcabc", ("ca", "bc")) == "abc"
    assert cut("abc", ("x",)) is None
    assert whole_characters("a\ud83d b \ude00 😀") == "a\ufffd b \ufffd 😀"
