"""Every option of every verb, in every form of it, reaches what it is for or is refused by name."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from grpo import cli
from grpo.commands import options
from grpo.config.config import load, resolved

# what a person types for an option, and what has to arrive for it
TYPED: dict[str, tuple[list[str], Any]] = {
    "tasks": (["--tasks", "parity,gsm8k"], ("parity", "gsm8k")),
    "rewards": (["--rewards", "mine.py:f,accuracy"], ("mine.py:f", "accuracy")),
    "data": (["--tasks", "gsm8k", "--data", "gsm8k=f.jsonl"], {"gsm8k": "f.jsonl"}),
    "k": (["--k", "7"], 7),
    "limit": (["--limit", "23"], 23),
    "max_tokens": (["--max-tokens", "29"], 29),
    "template": (["--template", "raw"], None),
    "temperature": (["--temperature", "0.31"], 0.31),
    "top_p": (["--top-p", "0.77"], 0.77),
    "engine": (["--engine", "mine.py:e"], "mine.py:e"),
    "engine_args": (["--engine-args", "a=41"], {"a": 41}),
    "dtype": (["--dtype", "bfloat16"], "bfloat16"),
    "baseline": (["--baseline", "other"], "other"),
    "against": (["--against", "train.jsonl"], "train.jsonl"),
    "out": (["--out", "new-folder"], None),
    "seed": (["--seed", "0"], 0),  # also where it is what a form without it would do
    "threads": (["--threads", "3"], 3),
    "recipe": (["--recipe", "parity-r1-zero"], "parity-r1-zero"),
    "overrides": (["run.seed=43"], 43),
    "workers": (["--workers", "5"], 5),
    "args": (["--args", "extraction=lenient"], {"extraction": "lenient"}),
    "architecture": (["--architecture", "llama"], "llama"),
    "host": (["--host", "0.0.0.0"], "0.0.0.0"),
    "port": (["--port", "8123"], 8123),
    "max_model_len": (["--max-model-len", "99"], 99),
    "kv_cache_gib": (["--kv-cache-gib", "1.25"], 1.25),
    "vllm": (["--vllm=--tensor-parallel-size=2"], ("--tensor-parallel-size=2",)),
    "no_token": (["--no-token"], False),
    "resume": (["--resume", "RUN"], None),
    "accept_changes": (["--accept-changes"], True),
    "timeout": (["--timeout", "47"], 47.0),
    "heldout": (["--heldout", "test.csv"], "test.csv"),
    "prompt": (["--prompt", "question"], "question"),
    "answer": (["--answer", "gold"], "gold"),
    "max_prompt_length": (["--max-prompt-length", "97"], 97),
    "json": (["--json"], True),
    "model": (["--model", "named"], "named"),
    "rows": (["--rows", "53"], 53),
    "eval_rows": (["--eval-rows", "59"], 59),
}
NEEDED = {  # what a form cannot do without
    "grpo train RECIPE": ["parity-r1-zero"],
    "grpo train --resume RUN": ["--resume", "RUN"],
    "grpo eval MODEL --tasks NAME,…": ["model", "--tasks", "parity"],
    "grpo eval MODEL --recipe RECIPE": ["model", "--recipe", "parity-r1-zero"],
    "grpo eval RUN": ["RUN"],
    "grpo score REWARD FILE.jsonl": ["accuracy", "ROWS"],
    "grpo data FILE": ["ROWS"],
    "grpo data --recipe RECIPE": ["--recipe", "parity-r1-zero"],
    "grpo check RECIPE": ["parity-r1-zero"],
    "grpo doctor": [],
    "grpo plan RECIPE": ["parity-r1-zero"],
    "grpo dry-run RECIPE": ["parity-r1-zero"],
    "grpo import-trl CONFIG.yaml": ["config.yaml"],
    "grpo show RUN": ["RUN"],
    "grpo chat MODEL": ["a", "b"],
    "grpo serve MODEL": ["model"],
}
POSITIONAL = {"model", "models", "reward", "file", "run", "config"}
CALLED = {
    "grpo.commands.train": ("train", "resume"),
    "grpo.commands.eval_recipe": ("evaluate_model", "compare_model"),
    "grpo.commands.eval_tasks": ("evaluate_tasks",),
    "grpo.commands.data": ("print_data",),
    "grpo.commands.check": ("check_recipe",),
    "grpo.commands.doctor": ("print_doctor",),
    "grpo.commands.score": ("score_file",),
    "grpo.commands.plan": ("print_plan",),
    "grpo.commands.dryrun": ("dry_run",),
    "grpo.commands.importtrl": ("import_trl",),
    "grpo.commands.show": ("print_run",),
    "grpo.commands.chat": ("chat",),
    "grpo.commands.serve": ("serve",),
}


def verbs() -> dict[str, argparse.ArgumentParser]:
    actions = cli.parser()._actions
    (found,) = (a for a in actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def names(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions} - {"help"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What the verbs called, and with what; none of it is done."""
    made: list[Any] = []

    def record(*args: Any, **keywords: Any) -> list[Any]:
        made.append([*args, *keywords.values()])
        return []

    for module, functions in CALLED.items():
        for name in functions:
            monkeypatch.setattr(importlib.import_module(module), name, record)
    run = tmp_path / "RUN"
    run.mkdir()
    (run / "resolved.json").write_text(json.dumps(resolved(load("parity-r1-zero"))))
    (tmp_path / "ROWS").write_text("")
    return made


def flat(value: Any) -> list[Any]:
    """A value and all that it holds."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    elif hasattr(value, "__dataclass_fields__"):
        value = vars(value)
    found = [value]
    if isinstance(value, dict):
        found += [inner for item in value.values() for inner in flat(item)]
    elif isinstance(value, list | tuple):
        found += [inner for item in value for inner in flat(item)]
    return found


def run(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    places = {name: str(tmp_path / name) for name in ("RUN", "ROWS")}
    code = cli.main([places.get(word, word) for word in words])
    return code, capsys.readouterr().err


def test_the_table_has_every_option_and_no_other() -> None:
    assert set(options.FORMS) == set(verbs())
    for verb, parser in verbs().items():
        stated = {name for form in options.FORMS[verb].values() for name in form}
        assert stated == names(parser), verb
    assert {form for forms in options.FORMS.values() for form in forms} == set(NEEDED)


@pytest.mark.parametrize(
    ("verb", "form", "option"),
    [
        (verb, form, option)
        for verb, parser in verbs().items()
        for form in options.FORMS[verb]
        for option in sorted(names(parser) - POSITIONAL)
    ],
)
def test_every_option_arrives_or_is_refused_by_name(
    verb: str,
    form: str,
    option: str,
    calls: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, wanted = TYPED[option]
    if option == "template":
        wanted = ("raw",) if verb == "eval" else "raw"
    elif option == "out":
        wanted = "new-folder" if verb == "eval" else Path("new-folder").resolve()
    elif option == "resume":
        wanted = str(tmp_path / "RUN")
    elif option == "recipe" and verb not in ("eval", "data"):
        words, wanted = ["parity-r1-zero"], "parity-r1-zero"
    needed = [] if words[:1] == ["--tasks"] and "--tasks" in form else NEEDED[form]
    needed = needed or NEEDED[form][:1]
    typed = [*needed, *words] if words != needed else needed
    code, said = run([verb, *typed], tmp_path, capsys)
    if option in options.FORMS[verb][form]:
        assert code in (0, 1), said
        assert wanted in flat(calls), said
    elif form == "grpo eval RUN" and words[0] in ("--tasks", "--recipe"):
        assert code == 0  # it makes another form of this one
        assert wanted in flat(calls) or option == "recipe"
    else:
        assert (code, calls) == (2, [])
        assert said.startswith("grpo: error: ")
        assert said.count("\n") == 1
        assert words[0] in said, said


def test_a_refusal_says_what_does_the_same(
    calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "RUN", "--against", "B", "--out", "D", "--limit", "20", "--k", "4"]
    code, said = run(words, tmp_path, capsys)
    assert (code, calls) == (2, [])
    # one thing to do for each of them, and no second one
    assert (
        "write eval.num_samples=N eval.num_tasks=N instead, and leave --against, --out out." in said
    )
    code, said = run(["eval", "RUN", "--against", "B"], tmp_path, capsys)
    assert "does not take --against, which belongs to `grpo eval MODEL --tasks NAME,…`." in said


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learner.max_steps=3", "it reads run.seed, "),
        ("rollout.temperature=0.5", "it reads rollout.engine, "),
        ("eval.steps=3", "it reads eval.num_tasks, "),
        ("model.path=elsewhere", "MODEL says what is evaluated"),
        ("run.dir=elsewhere", "it reads run.seed, run.threads"),
        ("eval.num_tasks=3", ""),
        ("rl.eval.temperature=0.5", ""),
        ("data.args.bits=12", ""),
        ("rewards.0.weight=2", ""),
    ],
)
def test_a_setting_that_an_evaluation_does_not_read_is_refused(
    override: str, says: str, calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(["eval", "RUN", override], tmp_path, capsys)
    assert (code, len(calls)) == ((2, 0) if says else (0, 1)), said
    assert says in said
    assert not says or f"override {override!r} changes nothing" in said


def test_rewards_that_others_stand_for_are_refused(
    calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "RUN", "rewards.0.weight=2", "eval.rewards=[{name: accuracy}]"]
    code, said = run(words, tmp_path, capsys)
    assert (code, calls) == (2, [])
    assert "eval.rewards are there" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval", "m", "--data", "a=1", "--data", "a=2"], "names task 'a' twice: '1' and '2'"),
        (["score", "accuracy", "ROWS", "--args", "a=1", "a=2"], "'a' is given twice"),
        (["chat", "m", "--temperature=-1"], "--temperature -1 must be 0 (greedy) or above"),
    ],
)
def test_what_would_be_half_ignored_is_refused(
    words: list[str],
    says: str,
    calls: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = run(words, tmp_path, capsys)
    assert (code, calls) == (2, [])
    assert says in said
