"""What text from outside may do to a terminal: nothing; and which passwords it may show: none."""

from __future__ import annotations

import json
import sys
import time
import unicodedata

import pytest

from grpo.errors.printable import (
    json_printable,
    printable,
    redacted,
    redacted_command,
    redacted_text,
    shown,
)

# Each obeyed by some terminal, or shown as other text than it is.
ATTACKS = {
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "clear": "\x1b[2J\x1b[H",
    "bracketed paste": "\x1b[201~rm -rf ~\n",
    "report": "\x1b[6n\x1b[c",
    "link": "\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\",
    "eight bits": "\x9b2J\x9d0;owned\x9c",
    "overwrite": "right\rwrong",
    "backspace": "wrong\b\b\b\b\bright",
    "bell": "\x07",
    "delete": "a\x7fb",
    "charset": "\x1b(0\x0e",
    "hidden": "\x1b[8mhidden\x1b[0m",
    "direction": "user\u202e\u2066// admin\u2069 \u2066",
    "marks of direction": "a\u200fb\u061cc",
    "no width": "pay\u200bpal\u2060\ufeff\u200d",
    "lines": "one\u2028two\u2029three\x85four",
    "tags": "\U000e0001\U000e0041",
    "surrogate": "\udcff\ud83d",
    "blank letter": "a\u3164b\uffa0",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_that_a_terminal_obeys_or_hides_is_left(name: str) -> None:
    text = ATTACKS[name]
    clean = printable(f"before {text} after")
    assert clean.startswith("before ")
    assert clean.endswith(" after")
    for character in clean:
        assert character == "\n" or unicodedata.category(character)[0] != "C", hex(ord(character))
    clean.encode()  # no half of a pair
    in_pieces = "".join(printable(character) for character in text)
    assert in_pieces == printable(text)  # however a stream cuts it


def test_characters_are_written_out_as_python_does() -> None:
    assert printable("\x1b[2J\x9b\u202e\U000e0041\r\udcff") == (
        "\\x1b[2J\\x9b\\u202e\\U000e0041\\r\\udcff"
    )
    assert printable("a\tb\nc") == "a\tb\nc"
    kept = "naïve 中文 한국어 العربية ½ 🙂\ufe0f \\boxed{5}"
    assert printable(kept) == kept
    assert printable("abcdef", width=4) == "abc…"
    assert printable("abcd", width=4) == "abcd"


def test_joiners_stay_within_words_and_emoji() -> None:
    for kept in (
        "👨\u200d👩\u200d👧",
        "❤\ufe0f\u200d🔥",
        "👩🏽\u200d🔬",
        "\u0645\u06cc\u200c\u062e\u0648",
        "क्\u200dष",
    ):
        assert printable(kept) == kept
    assert printable("pay\u200dpal \u200d 👨\u200dx 👨\u200d\u200d👩") == (
        "pay\\u200dpal \\u200d 👨\\u200dx 👨\\u200d\\u200d👩"
    )


def test_every_control_and_format_character_of_unicode_is_known() -> None:
    kept = {"\t", "\n"}
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            assert (printable(character) == character) == (character in kept), hex(number)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_data_stays_exact(encoding: str) -> None:
    value = {"detail": "".join(ATTACKS.values()) + "é中🙂", "x": 1.5}
    text = json_printable(json.dumps(value, ensure_ascii=False), encoding)
    text.encode(encoding)
    assert json.loads(text) == value
    assert printable(text) == text


SECRETS = {  # text -> what is left of it
    "https://me:hunter2@host/v1": "https://***@host/v1",
    "https://me:p@ss@host/v1": "https://***@host/v1",
    "http://h/v1?x=1&token=hunter2&y=2": "http://h/v1?x=1&token=***&y=2",
    "Authorization: Bearer hunter2hunter2": "Authorization: Bearer ***",
    "{'Authorization': 'Basic aHVudGVy'}": "{'Authorization': 'Basic ***'}",
    "args.api_key=hunter2, x=1": "args.api_key=***, x=1",
    '{"password": "hunter2"}': '{"password": "***"}',
    "--hub-token hunter2 --k 3": "--hub-token *** --k 3",
    "x-api-key: hunter2hunter2": "x-api-key: ***",
    "Authorization: hunter2hunter2": "Authorization: ***",
    "password: correct-horse-battery": "password: ***",
    "hf_AbCdEfGhIjKlMnOpQr1": "hf_***",
    "sk-proj-1234567890abcdef": "sk-***",
    "ghp_1234567890abcdefghij": "ghp_***",
}
NO_SECRETS = (
    *("api_key_env=OPENAI_API_KEY", "tokenizer=gpt2", "stop_token: '<eos>'", "hf_model_name"),
    *("leave --api-key out", "--vllm=--api-key: a call has one key", "password = input('Say: ')"),
    *("Authorization: required", "the secret: 1 cup", "The secret = 7", "session_token: str"),
    *("{'hf_token': None}", "password=None", "def f(secret_key): return secret_key == x"),
    *("hf_llama3_8b_instruct", "hf_home_directory_2024"),
    *("a password that is long", "http://host:8000/v1", "mail me@host", "3 tokens", "sk-learn"),
)


@pytest.mark.parametrize("text", SECRETS)
def test_passwords_are_taken_out(text: str) -> None:
    assert redacted_text(text) == SECRETS[text]
    assert redacted_text(SECRETS[text]) == SECRETS[text]


def test_what_is_no_password_stays() -> None:
    for text in NO_SECRETS:
        assert redacted_text(text) == text


def test_passwords_in_data_and_in_commands() -> None:
    data = {"a": [{"api_key": "hunter2", "api_key_env": "KEY", "n": 3}], "u": ("http://a:b@h",)}
    assert redacted(data) == {
        "a": [{"api_key": "***", "api_key_env": "KEY", "n": 3}],
        "u": ("http://***@h",),
    }
    words = ["grpo", "eval", "--api-key", "hunter2", "url=http://a:b@h"]
    assert redacted_command(words) == ["grpo", "eval", "--api-key", "***", "url=http://***@h"]


@pytest.mark.parametrize(
    "unit", ["://", "a://b", "@", "api_key=", "sk-", "hf_a", "bearer ", "?token=", "--", "\x1b["]
)
def test_a_hostile_text_is_read_in_linear_time(unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        start = time.perf_counter()
        shown(text)
        return time.perf_counter() - start

    assert seconds(1 << 17) < 1.0  # quadratic: minutes
