"""Models and data from elsewhere: their code is not run, nobody is asked, and nothing hangs."""

from __future__ import annotations

import builtins
import gzip
import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grpo.data.conversation import ChatTemplate
from grpo.data.published import load_rows
from grpo.errors import DataError, RecipeError
from grpo.learner.saved import load_saved
from grpo.model import pretrained
from grpo.outside.templates import template_limits
from grpo.outside.templates.chat_templates import check_template
from grpo.training.curriculum import read_pass_rates
from tests.grpo.tiny_bases import save_tiny_base

CODE = "import pathlib\npathlib.Path({!r}).touch()\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(save_tiny_base(tmp_path / "model"))


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that foreign code would make; nobody may be asked whether it may run."""

    def ask(*_: object) -> str:
        raise AssertionError("standard input was read")

    monkeypatch.setattr(builtins, "input", ask)
    yield (marker := tmp_path / "ran")
    assert not marker.exists()


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_code_in_the_folder_of_a_model_is_not_run(model: Path, marker: Path) -> None:
    (model / "own.py").write_text(
        CODE.format(str(marker)) + "from transformers import LlamaConfig as C\n"
        "from transformers import LlamaForCausalLM as M\n"
    )
    auto = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": "own.T"}
    change(model / "config.json", auto_map=auto)
    pretrained.check_model(str(model))  # transformers has this architecture, and uses its own
    pretrained.load_model(str(model))
    load_saved(str(model))
    change(model / "config.json", model_type="own")
    for look in (pretrained.check_model, pretrained.load_model, pretrained.config):
        with pytest.raises(RecipeError, match=r"brings code of its own .* and no setting says"):
            look(str(model))


def test_a_tokenizer_that_is_code_is_not_run(model: Path, marker: Path) -> None:
    (model / "own.py").write_text(CODE.format(str(marker)))
    change(
        model / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["own.T", "own.T"]},
    )
    with pytest.raises(RecipeError, match="tokenizer"):
        pretrained.tokenizer(str(model))


def test_a_way_to_generate_that_a_model_brings_is_not_run(model: Path, marker: Path) -> None:
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(CODE.format(str(marker)))
    made = pretrained.load_model(str(model))
    ids = torch.tensor([[1, 2]])
    assert made.generate(ids, max_new_tokens=1, do_sample=False).shape == (1, 3)


@pytest.mark.parametrize("name", ["attn_implementation", "experts_implementation"])
def test_kernels_of_a_repository_are_not_loaded(name: str, model: Path, marker: Path) -> None:
    change(model / "config.json", **{name: "someone/kernels"})
    with pytest.raises(RecipeError, match=rf"{name} = 'someone/kernels' .* is not run"):
        pretrained.check_model(str(model))


class Touches:
    """A pickle that runs code when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.file),)


def test_a_pickle_with_code_instead_of_weights_is_a_sentence(model: Path, marker: Path) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    pretrained.load_model(str(model))
    torch.save({**weights, "extra": Touches(marker)}, model / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="could not be loaded"):
        pretrained.load_model(str(model))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Touches(marker)))
    with pytest.raises(RecipeError, match="could not be loaded"):
        pretrained.load_model(str(model))


def test_a_script_of_a_data_set_is_not_run(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(CODE.format(str(marker)))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_rows(str(folder), None, "train")


def test_older_data_sets_are_told_not_to_run_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions before 4 know the setting and ask where it is left out; later ones refuse it."""
    import datasets

    from grpo.model.hub import without_scripts

    assert without_scripts() == {}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_TRUST_REMOTE_CODE", None, raising=False)
    assert without_scripts() == {"trust_remote_code": False}


# Chat templates

ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)


def with_template(model: Path, template: str) -> Any:
    found = pretrained.tokenizer(str(model))
    found.chat_template = template
    return found


def test_a_template_that_does_not_end_is_a_sentence(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.5)
    tokens = with_template(model, ENDLESS)
    start = time.monotonic()
    with pytest.raises(RecipeError, match=r"chat_template.*: it was not done after 0\.5 s"):
        check_template(tokens)
    said: list[BaseException] = []

    def elsewhere() -> None:
        try:
            ChatTemplate(tokens).render("r.jsonl:1", [{"role": "user", "content": "a"}], {})
        except DataError as error:
            said.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(30)
    assert "not done after 0.5 s" in str(said[0])
    assert time.monotonic() - start < 20


def test_powers_and_files_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jinja").write_text("hunter2")
    for template, says in {
        "{{ 9**9**9**9 }}": r"line 1 computes a power",
        "{% macro m(x) %}{{ x }}{% endmacro %}\n{{ m(**{'x': 2**3}) }}": "line 2 computes a power",
        f"{{% include '{tmp_path / 'secret.jinja'}' %}}": "no loader",
        "{{ messages.__class__.__mro__ }}{{ messages.append(1) }}": "unsafe|mutable|not safely",
        "{{ 1 / 0 }}": "division",
    }.items():
        with pytest.raises(RecipeError, match=says):
            check_template(with_template(model, template))
    spread = "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(**{'x': messages[0].content}) }}"
    text = template_limits.rendered(
        with_template(model, spread), [{"role": "user", "content": "hello"}]
    )
    assert text == "hello"


def test_a_deadline_that_is_not_reached_leaves_nothing_behind() -> None:
    for _ in range(200):
        with template_limits.bounded(0.001):
            pass
    time.sleep(0.5)
    assert not template_limits._deadlines


def test_a_row_brings_no_template(model: Path) -> None:
    tokens = with_template(model, "{{ messages[0].content }}")
    row = {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}
    with pytest.raises(DataError, match=r"r\.jsonl:1: column 'chat_template_kwargs' brings a chat"):
        ChatTemplate(tokens).render("r.jsonl:1", [{"role": "user", "content": "a"}], row)


@pytest.mark.parametrize(
    "content",
    [b"[1]\n", b"[" * 100_000, b'{"a": 1, "a": 2}', gzip.compress(b"x" * 999, mtime=0)[:20]],
)
def test_measured_rates_that_are_none_are_a_sentence(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / ("rates.jsonl.gz" if content.startswith(b"\x1f") else "rates.jsonl")
    file.write_bytes(content)
    with pytest.raises(DataError, match="curriculum pass_rates"):
        read_pass_rates(str(file))
