"""Text from outside on its way to a terminal: every verb and view, with a corpus of attacks."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.panel import Panel
from rich.text import Text

from grpo import cli
from grpo.commands import chat, check, doctor, dryrun, plan, show
from grpo.commands.summary import print_models
from grpo.config.config import load
from grpo.errors import DataError, GrpoError
from grpo.evaluation import report
from grpo.outside.terminal import streams
from grpo.outside.terminal.console import Console, Said
from grpo.outside.terminal.view import SampledText
from grpo.rewards.golds import Fault
from grpo.rewards.sandbox.probe import Report
from grpo.rundir.log import RunLog
from grpo.types import Score

from .test_printable import ATTACKS

MARKUP = "[red]a[/red] [link=http://evil]b[/link] [/] :smile: [bold"
FOREIGN = "<" + "".join(ATTACKS.values()).replace("\n", "") + ">" + MARKUP
SAMPLE = SampledText(label=FOREIGN, prompt=FOREIGN, completion=FOREIGN)


class Terminal(io.StringIO):
    """A terminal of 10,000 columns, as far as it is asked."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shows_nothing_but_text(written: str, *, markup: bool = True) -> None:
    """`written` has no sequence beside the colors and the cursor of our own views."""
    ours = re.compile(r"\x1b\[(?:\d*(?:;\d+)*m|\??\d*[hlAKJ])")
    for character in ours.sub("", written).replace("\r", ""):
        assert character == "\n" or unicodedata.category(character)[0] != "C", repr(character)
    for attack in (*ATTACKS.values(), "\x1b[8m", "\x1b[2J"):
        if attack not in ("\r", "\n"):
            assert attack not in written
    if markup:
        flat = re.sub(r"[\s│┃|]+", "", ours.sub("", written))
        assert re.sub(r"\s+", "", MARKUP) in flat


# Views on a terminal, with colors


def test_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1?\n2?\n"))
    speaker = chat.Speaker(name=FOREIGN, model=None, tokenizer=None)
    monkeypatch.setattr(chat, "load", lambda _: speaker)
    answers = iter([FOREIGN, DataError(f"the prompt {FOREIGN} is none")])

    def reply(*_: Any) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(chat, "reply", reply)
    out = Terminal()
    chat.chat(["m"], console=Console(file=out, width=2_000, force_terminal=True))
    shows_nothing_but_text(out.getvalue())
    assert r"\x1b]52;c;cm0gLXJm\x07" in out.getvalue()


def test_the_live_view_of_training(tmp_path: Path) -> None:
    out = Terminal()
    console = Console(file=out, width=2_000, height=60, force_terminal=True)
    with RunLog(tmp_path, title=FOREIGN, max_steps=2, console=console) as log:
        with log.task(FOREIGN) as progress:
            progress(1, 2)
        log.say(FOREIGN)
        log.step(1, {"reward": 1.0, f"accuracy/{FOREIGN}": 0.5}, [SAMPLE, SAMPLE])
    shows_nothing_but_text(out.getvalue())
    assert "samples of this step" in out.getvalue()


def test_a_log_of_plain_lines(tmp_path: Path) -> None:
    out = io.StringIO()
    with RunLog(
        tmp_path, title=FOREIGN, max_steps=2, console=Console(file=out, width=2_000)
    ) as log:
        log.step(1, {"reward": 1.0, f"accuracy/{FOREIGN}": 0.5}, [SAMPLE])
    shows_nothing_but_text(out.getvalue())


def test_show(tmp_path: Path) -> None:
    run = tmp_path / "run [red]x[/red]\x1b]0;t\x07"
    (run / "rl").mkdir(parents=True)
    stages = [{"name": FOREIGN.replace("/", ""), "kind": "rl"}, {"name": "rl", "kind": MARKUP}]
    (run / "resolved.json").write_text(json.dumps({"stages": stages}))
    line = json.dumps({"step": 1, "time": 1.0, "reward": 0.5, f"rewards/{FOREIGN}/mean": 1.0})
    (run / "rl" / "metrics.jsonl").write_text(line + "\n")
    (run / "rl" / "summary.json").write_text(json.dumps({"result": FOREIGN, "seconds": 1}))
    cell = {"accuracy": [0.5, 0.4, 0.6], FOREIGN: [1.0, 1.0, 1.0]}
    summary = {"recipe": FOREIGN, "seed": 0, "stage": FOREIGN, "note": FOREIGN}
    summary |= {"models": {FOREIGN: cell, "b": cell}, "baseline": FOREIGN, "details": {}}
    summary |= {"not_applicable": {}, "before": {FOREIGN: 1.0}, "after": {FOREIGN: FOREIGN}}
    (run / "summary.json").write_text(json.dumps(summary))
    out = Terminal()
    show.print_run(run, Console(file=out, width=4_000, force_terminal=True))
    shows_nothing_but_text(out.getvalue())
    assert r"run [red]x[/red]\x1b]0;t\x07" in out.getvalue()
    print_models(summary, Console(file=out, width=40, force_terminal=True))
    shows_nothing_but_text(out.getvalue(), markup=False)


def test_the_tables_of_eval() -> None:
    figures = {
        "tasks": 1,
        "k": 1,
        "rewards": {FOREIGN: {"pass1": 0.5, "pass1_ci": [0, 1], "greedy": None}},
        "pass_at_k": {"1": 0.5},
        "clipped_ratio": 0.0,
        "mean_length": 1.0,
        "length_right": None,
        "length_wrong": 1.0,
        "scripts": {FOREIGN: 0.5},
        "behaviors": {FOREIGN: {"share": 0.5, "per_1000_words": 1.0}},
    }
    gap = {"task": FOREIGN, "template": "raw", "reward": FOREIGN, "of": [FOREIGN, FOREIGN]}
    gap |= {"pass1": 0.0, "ci": [0.0, 0.0]}
    results = {"models": {FOREIGN: {FOREIGN: {FOREIGN: figures}}}, "differences": [gap]}
    out = Terminal()
    report.print_results(results, Console(file=out, width=4_000, force_terminal=True))
    shows_nothing_but_text(out.getvalue())


def test_check_doctor_plan_and_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    console = Console(file=out, width=4_000, force_terminal=True, soft_wrap=True)
    score = Score(value=0.0, status="wrong", detail=FOREIGN)
    fault = Fault(reward=FOREIGN, task=FOREIGN, kind="gold", answer=FOREIGN, score=score)
    console.print(check._line(fault), highlight=False)
    report = Report(tier=FOREIGN, error=FOREIGN, leaks=(FOREIGN,), broken={FOREIGN: FOREIGN})
    monkeypatch.setattr(doctor, "reports", lambda: [report])
    assert not doctor.print_doctor(console)
    recipe = load("parity-r1-zero").model_copy(update={"name": FOREIGN})
    found = plan.preflight.Found(notes=(FOREIGN,))
    monkeypatch.setattr(plan.preflight, "check", lambda _: found)
    monkeypatch.setattr(plan.preflight, "check_machine", lambda _: None)
    plan.print_plan(recipe, console)
    failed = dryrun.Check(stage=FOREIGN, what=FOREIGN, passed=False, detail=FOREIGN)
    dryrun.print_checks(recipe, [failed], console)
    shows_nothing_but_text(out.getvalue())


# The command line, whose streams have a door


def written(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return found.out + found.err


@pytest.mark.parametrize(
    "words",
    [
        ["train", FOREIGN],
        ["train", "parity-r1-zero", f"rewards=[{{name: {FOREIGN!r}}}]"],
        ["train", "--resume", FOREIGN],
        ["plan", f"{FOREIGN}.yaml"],
        ["plan", "parity-r1-zero", f"{FOREIGN}=1"],
        ["plan", "parity-r1-zero", f"model.{FOREIGN}=1"],
        ["check", "parity-r1-zero", f"data.source={FOREIGN}"],
        ["show", FOREIGN],
        ["eval", "m", "--tasks", FOREIGN],
        ["eval", "m", "--data", FOREIGN],
        ["eval", FOREIGN],
        ["chat", f"./{FOREIGN}"],
        ["score", FOREIGN, "rows.jsonl"],
        ["score", "accuracy", FOREIGN],
        ["dry-run", FOREIGN],
        [FOREIGN],
        ["doctor", f"--{FOREIGN}"],
    ],
)
def test_error_sentences(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"completion": "x", "answer": "1"}\n')
    words = [word.replace("\udcff\ud83d", "") for word in words]
    try:
        code = cli.main(words)
    except SystemExit as left:  # argparse
        code = left.code
    assert code == 2
    said = written(capsys)
    assert "grpo: error: " in said
    shows_nothing_but_text(said, markup=False)


def test_score_writes_exact_data_and_clean_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text(
        "from grpo.types import Score\n"
        "class Bad:\n"
        "    def verify(self, completion, task):\n"
        "        return Score(value=None, status='grader_error', detail=completion)\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"completion": FOREIGN, "answer": "1"}) + "\n")
    assert cli.main(["score", f"{reward}:Bad", str(rows)]) == 1
    found = capsys.readouterr()
    assert json.loads(found.out)["detail"] == FOREIGN  # half pairs and all
    shows_nothing_but_text(found.out + found.err)
    assert r"most often: <\x1b]0;owned\x07" in found.err
    assert cli.main(["score", "code", str(_program(tmp_path))]) == 0
    shows_nothing_but_text(written(capsys), markup=False)


def _program(folder: Path) -> Path:
    said = "```python\ndef f(x):\n    raise ValueError('\\udcff\\x1b]0;t\\x07')\n```"
    rows = folder / "code.jsonl"
    tests = {"asserts": ["assert f(1) == 1"]}
    rows.write_text(json.dumps({"completion": said, "tests": tests}) + "\n")
    return rows


def test_print_warnings_logs_and_tracebacks_go_through_the_door(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("grpo.test")
    log.propagate = False  # pytest's own record of it would hold the raw text
    with streams.guarded():
        handler = logging.StreamHandler()
        log.addHandler(handler)
        print(FOREIGN)
        print("kept", "apart", sep=" ", end="!\n", file=sys.stderr)
        print("\r12 rows", end="", file=sys.stderr)  # redraws its line
        print("\x1b[36m(worker)\x1b[0m colors of libraries are left out")
        sys.stdout.writelines([FOREIGN, "\n"])
        log.warning("%s", FOREIGN)
        log.removeHandler(handler)
        sys.stderr.write(warnings.formatwarning(FOREIGN, UserWarning, FOREIGN, 1))
        print(GrpoError(f"http://me:hunter2@host {FOREIGN}"), file=sys.stderr)
        Console(stderr=True, force_terminal=True, width=2_000).print(FOREIGN, style="red")
    found = capsys.readouterr()
    shows_nothing_but_text(found.out + found.err)
    assert "(worker) colors of libraries are left out\n" in found.out
    assert "kept apart!\n" in found.err
    assert "\r12 rows" in found.err
    assert "hunter2" not in found.err
    assert "\x1b[31m" in found.err  # the console's own color


def test_a_bug_keeps_its_traceback_and_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    bug = "import grpo.cli as c\ndef f(*_): raise KeyError('\\x9b2J\\x1b]0;t\\x07')\nc._call = f\n"
    script = tmp_path / "bug.py"
    script.write_text(bug + "import sys\nsys.exit(c.main(['doctor']))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    shows_nothing_but_text(done.stderr, markup=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_terminals_without_unicode(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"note": FOREIGN + "中é"}))
    metrics = [json.dumps({"step": n, "reward": n, "中": 1.0}) for n in range(3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(metrics))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"completion": "<answer>中é\x9b</answer>", "answer": "1"}) + "\n")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for words in (["show", str(tmp_path)], ["score", "accuracy", str(rows)]):
        done = subprocess.run(
            [sys.executable, "-m", "grpo.cli", *words], capture_output=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        shows_nothing_but_text(done.stdout.decode(encoding), markup=False)
    assert json.loads(done.stdout.decode(encoding))["detail"] == "'中é\\x9b' != '1'"


def test_a_real_terminal(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"note": FOREIGN}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, f"a{MARKUP}": 1.0}) + "\n")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "grpo.cli", "show", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "4000"}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    received = b""
    while True:
        try:
            received += (piece := os.read(ours, 4096))
        except OSError:  # the other end is closed
            break
        if not piece:
            break
    os.close(ours)
    assert child.wait() == 0
    text = received.decode()
    assert "\x1b[" in text  # it has colors
    shows_nothing_but_text(text)


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.jsonl", "resolved.json", "a/summary.json"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"[1]",
        b"{",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5_000 + b"}",
        b"\xff\xfe",
        b'{"models": {"a": {"b": {}}}, "recipe": 1, "after": 1, "stages": [{"name": 1}]}',
        b'{"stages": [{"name": "../x", "kind": "rl"}, {"name": "b", "kind": "rl"}]}',
        b'{"before": {"rewards": {"a": 1}}, "reward": 1e400, "step": ' + b"9" * 400 + b"}",
    ],
    ids=["list", "half", "deep", "digits", "bytes", "shapes", "names", "numbers"],
)
def test_a_run_from_elsewhere_is_shown_or_refused(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    stages = [{"name": "a", "kind": "eval"}, {"name": "b", "kind": "rl"}]
    (tmp_path / "resolved.json").write_text(json.dumps({"stages": stages}))
    (tmp_path / name).write_bytes(content)
    assert cli.main(["show", str(tmp_path)]) in (0, 2)
    assert "Traceback" not in written(capsys)


def test_what_a_model_says_is_not_searched_for_keys() -> None:
    code = 'password = ask("?")\nlogin(password="hunter2hunter2")'
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(Panel(Said(f"{code}\x1b[2J")))
    assert 'login(password="hunter2hunter2")\\x1b[2J ' in out.getvalue()
    console.print(Panel(Text(code)))
    assert "***" in out.getvalue()


def test_only_a_line_of_progress_is_redrawn() -> None:
    out = io.StringIO()
    door = streams.Door(out)
    for piece in (
        "ValueError",
        ": ",
        "\rall is well\n",
        "\r1 row",
        "\r",
        "2 rows",
        "\r3 rows",
        "\n",
    ):
        door.write(piece)
    assert out.getvalue() == "ValueError: \\rall is well\n\r1 row\r2 rows\r3 rows\n"
