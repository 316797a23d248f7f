"""Addresses, keys, and files that only their user may read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grpo.errors import RecipeError, RunError
from grpo.outside.web import private
from grpo.outside.web.address import Address, checked_file, key_from
from grpo.outside.web.client import Client

from .hostile import hostile, says, whole


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://host",
        "file:///etc/passwd",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://[::1",
        "http://ho st/v1",
        "http://host/v1\r\nX: y",
        "http://hõst",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(RecipeError, match=r"rollout.engine_args.url = .* is not an address like"):
        Address(url=url)


@pytest.mark.parametrize(
    "url",
    ["http://user:hunter2@host/v1", "https://hunter2@host", "http://user:hun@ter2@host:port/v1"],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Address(url=url, setting="judge: url")
    assert "judge: url = " in str(caught.value)
    assert "hun" not in str(caught.value)
    assert "***@host" in str(caught.value)


def test_routes_go_behind_the_path() -> None:
    for url in ("http://host/v1?key=abc", "http://host/v1#a"):
        with pytest.raises(RecipeError, match="query or a fragment"):
            Address(url=url)
    with hostile(says(whole(b"{}"))) as server:
        Client(Address(url=f"{server.url}/v1/")).call("GET", "/models", timeout=5)
    assert server.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert f"Host: {server.url.removeprefix('http://')}\r\n".encode() in server.requests[0]


def test_this_machine_is_known_by_its_number() -> None:
    near = ["http://127.0.0.1:1", "http://127.8.9.1", "http://localhost", "http://[::1]:80"]
    assert all(Address(url=url).is_loopback for url in near)
    far = ["http://127.0.0.1.evil.example", "http://localhost.evil.example", "http://10.0.0.1"]
    assert not any(Address(url=url).is_loopback for url in far)
    assert Address(url="https://host").port == 443


def test_a_key_does_not_show() -> None:
    assert "secret" not in repr(Address(url="http://host", key="secret"))


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("MY_KEY", raising=False)
    assert key_from("OPENAI_API_KEY", "x") == ""
    assert key_from("", "x") == ""
    for empty in (None, "", " \n"):
        if empty is not None:
            monkeypatch.setenv("MY_KEY", empty)
        with pytest.raises(RecipeError, match=r"judge: api_key_env = 'MY_KEY'.*empty or not set"):
            key_from("MY_KEY", "judge: api_key_env")
    monkeypatch.setenv("MY_KEY", "abc\n")  # as `export MY_KEY=$(cat file)` does not, and others do
    assert key_from("MY_KEY", "x") == "abc"
    for odd in ("a\r\nX-Admin: 1", "a b", "schlüssel"):
        monkeypatch.setenv("MY_KEY", odd)
        with pytest.raises(RecipeError, match="has a character") as caught:
            key_from("MY_KEY", "x")
        assert odd not in str(caught.value)


def test_a_key_file_is_read_anew_for_every_call(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with hostile(says(whole(b"{}"))) as server:
        client = Client(Address(url=server.url, key_file=str(file)))
        for key in ("first", "second"):
            os.close(private.create(file))
            file.write_text(f"{key}\n")
            client.call("GET", "/", timeout=5)
    for key, request in zip((b"first", b"second"), server.requests, strict=True):
        assert b"Authorization: Bearer " + key + b"\r\n" in request


def test_key_files_that_are_not_the_users_alone(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(RecipeError, match="there is no such file"):
        checked_file(str(file), "rollout.engine_args.key_file")
    file.write_text("abc\n")
    file.chmod(0o640)
    with pytest.raises(RecipeError, match=r"others may read.*chmod 600"):
        checked_file(str(file), "rollout.engine_args.key_file")
    file.chmod(0o600)
    assert checked_file(str(file), "x") == str(file)
    file.write_text("two words")
    with pytest.raises(RecipeError, match="does not hold a key"):
        checked_file(str(file), "x")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(RecipeError, match="not a file of your own"):
        checked_file(str(tmp_path / "pipe"), "x")


def test_a_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "here")  # no whole path: not valid by XDG
    monkeypatch.setenv("HOME", str(tmp_path))
    assert private.folder() == tmp_path / ".cache" / "grpo"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert private.folder() == cache / "grpo"
    private.make(private.folder() / "a")
    for path in (cache / "grpo", cache / "grpo" / "a"):
        assert path.stat().st_mode & 0o777 == 0o700
    (cache / "grpo" / "a").rmdir()
    (cache / "grpo" / "a").symlink_to(tmp_path)  # a place that someone else chose
    with pytest.raises(RunError, match="not a folder of your own"):
        private.make(private.folder() / "a")


def test_a_new_file_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    with open(private.create(link), "w") as file:
        file.write("log")
    assert (target.read_text(), link.read_text()) == ("precious", "log")
    assert not link.is_symlink()
    assert link.stat().st_mode & 0o777 == 0o600


def test_a_link_laid_at_the_last_moment_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    monkeypatch.setattr(Path, "unlink", lambda path, **_: path.symlink_to(target))
    with pytest.raises(FileExistsError):
        private.create(link)
    assert target.read_text() == "precious"
