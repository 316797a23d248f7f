"""What a run shows: frames, curves and cards, of hand-made folders and of one real short run."""

from __future__ import annotations

import gzip
import html.parser
import io
import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas
import pytest
from transformers import AutoModelForCausalLM

import grpo
from grpo.commands.api.frames import BLUE, ORANGE, Rows, frame_of
from grpo.errors import RewardError, RunError
from grpo.outside.terminal.console import Console
from grpo.rewards import score_file
from grpo.rundir.claim import claimed

BASE = "assets/parity-base"
FOLDER = str(Path(str(grpo.__file__)).parent / "recipes" / BASE)
HOSTILE = '<script>alert(1)</script> $x$ \x07\ud800 & "quoted"\nanother line'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, in a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def made(folder: Path, stages: list[dict[str, Any]]) -> Path:
    """The folder of a run that has begun and done nothing yet."""
    from grpo.config import config

    recipe = config.from_dict({"name": "made", "run": {"dir": str(folder)}, "stages": stages})
    folder.mkdir(parents=True)
    (folder / "resolved.json").write_text(json.dumps(config.resolved(recipe)))
    return folder


def rl(name: str = "rl", **more: Any) -> dict[str, Any]:
    return {
        "kind": "rl",
        "name": name,
        "model": {"path": BASE},
        "data": {"source": "parity", "args": {}},
        "rewards": [{"name": "accuracy"}],
        "learner": {"max_steps": 10},
        **more,
    }


def write_steps(folder: Path, rewards: list[float], first: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    lines = [
        {
            "step": step,
            "time": 0.5,
            "grad_norm": 2.0 * step,
            "rewards/a/mean": 1.0,
            "reward": reward,
        }
        for step, reward in enumerate(rewards, first)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_shard(folder: Path, step: int, scored: list[tuple[str, float | None]]) -> None:
    place = folder / "ledger"
    place.mkdir(exist_ok=True, parents=True)
    lines = [
        {
            "prompt": "2+2=",
            "completion": said,
            "finish": "stop",
            "value": value,
            "status": "scored",
            "parts": {"a": value, "b": None},
            "advantage": 0.0,
            "segments": [{"ids": [1, 2]}, {"ids": [3]}],
        }
        for said, value in scored
    ]
    with gzip.open(place / f"step_{step:06d}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_that_was_killed_shows_what_it_has(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", [rl()])
    write_steps(folder, [1.0, 2.0, 4.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')  # the kill came while a line was written
    for step in (1, 2, 3, 5):
        write_shard(folder, step, [("first", 0.5), ("second", None)])
    run = grpo.load_run(folder)
    assert run.state == "stopped (rl step 3 of 10)"
    assert run.metrics["reward"].to_dict() == {1: 1.0, 2: 2.0, 3: 4.0}
    assert list(run.metrics.columns) == ["reward", "rewards/a/mean", "grad_norm", "time"]
    rows = run.completions(step=2)
    assert rows["tokens"].to_list() == [3, 3]
    assert rows["reward"].to_list()[0] == 0.5
    assert np.isnan(rows["reward"].to_list()[1])
    assert rows["b"].isna().all()
    assert rows["b"].dtype == "float64"
    write_shard(folder, 6, [("newest", 1.0)])
    assert run.completions().loc[0, "completion"] == "newest"
    assert run.completions(-2).loc[0, "completion"] == "first"
    with pytest.raises(RunError, match=r"no completions of step 4; there are steps 1 to 3, 5 to 6"):
        run.completions(4)
    with pytest.raises(RunError, match="no completions of step 'first'; there are steps 1"):
        run.completions("first")  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"no summary yet, it is stopped .*\.resume\(\)"):
        _ = run.summary
    with pytest.raises(RunError, match="it is stopped"):
        _ = run.model
    assert repr(run).splitlines()[-1].endswith(".resume()")
    with claimed(folder):
        assert run.state == "training (rl step 3 of 10)"


def test_steps_of_stages_follow_one_another(tmp_path: Path) -> None:
    later = rl("late", model={"path": "stage:early"})
    folder = made(tmp_path / "run", [rl("early"), later])
    write_steps(folder / "early", [1.0, 2.0])
    write_steps(folder / "late", [3.0, 4.0, 5.0])
    write_shard(folder / "early", 1, [("of early", 1.0)])
    run = grpo.load_run(folder)
    assert run.metrics.loc[("late", 2), "reward"] == 4.0
    assert run.completions(1, stage="early").loc[0, "completion"] == "of early"
    with pytest.raises(RunError, match="of step 1 of stage 'late'; it has none of any step"):
        run.completions(1)
    axes = run.plot("reward").axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert axes.lines[0].get_ydata().tolist() == [1, 2, 3, 4, 5]
    assert [text.get_text().strip() for text in axes.texts] == ["early", "late"]


def test_a_plot_has_evaluations_with_their_intervals(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", [rl()])
    write_steps(folder, [1.0, 3.0, 5.0, 7.0])
    (folder / "eval").mkdir()
    for name, values in {"before": [0.0, 1.0], "step_000002": [1.0, 1.0]}.items():
        lines = [
            {"mode": mode, "task": f"t{i}", "cluster": f"t{i}", "sample": 0, "prompt": "p"}
            | {"completion": "c", "answer": None, "tokens": 4 + i, "finish": "stop", "right": {}}
            | {"value": value, "status": "scored", "parts": {"a": value}}
            for mode in ("greedy", "sample")
            for i, value in enumerate(values)
        ]
        (folder / "eval" / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    run = grpo.load_run(folder)
    figure = run.plot("reward", smooth=2)
    raw, mean = figure.axes[0].lines[:2]
    assert raw.get_ydata().tolist() == [1, 3, 5, 7]
    assert mean.get_ydata().tolist() == [1, 2, 4, 6]
    points = [bars.lines[0].get_xydata()[0].tolist() for bars in figure.axes[0].containers]
    assert points == [[0, 0.5], [2, 1.0]]
    low, high = figure.axes[0].containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == (0.0, 1.0)  # of two tasks, 0 and 1: whatever is drawn, that is the range
    plain = run.plot("reward").axes[0]
    assert plain.lines[0].get_ydata().tolist() == [1, 3, 5, 7]
    both = grpo.plot([run, run], "reward", "grad_norm")
    assert [panel.get_title() for panel in both.axes] == ["reward", "grad_norm"]
    assert len(both.axes[1].get_legend().get_texts()) == 2
    with pytest.raises(RunError, match=r"'rewrd'\. Did you mean 'reward'"):
        run.plot("rewrd")
    with pytest.raises(RunError, match="smooth = 0"):
        run.plot(smooth=0)


def test_a_plot_shows_itself_and_leaves_pyplot_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", [rl()])
    with pytest.raises(RunError, match="no steps to plot"):
        grpo.load_run(folder).plot()
    write_steps(folder, [1.0, 2.0])
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = pyplot.get_fignums() if pyplot else []
    figure = grpo.load_run(folder).plot()
    figure.axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:.1f} points")
    figure.axes[0].axhline(1.5, color="black", label="half").axes.legend(title="of mine")
    figure.axes[0].set_ylabel("mine", color="red")
    white = saved(figure)
    clear = pixels(figure._repr_png_())  # type: ignore[attr-defined]
    assert clear[0, 0, 3] == 0
    strong = clear[clear[..., 3] == 255][:, :3].astype(int)
    assert (strong.max(axis=1) - strong.min(axis=1) > 60).any()  # curves keep their colors
    assert strong.max(axis=1).min() >= 100  # nothing black is left
    assert saved(figure) == white
    assert pixels(white)[0, 0].tolist() == [255, 255, 255, 255]
    assert (pyplot.get_fignums() if pyplot else []) == before
    assert ("matplotlib.pyplot" in sys.modules) == bool(pyplot)


def saved(figure: Any) -> bytes:
    """What `savefig` writes."""
    data = io.BytesIO()
    figure.savefig(data)
    return data.getvalue()


def pixels(png: bytes) -> Any:
    """Height, width, RGBA from 0 to 255."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


class Tags(html.parser.HTMLParser):
    """Which tags a page has, whether each is closed, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag not in ("br", "img", "wbr") and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_card_escapes_what_a_model_wrote(tmp_path: Path) -> None:
    folder = made(tmp_path / "run<b>", [rl()])
    write_steps(folder, [0.0, 1.0, 0.5])
    write_shard(folder, 3, [("low", -1.0), (HOSTILE, 2.0), ("second", 1.0), ("none", None)])
    run = grpo.load_run(folder)
    page = Tags(run._repr_html_())
    assert page.open == []
    assert "script" not in page.names
    assert page.names.count("img") == 1
    assert HOSTILE.replace("\x07", "\ufffd").replace("\ud800", "\ufffd") in page.text
    shown = page.text.partition("worst")[2]
    assert shown.index("alert(1)") < shown.index("=second") < shown.index("=low")
    assert "none" not in shown
    card = run._repr_html_()
    card.encode()
    assert "mathjax_ignore" in card
    assert "://" not in card
    curve = unquote(card.partition("data:image/svg+xml,")[2].partition('"')[0])
    assert curve.startswith("<svg")
    points = curve.partition('points="')[2].partition('"')[0].split()
    assert [point.partition(",")[2] for point in points] == ["86.0", "4.0", "45.0"]
    whole = run.completions()._repr_html_()
    assert "&lt;script&gt;" in whole
    assert "<script" not in whole
    whole.encode()


def test_scores_are_colored_by_value_and_names_are_escaped() -> None:
    rows = frame_of(
        [
            {"completion": "a", "reward": 2.0, "<i>": 0.5, "advantage": -1.0, "tokens": 3},
            {"completion": "<b>", "reward": 1.0, "<i>": 0.5, "advantage": 0.5, "tokens": 9},
            {"completion": "c", "reward": None, "<i>": 0.5, "advantage": None, "tokens": 1},
        ],
        ["reward", "<i>", "advantage"],
    )
    page = rows._repr_html_()
    assert "&lt;i&gt;" in page
    assert "&lt;b&gt;" in page
    assert not {"b", "i", "script"} & set(Tags(page).names)
    colors = re.findall(r"rgba\(([\d,]+),([\d.]+)\)\">([^<]*)<", page)
    assert colors == [
        (BLUE, "0.50", "2"),
        (BLUE, "0.00", "0.5"),  # equal scores say nothing
        (ORANGE, "0.50", "-1"),
        (BLUE, "0.00", "1"),
        (BLUE, "0.00", "0.5"),
        (BLUE, "0.25", "0.5"),
        (BLUE, "0.00", "0.5"),
    ]
    assert page.count("NaN") == 2
    part = rows.set_index("completion")[["reward"]].iloc[:2]
    assert re.findall(r"rgba\(([\d,]+),([\d.]+)", part._repr_html_()) == [
        (BLUE, "0.50"),
        (BLUE, "0.00"),
    ]
    assert not {"b"} & set(Tags(part._repr_html_()).names)
    assert "rgba" not in Rows({"completion": ["a"], "reward": [1.0]})._repr_html_()
    assert not {"b"} & set(Tags(pandas.concat([rows, rows], axis=1)._repr_html_()).names)


def test_any_form_of_a_frame_is_escaped_and_shown() -> None:
    evil = "<img src=x onerror=alert(1)>"
    frame = Rows({("<i>A</i>", "x&y"): [evil], ("c", 1): ["<i>"]}, index=pandas.Index([evil]))
    twice = pandas.concat([frame["c"], frame["c"]], axis=1)
    for rows in (frame, frame.T, twice, frame.reset_index(), frame.iloc[:0], frame.iloc[:, :0]):
        assert not {"img", "i"} & set(Tags(Rows(rows)._repr_html_()).names)
    page = Tags(Rows({"completion": ["a b " + "<" * 100]})._repr_html_())
    assert page.names.count("wbr") == 3  # before and in the long word
    assert "a b " + "<" * 100 in page.text
    scores = frame_of([{"reward": 1.0}, {"reward": None}, {"reward": float("inf")}], ["reward"])
    for rows in (scores, scores.convert_dtypes(), scores.head(1).astype(int), scores.astype(bool)):
        assert "rgba" in rows._repr_html_()
        assert "nan," not in rows._repr_html_()
        assert ",nan" not in rows._repr_html_()


def test_frames_show_scores_in_a_terminal_and_whole_texts_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = "a long text " * 40
    rows = Rows({"prompt": ["2+2="] * 2, "completion": [long, "b"], "reward": [0.5, float("nan")]})
    lines = repr(rows).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].split() == ["prompt", "completion", "reward"]
    assert len(lines) == 3
    assert lines[1].count("a long text") >= 6  # what the prompt does not need, the completion has
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, repr(rows).splitlines())) <= 60
    assert long.strip() in rows._repr_html_()
    assert isinstance(rows.head(1), Rows)
    assert isinstance(pickle.loads(pickle.dumps(rows)), Rows)
    pandas.testing.assert_frame_equal(pandas.DataFrame(rows), rows, check_frame_type=False)
    assert repr(Rows([])).startswith("Empty")


def test_a_real_run_from_start_to_saved_model(tmp_path: Path) -> None:
    def short(completions: list[str], **_: Any) -> list[float]:
        return [-len(text) / 100 for text in completions]

    run = grpo.train(
        model=BASE,
        dataset=[{"prompt": f"{number:016b}="} for number in range(24)],
        rewards=[short],
        max_steps=2,
        num_generations=4,
        prompts_per_step=4,
        max_completion_length=24,
        eval={"num_tasks": 2, "num_samples": 2, "steps": 1},
    )
    before, after = (run.summary[when]["rewards"]["short"]["mean"] for when in ("before", "after"))
    assert f"short: mean {before:.3f} -> {after:.3f}" in repr(run)
    console = Console(width=100, file=io.StringIO())
    console.print(run)
    assert "difference [95% interval]" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "difference [95% interval]" in run._repr_html_()
    points = run.plot("rewards/short/mean").axes[0].containers
    drawn = {bars.lines[0].get_xydata()[0][0]: bars.lines[0].get_xydata()[0][1] for bars in points}
    middle = run.summary["during"]["step_000001"]["rewards"]["short"]["mean"]
    assert drawn == {0: before, 1: middle, 2: after}
    rows = run.completions(step=1)
    assert rows["short"].to_list() == [-len(text) / 100 for text in rows["completion"]]
    again = grpo.score(rewards=[short], dataset=rows)
    assert again["short"].to_list() == rows["short"].to_list()
    assert list(again.columns)[-2:] == ["short", "status"]
    assert "short" not in list(again.columns)[:-2]

    # The model it left: the same from the run, its saved folder and memory.
    saved = run.save(tmp_path / "saved")
    with pytest.raises(RunError, match="not empty"):
        run.save(saved)
    prompts = [f"{number:016b}=" for number in range(40)]
    ways = [run, str(saved), AutoModelForCausalLM.from_pretrained(saved)]
    found = [grpo.generate(model=w, prompts=prompts, max_completion_length=24) for w in ways]
    assert found[0]["prompt"].to_list() == prompts  # all of them, none held out, in order
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert run.generate(prompts).equals(found[0])  # its own length, which fits its model
    assert run.model is run.model


def test_a_model_in_memory_samples_with_its_weights_and_stays_as_it_is() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    model.train()
    ask: dict[str, Any] = {"prompts": ["0110100110010110="], "max_completion_length": 24}
    first = grpo.generate(model=model, n=3, **ask)
    assert len(first) == 3
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (
        grpo.generate(model=model, n=3, seed=1, **ask)["logprob"].tolist()
        != first["logprob"].tolist()
    )
    model.model.norm.weight.data.mul_(1e-7)  # logits of nearly 0
    flat = grpo.generate(model=model, **ask)
    each = -np.log(model.config.vocab_size)  # all tokens are equally likely
    assert flat["logprob"][0] == pytest.approx(flat["tokens"][0] * each, rel=1e-5)


def test_greedy_is_one_completion_of_each_prompt_in_every_form() -> None:
    text = "0110100110010110="
    ask: dict[str, Any] = {"model": BASE, "max_completion_length": 24, "greedy": True}
    one = grpo.generate(prompts=text, **ask)
    assert one["completion"][0] == grpo.generate(prompts=[text], seed=9, **ask)["completion"][0]
    rows = grpo.generate(prompts=[{"prompt": text, "answer": "0", "level": 3}] * 2, **ask)
    assert rows[["answer", "level"]].to_numpy().tolist() == [["0", 3], ["0", 3]]
    assert rows["completion"].to_list() == [one["completion"][0]] * 2
    with pytest.raises(grpo.GrpoError, match=r"n = 2: .* with greedy=True only 1"):
        grpo.generate(prompts=[text], n=2, **ask)
    with pytest.raises(grpo.GrpoError, match="at least one"):
        grpo.generate(prompts=[], **ask)


def test_score_gives_a_column_for_each_reward(tmp_path: Path) -> None:
    rows = [
        {"prompt": "2+2?", "completion": "<answer>4</answer>", "answer": "4", "bonus": 3},
        {"prompt": "2+2?", "completion": "<answer>5</answer>", "answer": "4", "bonus": 5},
        {"prompt": "2+2?", "completion": "<answer>5</answer>", "answer": None, "bonus": 7},
    ]

    def bonus_of(completions: list[str], bonus: list[int], **_: Any) -> list[float]:
        return [float(b) for b in bonus]

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for dataset in (rows, pandas.DataFrame(rows), str(file), file):
        found = grpo.score(rewards=["accuracy", bonus_of], dataset=dataset)
        assert found["accuracy"].to_list()[:2] == [1.0, 0.0]
        assert np.isnan(found["accuracy"].to_list()[2])
        assert found["bonus_of"].to_list() == [3.0, 5.0, 7.0]
        assert found["status"].to_list()[:2] == ["scored", "scored"]
        assert found["status"][2] == "accuracy: not_applicable (answer|solution is empty)"
        assert found["bonus"].to_list() == [3, 5, 7]
    values = [row["value"] for row in score_file("accuracy", file)]
    assert values == [1.0, 0.0, None]
    with pytest.raises(grpo.GrpoError, match="row 2 of dataset: column 'completion'"):
        grpo.score(rewards=["accuracy"], dataset=[rows[0], {"prompt": "x", "answer": "4"}])
    with pytest.raises(grpo.GrpoError, match="'accuracy' twice"):
        grpo.score(rewards=["accuracy", "accuracy"], dataset=rows)
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        grpo.score(rewards=[lambda completions, **_: 1 / 0], dataset=rows)
