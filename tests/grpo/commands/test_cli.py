"""The command line as a user meets it: fast help, one-sentence errors, exit codes, clean pipes."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from grpo import cli
from grpo.commands import chat, plan, show
from grpo.config import config
from grpo.config.schema import PretrainStage, RLStage
from grpo.errors import RecipeError, RunError
from grpo.model.compute_types import settled
from grpo.outside.terminal.console import Console
from tests.grpo.tiny_bases import save_tiny_base

ROWS = [
    {"prompt": "2+2", "completion": "<think>x</think><answer>4</answer>", "answer": "4"},
    {"prompt": "2+2", "completion": "<think>x</think><answer>5</answer>", "answer": "4"},
]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "two.yaml"
    file.write_text(
        """
stages:
  - {name: base, kind: pretrain, data: {source: parity}}
  - name: rl
    model: {path: "stage:base"}
    data: {source: parity, max_prompt_length: 32}
    rollout: {prompts_per_step: 4, num_generations: 8, max_completion_length: 16}
    rewards: [{name: accuracy}]
    algorithm: {num_minibatches: 2}
    learner: {max_steps: 10, tokens_per_micro_batch: 100}
"""
    )
    return file


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def run(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grpo.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, input=stdin)


def test_help_is_fast_and_names_every_verb() -> None:
    done, seconds = run("--help"), list[float]()
    assert done.returncode == 0
    for _ in range(3):  # of processor time, as other tests may keep the machine busy
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    for verb in ("train", "eval", "score", "plan", "show", "chat"):
        assert f"    {verb} " in done.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train"], ["RECIPE", "--resume"]),
        (["train", "nowhere.yaml"], ["nowhere.yaml"]),
        (["train", "RECIPE", "run.sed=1"], ["'sed'", "'seed'"]),
        (["train", "RECIPE", "--resume", "."], ["--resume", "leave out"]),
        (["train", "--resume", "/no/such/run"], ["--resume", "/no/such/run"]),
        (["plan", "RECIPE", "rl.rewards.0.name=acuracy"], ["'acuracy'", "'accuracy'", "format"]),
        (["score", "acuracy", "ROWS"], ["'acuracy'", "'accuracy'"]),
        (["score", "accuracy", "/no/such/file"], ["/no/such/file"]),
        (["score", "accuracy", "ROWS", "--args", "extraction"], ["'extraction'", "key=value"]),
        (["score", "accuracy", "ROWS", "--args", "strict=1"], ["'strict'", "Valid: extraction"]),
        (["score", "accuracy", "ROWS", "--workers", "0"], ["--workers"]),
        (["score", "accuracy", "ROWS", "--workers", "two"], ["'two' is not a whole number"]),
        (["score", "accuracy", "ROWS", "--timeout", "1m"], ["'1m' is not a number of seconds"]),
        (["score", "accuracy", "FOLDER"], ["is a folder"]),
        (["train", "FOLDER"], ["is a folder"]),
        (["eval"], ["required: MODEL|RUN (see"]),
        (["plan"], ["required: RECIPE (see"]),
        (["eval", "/no/such/model"], ["/no/such/model", "--recipe"]),
        (["show", "/no/such/run"], ["/no/such/run"]),
        (["chat", "a", "b", "c"], ["one or two models, not 3"]),
        (["plan", "RECIPE", "--frob"], ["--frob"]),
        (["frobnicate"], ["frobnicate"]),
        ([], ["VERB"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    words: list[str],
    expected: list[str],
    recipe: Path,
    rows: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {"RECIPE": str(recipe), "ROWS": str(rows), "FOLDER": str(rows.parent)}
    try:
        code = cli.main([named.get(word, word) for word in words])
    except SystemExit as stop:  # argparse leaves this way
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("grpo: error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in expected), err


def test_overrides_may_stand_behind_options() -> None:
    arguments = cli._parse(["eval", "m", "run.seed=1", "--recipe", "r", "eval.num_tasks=3"])
    assert (arguments.model, arguments.recipe) == ("m", "r")
    assert arguments.overrides == ["run.seed=1", "eval.num_tasks=3"]


def test_score_prints_one_json_line_a_row(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", "accuracy", str(rows), "--workers", "2"]) == 0
    out, err = capsys.readouterr()
    verdicts = [json.loads(line) for line in out.splitlines()]
    assert [(v["value"], v["status"]) for v in verdicts] == [(1.0, "correct"), (0.0, "wrong")]
    assert "2 rows: mean 0.5000 of 2 scored (correct 1, wrong 1)" in err


def test_score_says_why_a_grader_failed(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from grpo.types import Score\n"
        "class Failing:\n"
        "    def verify(self, completion, task):\n"
        "        if '4' in completion and task.answer in self.good:\n"
        "            return Score(value=1.0, status='correct')\n"
        "        return Score(value=None, status='grader_error', detail='worker: OSError: gone')\n"
        "class Half(Failing):\n"
        "    good = '4'\n"
        "class Broken(Failing):\n"
        "    good = ''\n"
    )
    said = "the grader failed on {} rows; most often: worker: OSError: gone"
    assert cli.main(["score", f"{plugin}:Half", str(rows)]) == 0
    assert said.format(1) in capsys.readouterr().err
    assert cli.main(["score", f"{plugin}:Broken", str(rows)]) == 1
    assert said.format(2) in capsys.readouterr().err


def test_a_reader_that_goes_away_is_not_an_error(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text((json.dumps(ROWS[0]) + "\n") * 20_000)
    command = f"{sys.executable} -m grpo.cli score accuracy {file} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert json.loads(done.stdout)["value"] == 1.0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "load", stop)
    assert cli.main(["plan", str(recipe)]) == 130


def test_plan_counts_by_hand(recipe: Path) -> None:
    loaded = settled(config.load(recipe))
    base, stage = loaded.stages
    assert isinstance(base, PretrainStage)
    assert isinstance(stage, RLStage)
    size = plan.pretrain_size(base)
    counts = {unit: count for unit, count, _ in plan.rl_rows(stage, 4, size)}
    assert counts["completions per step"] == "32"
    assert counts["completion tokens per step"] == "<= 512"  # 4 * 8 * 16
    assert counts["learner tokens per step"] == "<= 640"  # + 4 prompts of 32, each once
    assert counts["micro-batches per pass"] == "<= 8"  # 2 minibatches of 320 tokens: 4 of 100 each
    assert counts["optimizer steps"] == "<= 20"
    assert counts["completions per evaluation"] == "1,000"
    assert counts["KV cache"] == "6.0 MB"  # 4 layers * 2 * 128 * 4 bytes * 32 rows * 48 tokens


def test_plan_knows_the_size_of_models(tmp_path: Path, recipe: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    base = config.load(recipe).stages[0]
    assert isinstance(base, PretrainStage)
    settings = LlamaConfig(
        vocab_size=16,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        tie_word_embeddings=True,
    )
    settings.save_pretrained(tmp_path / "model")
    model = LlamaForCausalLM(settings)
    total = sum(p.numel() for p in model.parameters())
    assert plan.pretrain_size(base)["parameters"] == total - 16 * 128  # embeddings left out
    stage = config.load(recipe, [f"rl.model.path={tmp_path / 'model'}"]).stages[1]
    assert isinstance(stage, RLStage)
    size = plan.model_size(stage.model, {})
    assert size == {
        "parameters": total,
        "kv_values_per_token": 2 * 4 * 128,
        "shares_prompts": 1,
        "adapter": 0,
    }


def test_show_reads_a_run_and_refuses_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        show.print_run(tmp_path)
    lines = [json.dumps({"step": i, "reward": i / 10, "time": 5.0}) for i in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "rew']))
    (tmp_path / "summary.json").write_text(
        json.dumps({"before": {"greedy": 0.5, "pass1_ci": [0.4, 0.6]}, "after": {"greedy": 1.0}})
    )
    console = Console(file=io.StringIO(), width=120)
    show.print_run(tmp_path, console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "0.4 to 0.6" in text
    assert "8 steps" in text
    reward = next(line for line in text.splitlines() if "reward" in line)
    assert "0.1" in reward
    assert "0.8" in reward
    assert "▁▂▃▄▅▆▇█" in reward


def test_chat_answers_each_line_of_a_pipe_with_both_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("a", "b")):
        save_tiny_base(tmp_path / name, seed, letters="01=-", max_position=12)
    monkeypatch.setattr("sys.stdin", io.StringIO("0110=\n\n1=\n"))
    console = Console(file=io.StringIO(), width=80)
    chat.chat([str(tmp_path / "a"), str(tmp_path / "b")], console=console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert text.count("╭") == 4  # two questions, two panels each
    with pytest.raises(RecipeError, match="there is no such folder"):
        chat.load(str(tmp_path / "none"))


def test_curve_keeps_the_shape_when_it_is_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "WIDTH", 4)
    assert show.curve([0.0] * 50 + [1.0] * 50) == "▁▁██"
    assert show.curve([3.0, 3.0]) == "▁▁"


def test_a_plug_in_that_exits_is_an_error(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit code is not ours: 0 would say that all went well."""
    path = tmp_path / "leaves.py"
    path.write_text("import sys\ndef f(completions, **_):\n    sys.exit(0)\n")
    assert cli.main(["score", f"{path}:f", str(rows)]) == 2
    assert f"called sys.exit(0) at {path}:3" in capsys.readouterr().err
    # wherever it is called from, say a data source in the middle of a run
    monkeypatch.setattr(cli, "_call", lambda *_: sys.exit(0))
    assert cli.main(["doctor"]) == 2
    assert "code that is not ours called sys.exit(0) at " in capsys.readouterr().err


def test_scoring_has_a_deadline(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import time\ndef f(completions, **_):\n    time.sleep(5)\n")
    assert cli.main(["score", f"{path}:f", str(rows), "--timeout", "0.1"]) == 2
    assert "did not return within 0.1 s" in capsys.readouterr().err
