"""How sources are compiled and bound, and what happens where nothing can be."""

import pytest
import torch

from grpo.kernels import native
from grpo.kernels.door import Source, made

compiled = pytest.mark.skipif(not native.is_on(), reason="no C++ compiler")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    native.library.cache_clear()
    yield source
    native.library.cache_clear()


@compiled
def test_a_source_is_compiled_once(fresh, monkeypatch, tmp_path):
    assert native.library(fresh).answer() == 42
    native.library.cache_clear()
    run = native.subprocess.run
    calls = []
    monkeypatch.setattr(
        native.subprocess, "run", lambda command, **kw: calls.append(command) or run(command, **kw)
    )
    assert native.library(fresh).answer() == 42
    assert [c[1:] for c in calls] == [["--version"]]
    assert len(list((tmp_path / "grpo-toolkit").iterdir())) == 1


@compiled
def test_a_macro_makes_another_library(fresh, tmp_path):
    fresh.write_text('extern "C" int answer() { return ANSWER; }')
    assert native.library(fresh, "ANSWER=1").answer() == 1
    assert native.library(fresh, "ANSWER=2").answer() == 2


@compiled
def test_more_flags_make_another_library(fresh, monkeypatch):
    """Sanitizers are asked for so, and must not be taken for what users run."""
    fresh.write_text('extern "C" int answer() { return ANSWER; }')
    for answer in (3, 4):
        monkeypatch.setenv("GRPO_CXXFLAGS", f"-g -DANSWER={answer}")
        native.library.cache_clear()
        assert native.library(fresh).answer() == answer


@compiled
def test_a_folder_that_others_can_write_to_is_not_trusted(fresh, tmp_path):
    (tmp_path / "grpo-toolkit").mkdir()
    (tmp_path / "grpo-toolkit").chmod(0o777)
    assert native.library(fresh).answer() == 42
    assert not list((tmp_path / "grpo-toolkit").iterdir())


@pytest.mark.parametrize("reason", ["switched off", "no compiler", "an error"])
def test_torch_takes_over(fresh, monkeypatch, caplog, reason):
    if reason == "switched off":
        monkeypatch.setenv("GRPO_NATIVE", "0")
    elif reason == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    else:
        fresh.write_text("int answer( {")
    assert native.library(fresh) is None
    assert native.is_on() == (reason == "an error" and native.can_compile())
    if reason == "an error" and native.can_compile():
        assert "answer.cpp cannot be compiled" in caplog.text


@compiled
def test_functions_are_told_what_they_take(fresh):
    """Without that a Python number is passed as 32 bits."""
    fresh.write_text(
        'extern "C" void high_f32(long long x, long long* to, long long) { *to = x >> 32; }'
        'extern "C" void threads(long long* to, long long count) { *to = count; }'
        'extern "C" void high_bf16(long long x, long long* to, long long) { *to = -(x >> 32); }'
    )
    source = Source(fresh, high="NP", threads="P", elsewhere="")
    found, to = made(torch.int64, 1)
    for dtype, want in ((torch.float32, 5), (torch.bfloat16, -5)):
        kernels = source.load(dtype)
        assert kernels is not None
        kernels("high", 5 << 32, to)
        assert found.item() == want
        assert source.load(dtype) is kernels
    kernels("threads", to)
    assert found.item() == torch.get_num_threads()
    assert source.load(torch.float64) is None
    with pytest.raises(KeyError, match="elsewhere"):
        kernels("elsewhere")


@compiled
def test_a_source_is_loaded_anew_where_the_switch_was_turned(fresh, monkeypatch):
    source = Source(fresh, answer="")
    before = source.load()
    monkeypatch.setenv("GRPO_NATIVE", "0")
    native.library.cache_clear()
    assert source.load() is None
    monkeypatch.delenv("GRPO_NATIVE")
    native.library.cache_clear()
    assert source.load() is not None
    assert source.load() is not before
