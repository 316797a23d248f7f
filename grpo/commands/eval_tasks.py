"""`grpo eval --tasks`: models on built-in tasks, and on rows from files.

    OUT/<model>/<task>.<template>.jsonl   every completion with its scores
    OUT/results.json                      every figure
    OUT/lm_eval_results.json              the headline figures, as lm-evaluation-harness writes them

Every model gets the same tasks with the same noise, so two models are compared pair by pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.commands.process import prepare_process
from grpo.config.schema import Rollout
from grpo.data.prompts import TEMPLATES, PromptTemplate
from grpo.errors import DataError, RecipeError, RunError, unknown_name
from grpo.errors.printable import redacted
from grpo.evaluation import heldout, tally
from grpo.evaluation.builtin_tasks import EvalTask, Instructed, find_task, open_task
from grpo.evaluation.decontaminate import contaminated, training_rows
from grpo.evaluation.report import lm_eval_results, print_results
from grpo.model import pretrained
from grpo.model.compute_types import check_type, chosen
from grpo.outside.files.durable import write_json
from grpo.outside.terminal.console import Console
from grpo.rewards.compose import RewardSet
from grpo.rewards.extract import final_answer
from grpo.rollout import LOADING
from grpo.rundir.run_folder import model_path
from grpo.stages.bars import bar
from grpo.stages.endings import sampling_of, vocab_size
from grpo.stages.eval import model_names
from grpo.stages.preflight.needed import check_columns
from grpo.stages.preflight.plugs import named_rewards
from grpo.stages.remote_rewards import reward_set
from grpo.stages.wiring import load_engine
from grpo.types import EngineSpec, Prompt, Sampling, TaskSource

Answers = dict[tuple[str, str], list[dict[str, Any]]]  # (task, template) -> lines


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of `grpo eval MODEL --tasks …`; None leaves a setting to the task's row."""

    tasks: Sequence[str]
    data: Mapping[str, str] = field(default_factory=dict[str, str])  # task -> JSONL file
    rewards: Sequence[str] = ()  # in place of those of the tasks
    k: int | None = None
    limit: int | None = None
    max_tokens: int | None = None
    templates: Sequence[str] = ()
    temperature: float = 0.6
    top_p: float = 0.95
    engine: str = "torch"
    engine_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dtype: str = "auto"
    baseline: str | None = None
    against: str | None = None  # JSONL of training rows, for contamination
    out: str | None = None
    seed: int = 0
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Asking:
    """One task through one template, ready to be asked."""

    name: str
    task: EvalTask
    template: str
    prompts: Sequence[Prompt]
    sampling: Sampling
    k: int

    @property
    def length(self) -> int:
        """Tokens of its longest prompt and completion."""
        return max(len(prompt.ids) for prompt in self.prompts) + self.sampling.max_tokens


def evaluate_tasks(model: str, asked: Asked, console: Console | None = None) -> dict[str, Any]:
    """Evaluate `model` (and `asked.baseline`), print the tables, write the files; the results.

    {"models": {name: {task: {template: figures}}}, "differences": [...], "settings": ...}; figures
    are those of `tally.summarize`. Raises GrpoError where an option or a file cannot be used.
    """
    live = console or Console(stderr=True, highlight=False)  # so that the tables can be piped
    console = console or Console(highlight=False)
    tasks = {name: find_task(name, asked.data.get(name), asked.rewards) for name in asked.tasks}
    _check(asked, tasks)
    prepare_process(asked.threads)
    sources = {name: _open(name, task, asked) for name, task in tasks.items()}
    leaks = None if asked.against is None else training_rows(asked.against)
    paths = [model] if asked.baseline is None else [model, asked.baseline]
    names = model_names(paths)
    places = [model_path(path) for path in paths]
    jobs = [_jobs(place, tasks, sources, asked, live) for place in places]  # both can be asked
    out = _made(Path(asked.out or Path("runs") / f"eval-{names[0]}"))
    figures: dict[str, dict[str, Any]] = {name: {} for name in names}
    lines: dict[str, Answers] = {name: {} for name in names}
    for name, place, its in zip(names, places, jobs, strict=True):
        for job, answers in _ask(place, its, asked, out / name, name, live):
            titles = [spec.title for spec in job.task.rewards]
            figure = tally.summarize(answers, titles, asked.seed)
            if leaks is not None:
                figure["contaminated"] = contaminated(job.prompts, leaks)
            figures[name].setdefault(job.name, {})[job.template] = {
                "k": job.k,
                "max_tokens": job.sampling.max_tokens,
                "metric": job.task.metric,
                **figure,
            }
            lines[name][job.name, job.template] = answers
    results = {
        "models": figures,
        "paths": dict(zip(names, paths, strict=True)),
        "differences": _differences(lines, asked.seed),
        "settings": redacted({k: v for k, v in vars(asked).items() if v is not None}),
    }
    write_json(out / "results.json", json.loads(json.dumps(results, default=str)))
    for name in names:
        exported = lm_eval_results(results, name, tasks)
        write_json(out / name / "lm_eval_results.json", exported)
    print_results(results, console)
    console.print(f"every completion and figure: {out}", markup=False, soft_wrap=True)
    return results


def _made(folder: Path) -> Path:
    """The folder, made if it is missing. Raises RunError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"the folder {str(folder)!r} for completions cannot be made: {error.strerror}; "
            "name another with --out"
        ) from error
    return folder


def _check(asked: Asked, tasks: Mapping[str, EvalTask]) -> None:
    for name in asked.data:
        if name not in tasks:
            raise RecipeError(unknown_name("task of --data", name, tasks))
    for template in asked.templates:
        if template not in TEMPLATES:
            raise RecipeError(unknown_name("template", template, TEMPLATES))
    if asked.temperature <= 0:
        raise RecipeError(
            f"--temperature {asked.temperature:g} must be above 0: the greedy answer is always "
            "given beside the samples"
        )
    if asked.engine == "endpoint" and (asked.dtype, asked.threads) != ("auto", 0):
        raise RecipeError(
            "--dtype and --threads say nothing to --engine endpoint, whose server computes as it "
            "was started; leave them out"
        )
    check_type("--dtype", asked.dtype)
    if not 0 < asked.top_p <= 1:
        raise RecipeError(f"--top-p {asked.top_p:g} must be above 0 and at most 1")


def _open(name: str, task: EvalTask, asked: Asked) -> TaskSource:
    try:
        source = open_task(task)
        check_columns(source, "heldout", named_rewards(task.rewards, "rewards"), f"task {name}")
        return source
    except DataError as error:
        if name in asked.data or task.file_args is None:
            raise
        raise DataError(f"{error}. From a file: --data {name}=FILE.jsonl") from error


def _jobs(
    path: str,
    tasks: Mapping[str, EvalTask],
    sources: Mapping[str, TaskSource],
    asked: Asked,
    console: Console,
) -> list[Asking]:
    """Every task with every template, as prompts of this model. Raises RecipeError."""
    pretrained.check_model(path, "MODEL", weights=asked.engine in LOADING)
    tokenizer = pretrained.tokenizer(path, "MODEL")
    room = pretrained.positions(path, "MODEL")
    usual = "chat" if getattr(tokenizer, "chat_template", None) else "r1_zero"
    if asked.engine == "endpoint":
        usual = "raw"  # the server puts its own chat template around the question
    jobs: list[Asking] = []
    for name, task in tasks.items():
        for template in asked.templates or [task.template or usual]:
            source = sources[name]
            if task.instruction and (template == "chat" or asked.engine == "endpoint"):
                source = Instructed(source, task.instruction)
            count = asked.limit or task.limit or source.size("heldout") or 1
            prompts = heldout.prepare(
                source, PromptTemplate(template, tokenizer, vocab_size=vocab_size(path)), count
            )
            longest = max(len(prompt.ids) for prompt in prompts)
            left = task.max_tokens if room is None else room - longest
            length = asked.max_tokens or min(task.max_tokens, left)
            if left < 1 or (room is not None and length > left):
                raise RecipeError(
                    f"{name} with template {template}: --max-tokens {max(1, length)} does not fit: "
                    f"the model {path!r} has {room} positions, and prompts take up to {longest}"
                )
            if asked.max_tokens is None and length < task.max_tokens:
                console.print(
                    f"{name}: {length} tokens a completion, not {task.max_tokens}: the model has "
                    f"{room} positions",
                    markup=False,
                )
            rollout = Rollout(
                temperature=asked.temperature, top_p=asked.top_p, max_completion_length=length
            )
            jobs.append(
                Asking(
                    name=name,
                    task=task,
                    template=template,
                    prompts=prompts,
                    sampling=sampling_of(rollout, tokenizer, path),
                    k=asked.k or task.k,
                )
            )
    return jobs


def _ask(
    path: str, jobs: Sequence[Asking], asked: Asked, out: Path, model: str, console: Console
) -> list[tuple[Asking, list[dict[str, Any]]]]:
    """Each job with its completions, all by one engine."""
    spec = EngineSpec(
        model=path,
        dtype=chosen(asked.dtype),
        max_length=max(job.length for job in jobs),
        seed=asked.seed,
        threads=asked.threads,
    )
    engine = load_engine(asked.engine, asked.engine_args, spec)
    done: list[tuple[Asking, list[dict[str, Any]]]] = []
    with closing(engine):
        for job in jobs:
            file, title = (
                out / f"{job.name}.{job.template}.jsonl",
                f"{model}: {job.name}, {job.template}",
            )
            shown = bar(title, console, remaining=True)
            with shown as progress, closing(reward_set(job.task.rewards)) as rewards:
                judge = heldout.HeldOut(
                    prompts=job.prompts,
                    rewards=rewards,
                    sampling=job.sampling,
                    num_samples=job.k,
                    seed=asked.seed,
                    answer_of=_voter(rewards) if job.task.votes else None,
                )
                judge.evaluate(engine, file, progress)
            console.print(f"{title}: {file}", markup=False)
            done.append((job, heldout.read_lines(file)))
    return done


def _voter(rewards: RewardSet) -> Any:
    """The function that reads a completion's answer, as the strict verifier does."""
    return getattr(rewards.rewards[0][1], "answer_of", None) or final_answer


def _differences(lines: Mapping[str, Answers], seed: int) -> list[dict[str, Any]]:
    """First model minus second, per task, template and reward; [] where there is one model."""
    if len(lines) < 2:
        return []
    (first, mine), (second, theirs) = lines.items()
    found: list[dict[str, Any]] = []
    for task, template in (key for key in mine if key in theirs):
        answers, others = mine[task, template], theirs[task, template]
        for reward in answers[0]["parts"]:
            gap = tally.difference(answers, others, reward, seed)
            if gap is not None:
                key = "pass1" if tally.judged([*answers, *others], reward) else "mean"
                where = {"task": task, "template": template, "reward": reward}
                gained = {"of": [first, second], key: gap[0], "ci": list(gap[1:])}
                found.append(where | gained)
    return found
