"""How sources are compiled and bound, and what happens where nothing can be."""

import ctypes

import pytest

from grpo.kernels import native

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
    fresh.write_text('extern "C" int high(long long x) { return int(x >> 32); }')
    found = native.bound(fresh, {"high": [ctypes.c_int64], "elsewhere": []})
    assert found is not None
    assert found.high(5 << 32) == 5
    assert native.bound(fresh, {"high": [ctypes.c_int64]}) is found
