"""Each workaround is still needed: these tests fail when vLLM has mended the fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grpo.errors import EngineError
from grpo.rollout.vllm import compat

from .test_vllm_engine import BASE, load, moved, named, version

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
MENDED = "vLLM has mended this: end the workaround's range of versions in compat.WORKAROUNDS"


@pytest.fixture(scope="module")
def llm():
    pytest.importorskip("vllm")
    torch.set_num_threads(1)
    engine = compat.make_engine(
        {
            "model": BASE,
            "dtype": "float32",
            "max_model_len": 64,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "enforce_eager": True,
            "kv_cache_memory_bytes": 2**26,
            "async_scheduling": False,
            "disable_log_stats": True,
        }
    )
    yield engine
    compat.destroy(engine)


def test_a_tied_head_keeps_the_old_weights_after_a_plain_reload(llm):
    from grpo.rollout.vllm.readback import find_difference

    model = moved(1)
    runner = compat.worker(llm).model_runner
    sent = dict(named(model))
    runner.reload_weights(weights_iterator=iter(sent.items()), is_checkpoint_format=True)
    wrong = find_difference(runner.get_model(), sent, version(model).hash)
    assert wrong == "model.embed_tokens.weight (as lm_head.weight)", MENDED
    compat.refresh_tied_heads(runner.get_model())
    assert find_difference(runner.get_model(), sent, version(model).hash) is None


def test_prompts_read_in_chunks_fail_with_seeds(llm):
    vllm = compat.import_vllm()
    params = vllm.SamplingParams(max_tokens=2, seed=1)
    for i in range(2):  # 100 prompt tokens, 64 a step
        llm.add_request(str(i), {"prompt_token_ids": [1 + (j + i) % 8 for j in range(50)]}, params)
    with pytest.raises(RuntimeError, match="does not use offset"):
        [llm.step() for _ in range(8)]


def test_speculative_temperatures_are_not_expanded(llm):
    """The stand-in is right; vLLM's own writes what it expands to a copy."""
    x = torch.tensor([0.5, 0.0, 2.0])
    counts = torch.tensor([2, 3, 6], dtype=torch.int32)
    want = [0.5, 0.5, 1.0, 2.0, 2.0, 2.0]
    got = compat.expand_batch_to_tokens(x, counts, 6, replace_from=0, replace_to=1)
    assert got.tolist() == want
    sampler = compat.module("v1.sample.rejection_sampler")
    if sampler.expand_batch_to_tokens is not compat.expand_batch_to_tokens:
        plain = sampler.expand_batch_to_tokens(x, counts, 6, replace_from=0, replace_to=1)
        assert plain.tolist() != want, MENDED


def test_the_worker_takes_set_num_threads_away(llm):
    source = __import__("inspect").getsource(compat.module("v1.worker.cpu_worker"))
    assert "torch.set_num_threads = " in source, MENDED
    threads = torch.get_num_threads()
    torch.set_num_threads(threads)  # ours gave it back
    assert torch.get_num_threads() == threads


def test_the_kernel_scan_still_trips_over_odd_objects(llm):
    dispatcher: Any = compat.module("triton_utils.dispatcher")

    class Odd:
        __dict__ = property(lambda _: print)  # type: ignore[assignment]

    assert dispatcher.vars(Odd()) == {}
    source = __import__("inspect").getsource(dispatcher)
    assert 'vars(value).get("kernel")' in source, MENDED


def test_versions_out_of_range_are_refused(monkeypatch):
    pytest.importorskip("vllm")
    monkeypatch.setattr(compat, "version", lambda: (0, 99))
    with pytest.raises(EngineError, match=r"vLLM 0\.99 is installed.*knows 0\.22 to 0\.32"):
        compat.import_vllm()
    workaround = compat.WORKAROUNDS["tied_head"]
    assert workaround.applies((0, 32), cpu=True)
    assert not workaround.applies((0, 33), cpu=True)
    assert not workaround.applies((0, 32), cpu=False)


def test_what_vllm_changes_in_the_process_is_put_back():
    import random
    import signal

    before = random.getstate(), signal.getsignal(signal.SIGTERM), torch.get_rng_state()
    set_num_threads = torch.set_num_threads
    with compat.undisturbed():
        random.seed(7)
        torch.manual_seed(7)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.bfloat16)
        torch.set_num_threads = lambda _: None
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert random.getstate() == before[0]
    assert signal.getsignal(signal.SIGTERM) is before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.set_num_threads is set_num_threads
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_mla_models_are_told_not_to_use_the_rotary_kernel():
    pytest.importorskip("vllm")
    from transformers import DeepseekV3Config

    assert compat.compilation_config(DeepseekV3Config(num_hidden_layers=1)) == {
        "custom_ops": ["-rotary_embedding"]
    }
    assert compat.compilation_config(load().config) == {}
