"""Passwords and keys: none in a run, in what is said of it, or in an evaluation's files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from grpo import cli
from grpo.config.config import load, shipped
from grpo.errors import GrpoError, RecipeError
from grpo.rundir.provenance import provenance
from grpo.stages import preflight

URL = "https://me:hunter2@host/v1"
JUDGE = f"rewards=[{{name: judge, args: {{url: '{URL}', model: m}}}}]"


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        (JUDGE, r"^rewards\.0\.args\.url = 'https://\*\*\*@host/v1'"),
        ("rollout.engine_args={api_key: hunter2}", r"^rollout\.engine_args\.api_key = '\*\*\*'"),
        ("rollout.engine_args={headers: [{Authorization: hunter2}]}", "headers.0.Authorization"),
        ("data.args={x: 'http://h/?token=hunter2'}", r"token=\*\*\*'"),
        ("model.path=hf_hunter2hunter2hunter2", r"^model\.path = 'hf_\*\*\*'"),
    ],
)
def test_a_recipe_holds_none(override: str, setting: str) -> None:
    with pytest.raises(RecipeError, match=setting) as raised:
        preflight.check_secrets(load("parity-r1-zero", [override, "data.source=a.b:c"]))
    assert "hunter2" not in str(raised.value)
    assert "environment variable" in str(raised.value)


def test_recipes_without_any_are_taken() -> None:
    for name in shipped():
        preflight.check_secrets(load(name))
    words = "data.template_args={system_prompt: 'Basic arithmetic-1. The secret: think. api_key=x'}"
    preflight.check_secrets(load("parity-r1-zero", [words]))
    preflight.check_secrets(load("parity-r1-zero", ["rewards=[{name: judge, args: "
        "{url: 'http://host:8000/v1', model: m, api_key_env: KEY}}]"]))  # fmt: skip


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_no_verb_leaves_or_shows_one(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.main([verb, "parity-r1-zero", f"run.dir={run}", JUDGE]) == 2
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err
    assert "rewards.0.args.url" in said.err
    assert not run.exists()


def test_what_is_told_of_a_run_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/bin/grpo", "train", "x", f"a.url={URL}", "--api-key", "hunter2"]
    monkeypatch.setattr(sys, "argv", words)
    command = json.dumps(provenance()["command"])
    assert "hunter2" not in command
    assert "https://***@host/v1" in command
    assert "hunter2" not in str(GrpoError(f"{URL} does not answer"))
