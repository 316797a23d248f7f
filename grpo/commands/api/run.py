"""A run in Python: what it measured, what it sampled, the model it left, and how it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grpo.commands.api import cards
from grpo.commands.api.calling import called
from grpo.commands.show import FIRST, read_metrics
from grpo.config.schema import AnyStage, Recipe
from grpo.config.schema.recipe import LEAVES
from grpo.errors import RunError, unknown_name
from grpo.model import pretrained
from grpo.outside.files import durable
from grpo.rundir import claim, ledger
from grpo.rundir.finished import SUMMARY
from grpo.rundir.run_folder import model_path, recipe_of, stage_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from grpo.commands.api.frames import Rows


class Run:
    """A run in a folder, finished or not.

    folder: where it is. given: the Python objects it was started with, by name; a run loaded from
    its folder has none, and `resume` is given them again.
    """

    def __init__(self, folder: str | Path, given: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder).expanduser().resolve()
        self.recipe: Recipe = recipe_of(self.folder)
        self._given = dict(given or {})
        self._loaded: dict[tuple[str, Path], Any] = {}

    # -- what it measured -------------------------------------------------------------------

    @property
    def state(self) -> str:
        """finished, or "training (rl step 7 of 10)", or "stopped (rl step 7 of 10)"."""
        done = self.summaries
        undone = [stage for stage in self.recipe.stages if stage.name not in done]
        if not undone:
            return "finished"
        stage, doing = undone[0], "training" if claim.is_claimed(self.folder) else "stopped"
        steps = self._steps(stage)
        learner: Any = getattr(stage, "learner", stage)
        last = getattr(learner, "max_steps", 0)
        step = int(steps[-1]["step"]) if steps else 0
        return f"{doing} ({stage.name} step {step}{f' of {last}' if last else ''})"

    @property
    def summary(self) -> dict[str, Any]:
        """Figures of the last finished stage: before, after, gain, paired, steps, seconds, model.

        Those of an evaluation are in `models`. Raises RunError where no stage is finished yet.
        """
        found = self.summaries
        if not found:
            raise RunError(f"{self.title} has no summary yet, it is {self.state}; {self._on()}")
        return list(found.values())[-1]

    @property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """stage -> its summary, of all finished stages in order."""
        places = {stage.name: self.place(stage) / SUMMARY for stage in self.recipe.stages}
        return {name: durable.read_json(at) for name, at in places.items() if at.is_file()}

    @property
    def metrics(self) -> DataFrame:
        """One row a training step, by TRL's names of metrics; several stages follow one another.

        The index is the step; a run of several stages has the stage before it. While the run
        trains there are the steps so far.
        """
        import pandas

        frames: dict[str, DataFrame] = {}
        for stage in self.recipe.stages:
            lines = self._steps(stage)
            if lines:
                names = list(dict.fromkeys(name for line in lines for name in line))
                names = sorted(names, key=_rank)
                frames[stage.name] = pandas.DataFrame(lines, columns=names).set_index("step")
        if not frames:
            return pandas.DataFrame(index=pandas.Index([], name="step"))
        if len(self.recipe.stages) == 1:
            return next(iter(frames.values()))
        return pandas.concat(frames, names=["stage", "step"])

    def completions(self, step: int = -1, stage: str = "") -> Rows:
        """Every completion of a training step, a row each, in the order of prompts and samples.

        step: 1 is the first, -1 the last so far. stage: of a run of several; the last rl stage by
        default. Columns: prompt, completion, reward (the weighted sum; NaN: unscored), a column for
        each reward, advantage, status, finish, tokens. Raises RunError for a step that has none.
        """
        from grpo.commands.api.frames import frame_of

        found = self.stage_of("rl", stage)
        place = self.place(found) / "ledger"
        there = sorted(int(file.name[5:11]) for file in place.glob("step_*.jsonl.gz"))
        if isinstance(cast(Any, step), int) and step < 0 and -step <= len(there):
            step = there[step]
        if step not in there:
            of = f" of stage {found.name!r}" if len(self.recipe.stages) > 1 else ""
            have = f"there are steps {_ranges(there)}" if there else "it has none of any step"
            raise RunError(f"{self.title} has no completions of step {step!r}{of}; {have}")
        lines = list(ledger.read(place, step))
        rows = [
            {
                "prompt": line["prompt"],
                "completion": line["completion"],
                "reward": line["value"],
                **line["parts"],
                "advantage": line["advantage"],
                "status": line["status"],
                "finish": line["finish"],
                "tokens": sum(len(segment["ids"]) for segment in line["segments"]),
            }
            for line in lines
        ]
        scores = ["reward", *dict.fromkeys(name for line in lines for name in line["parts"])]
        colored = [*scores, "advantage"]
        return frame_of(rows, colored).astype(dict.fromkeys(scores, "float64"))

    def plot(self, *names: str, smooth: int = 1) -> Figure:
        """Curves of metrics over the steps, one panel each; by default reward, parts and lengths.

        Points with bars are held-out evaluations with their 95% intervals. smooth: steps of a
        running mean, drawn over the raw values; 1 for none. A notebook shows the figure; elsewhere
        `.savefig("reward.png")`. `grpo.plot` compares several runs. Raises RunError for a metric
        that the run does not have.
        """
        from grpo.commands.api.pictures import plot

        return plot(self, *names, smooth=smooth)

    # -- the model it left ------------------------------------------------------------------

    def left_model(self) -> Path:
        """The folder of the model that the run has left. Raises RunError where there is none."""
        if not any(stage.kind in LEAVES["model"] for stage in self.recipe.stages):
            kinds = ", ".join(stage.kind for stage in self.recipe.stages)
            raise RunError(f"{self.title} trains no model (stages: {kinds})")
        try:
            return Path(model_path(str(self.folder)))
        except RunError:
            said = f"{self.title} has no trained model yet, it is {self.state}; {self._on()}"
        raise RunError(said)

    def left_rows(self) -> Path:
        """The folder of the rows that the run has left (reject, distill). Raises RunError."""
        for stage in reversed(self.recipe.stages):
            place = self.place(stage) / "data"
            if stage.kind in LEAVES["data"] and place.is_dir():
                return place
        raise RunError(f"{self.title} has left no rows: only reject and distill do")

    @property
    def model(self) -> PreTrainedModel:
        """The trained model, loaded when it is first asked for."""
        return self._load("model", pretrained.load_model)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that was saved with the model."""
        return self._load("tokenizer", pretrained.tokenizer)

    def save(self, folder: str | Path) -> Path:
        """Copy the trained model with its tokenizer to a new folder; the folder.

        Raises RunError where something is there already.
        """
        place = Path(folder).expanduser().resolve()
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise RunError(f"{str(place)!r} is not empty; name a new folder to save the model in")
        shutil.copytree(self.left_model(), place, dirs_exist_ok=True)
        return place

    # -- going on ---------------------------------------------------------------------------

    def resume(self, *, accept_changes: bool = False, **again: Any) -> Run:
        """Go on from the newest checkpoint to the end, to the same bits; the run.

        A run that was started with Python objects is given them again: rewards=[short],
        dataset=rows. They are compared with those it was started with, functions by their code.
        """
        from grpo.commands.api.going_on import resume

        return resume(self, accept_changes=accept_changes, **again)

    def evaluate(self, dataset: Any = None, **keywords: Any) -> Run:
        """Compare the trained model with the one the run started from; an evaluation, as a Run.

        dataset: rows as in `grpo.train`; by default the run's held-out tasks. rewards and settings
        are the run's where the call names no others.
        """
        from grpo.commands.api.going_on import evaluate_run

        return evaluate_run(self, dataset, **keywords)

    def generate(self, prompts: Any, *, n: int = 1, greedy: bool = False, **settings: Any) -> Rows:
        """Completions of the trained model, sampled as in training; see `grpo.generate`."""
        from grpo.commands.api.sampling import generate

        return generate(model=self, prompts=prompts, n=n, greedy=greedy, **settings)

    # -- looking at it ----------------------------------------------------------------------

    def place(self, stage: AnyStage) -> Path:
        """The folder of a stage."""
        return stage_folder(self.recipe, self.folder, stage.name)

    @property
    def given(self) -> dict[str, Any]:
        """The Python objects it was started with, by name."""
        return dict(self._given)

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"the run {str(self.folder)!r}"

    def __repr__(self) -> str:
        return cards.text(self)

    def __rich__(self) -> Any:
        return cards.terminal(self)

    def _repr_html_(self) -> str:
        return cards.card(self)

    def stage_of(self, kind: str, name: str = "") -> AnyStage:
        """The stage called `name`, or the last one of a kind. Raises RunError."""
        of_kind = {stage.name: stage for stage in self.recipe.stages if stage.kind == kind}
        if not of_kind:
            have = ", ".join(f"{stage.name} ({stage.kind})" for stage in self.recipe.stages)
            raise RunError(f"{self.title} has no stage of kind {kind!r}; it has: {have}")
        if name and name not in of_kind:
            raise RunError(unknown_name("stage", name, of_kind))
        return of_kind[name] if name else list(of_kind.values())[-1]

    def _load(self, what: str, load: Any) -> Any:
        place = self.left_model()
        if (what, place) not in self._loaded:
            self._loaded[what, place] = load(str(place))
        return self._loaded[what, place]

    def _steps(self, stage: AnyStage) -> list[dict[str, Any]]:
        file = self.place(stage) / "metrics.jsonl"
        return read_metrics(file) if file.is_file() else []

    def _on(self) -> str:
        return f"go on with grpo.load_run({str(self.folder)!r}).resume()"


@called
def load_run(folder: str | Path) -> Run:
    """The run in a folder, of whichever program began it. Raises RunError where there is none."""
    if not isinstance(folder, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RunError(f"folder = {folder!r:.60} is of type {type(folder).__name__}, not a path")
    return Run(folder)


def _rank(name: str) -> tuple[int, int]:
    """What people look at first stands first, the clock last; the rest stays in order."""
    if name in FIRST:
        return (0, FIRST.index(name))
    return (3, 0) if name == "time" else (1, 0) if name.startswith("rewards/") else (2, 0)


def _ranges(steps: list[int]) -> str:
    """The steps that there are: "1 to 7, 10"."""
    said: list[str] = []
    for step in steps:
        if said and int(said[-1].rpartition(" ")[2]) == step - 1:
            said[-1] = f"{said[-1].partition(' ')[0]} to {step}"
        else:
            said.append(str(step))
    return ", ".join(said)
