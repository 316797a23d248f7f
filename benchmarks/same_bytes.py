"""Does this tree train the same bytes as another commit does?

    python benchmarks/same_bytes.py BASE [OTHER] [--whole] [--cache FOLDER] [--only RUN …]

Two states of the code, one seed: no change that only moves or renames may change a number. (Whether
*one* state gives the same model every time it is asked is another question: same_bits.py.) BASE is
checked out beside this tree, and OTHER too where it is named in this tree's place. Both run the
recipes of same_bytes_recipes.py, by the command line alone: the one address that outlives a move.

* demo: the recipe of `make demo`, shortened, on two threads
* pipeline: every kind of stage, most of them from what an earlier one left
* steps: two optimizer steps with every loss and every advantage, then one setting at a time
* torch alone: the same steps without compiled kernels (GRPO_NATIVE=0)
* with --whole, some minutes more: mini-r1 as it is, and SmolLM2 where models/ has it

Compared are the SHA-256 of every file of weights, adapters and optimizer states, the completions
sampled (ledger, shards, held-out answers, rows kept), and the metrics without clocks. A metric that
has another name and the same values is reported, and is no difference. Where anything differs, a
list says what, and the exit code is 1. From a clean checkout the result goes to
benchmarks/results/same_bytes.json.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from record import ROOT, commit, merge, origin, versions
from same_bytes_recipes import (
    LORA,
    TABLE,
    losses,
    older,
    pipeline,
    settings,
    with_rank,
    without_gdpo,
)

OUT = ROOT / "benchmarks" / "results" / "same_bytes.json"
SMOLLM2 = "models/smollm2-135m-instruct"
MAIN = "import sys; from grpo.cli import main; sys.exit(main())"
PACKAGES = ("torch", "transformers", "trl", "peft", "numpy")
SEED = 7
OLDER = ".older.yaml"  # the ending of a recipe as commits without TABLE spell it
RANK = ".rank.yaml"  # and of one for commits without LORA
SAMPLED = {"data", "eval", "ledger", "shards"}  # folders of rows that were sampled or kept
CLOCKS = ("time", "seconds", "step_time", "tokens_per_second", "learner/tokens_per_second")
CLOCK_PREFIXES = ("time/", "schedule/", "memory/")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe (a name, or a file written for it), what is overridden, and the environment."""

    recipe: str
    overrides: tuple[str, ...] = ()
    stages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Side:
    """One state of the code: where it lies, and its commit, None for a tree that may be edited."""

    name: str
    commit: str | None
    tree: Path
    cache: Path | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run left: {file: SHA-256} and {file of metrics: {metric: its values, in order}}."""

    files: dict[str, str]
    metrics: dict[str, dict[str, list[Any]]]


def main() -> None:
    """Command line."""
    arguments = parse()
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="same-bytes-") as name:
        folder = Path(name)
        base = git("rev-parse", f"{arguments.base}^{{commit}}")
        other = arguments.other and git("rev-parse", f"{arguments.other}^{{commit}}")
        both_new = all(git("ls-tree", side, TABLE) for side in (base, other or "HEAD"))
        wanted = runs(folder, arguments.whole, both_new)
        wanted = {key: wanted[key] for key in arguments.only or wanted}
        with checked_out(base, folder) as old, checked_out(other, folder) as new:
            sides = [
                Side(name="base", commit=base, tree=old, cache=arguments.cache),
                Side(name="this", commit=other, tree=new, cache=arguments.cache),
            ]
            before, after = measure(sides, wanted, folder)
    told = {name: differences(before[name], after[name]) for name in wanted}
    found = {
        name: [line for line in lines if not line.startswith("renamed")]
        for name, lines in told.items()
    }
    for name, lines in told.items():
        facts = after[name]
        count = sum(map(len, facts.metrics.values()))
        verdict = "OTHER BYTES" if found[name] else "the same bytes"
        print(f"{name}: {verdict} ({len(facts.files)} files, {count} metrics)")
        for line in lines:
            print(f"  {line}")
    if not (arguments.only or "uncommitted" in commit()):
        sides = [name[:10] for name in (base, other) if name]
        write(sides, wanted, after, found, time.time() - started)
    sys.exit(any(found.values()))


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("other", nargs="?", help="a commit in place of this tree")
    parser.add_argument("--whole", action="store_true", help="mini-r1 and SmolLM2 too (minutes)")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="of the runs above")
    parser.add_argument("--cache", type=Path, help="folder that keeps what commits left, by hash")
    return parser.parse_args()


def runs(folder: Path, whole: bool, both_new: bool) -> dict[str, Run]:
    """name -> run; their own recipes are written to `folder`. both_new: both sides have TABLE."""
    each = losses() if both_new else without_gdpo(losses())
    short = ("learner.max_steps=5", "eval.num_tasks=16", "eval.num_samples=2")
    found = {
        "demo": Run(recipe="parity-r1-zero", overrides=short, threads=2),
        "pipeline": Run(recipe="pipeline", stages=pipeline()),
        "steps": Run(recipe="steps", stages=[*each, *settings()]),
        "torch alone": Run(
            recipe="steps", stages=[*each[::3], *settings()], env={"GRPO_NATIVE": "0"}
        ),
    }
    if whole:
        # Rows that are mixed in are drawn by their path: one file for both sides.
        found["mini-r1"] = Run(recipe=str(ROOT / "recipes" / "mini-r1.yaml"))
        if (ROOT / SMOLLM2).exists():
            few = ("learner.max_steps=2", "rollout.prompts_per_step=4", "eval.num_tasks=4")
            found["smollm2"] = Run(recipe="smollm2-multiplication", overrides=few, threads=2)
    return {name: written(run, folder / f"{name}.yaml") for name, run in found.items()}


def written(run: Run, file: Path) -> Run:
    """The run with its own recipe as a file, where it has one; JSON is YAML."""
    if not run.stages:
        return run
    ranked = with_rank(run.stages)
    for stages, suffix in ((run.stages, ".yaml"), (ranked, RANK), (older(ranked), OLDER)):
        content = json.dumps({"name": run.recipe, "stages": stages}, indent=1)
        file.with_suffix(suffix).write_text(content)
    return Run(**{**vars(run), "recipe": str(file)})


def measure(
    sides: Sequence[Side], wanted: Mapping[str, Run], folder: Path
) -> list[dict[str, Facts]]:
    """{run: its facts} of every side, all at once on as many cores as there are."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            name: [pool.submit(known, side, run, folder / side.name / name) for side in sides]
            for name, run in wanted.items()
        }
        done = {name: [job.result() for job in each] for name, each in jobs.items()}
    return [{name: each[i] for name, each in done.items()} for i in range(len(sides))]


def known(side: Side, run: Run, folder: Path) -> Facts:
    """The facts of a run, taken from the cache where that has them of this commit."""
    if side.cache is None or side.commit is None:
        return facts(trained(side.tree, run, folder))
    said = json.dumps(
        [
            json.dumps(run.stages, sort_keys=True) if run.stages else run.recipe,
            run.overrides,
            dict(run.env),
            run.threads,
            versions(PACKAGES),
        ]
    )
    file = side.cache / f"{side.commit}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"
    if not file.exists():
        found = facts(trained(side.tree, run, folder))
        side.cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(found)))
    return Facts(**json.loads(file.read_text()))


def trained(tree: Path, run: Run, folder: Path) -> Path:
    """Run a recipe with the code of `tree`, in a process of its own; the run's folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GRPO_")}
    env = {**kept, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    where = [sys.executable, "-c", "import grpo; print(grpo.__file__)"]
    file = subprocess.run(where, cwd=tree, env=env, capture_output=True, text=True).stdout
    if not Path(file.strip()).is_relative_to(tree):
        raise SystemExit(f"the code of {tree} was asked for, and {file.strip()} would have run")
    recipe = run.recipe
    if run.stages and not (tree / TABLE).exists():
        recipe = str(Path(recipe).with_suffix(OLDER))
    elif run.stages and not (tree / LORA).exists():
        recipe = str(Path(recipe).with_suffix(RANK))
    command = [sys.executable, "-c", MAIN, "train", recipe, *run.overrides]
    command += [f"run.seed={SEED}", f"run.threads={run.threads}", f"run.dir={folder}"]
    done = subprocess.run(command, cwd=tree, env={**env, **run.env}, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode} in {tree}:\n{said}")
    return folder


def facts(run: Path) -> Facts:
    """Everything that a run leaves and no clock decides."""
    files: dict[str, str] = {}
    metrics: dict[str, dict[str, list[Any]]] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.name == "metrics.jsonl":
            metrics[name] = columns(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.parent.name in SAMPLED and path.name.endswith((".jsonl", ".jsonl.gz")):
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            files[name] = hashlib.sha256(content).hexdigest()
    return Facts(files=files, metrics=metrics)


def columns(text: str) -> dict[str, list[Any]]:
    """{metric: its value in every line, None where it has none}, without those of clocks."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    names = dict.fromkeys(name for line in lines for name in line)
    return {
        name: [line.get(name) for line in lines]
        for name in names
        if name not in CLOCKS and not name.startswith(CLOCK_PREFIXES)
    }


def differences(base: Facts, this: Facts) -> list[str]:
    """A line for everything that is not equal; "renamed …" for a metric with another name."""
    said = list(unequal(base.files, this.files))
    for file in sorted(base.metrics.keys() | this.metrics.keys()):
        old, new = (dict(side.metrics.get(file, {})) for side in (base, this))
        for gone in [name for name in old if name not in new]:
            same = next((n for n in new if n not in old and new[n] == old[gone]), None)
            if same is not None:
                said.append(f"renamed: {gone} is {same}")
                del old[gone], new[same]
        said += [f"{file}: {line}" for line in unequal(old, new)]
    return list(dict.fromkeys(said))


def unequal(base: Mapping[str, Any], this: Mapping[str, Any]) -> Iterator[str]:
    """What one side alone has, and what both have and is not the same."""
    for name in sorted(base.keys() | this.keys()):
        if name not in this:
            yield f"{name} is only in the base"
        elif name not in base:
            yield f"{name} is new"
        elif base[name] != this[name]:
            yield f"{name}: {shown(base[name])} became {shown(this[name])}"


def shown(value: Any) -> str:
    """A hash, or a metric's values, in few characters."""
    text = value[:10] if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 60 else f"{text[:60]} …"


def write(
    commits: Sequence[str],
    wanted: Mapping[str, Run],
    after: Mapping[str, Facts],
    found: Mapping[str, Sequence[str]],
    seconds: float,
) -> None:
    """Merge the result into the results file, by what was compared."""
    result = {
        name: {
            "same": not lines,
            "differs": list(lines),
            "files": len(after[name].files),
            "metrics": sum(map(len, after[name].metrics.values())),
        }
        for name, lines in found.items()
    }
    command = f"python benchmarks/same_bytes.py {' '.join(commits)}"
    command += " --whole" if "mini-r1" in wanted else ""
    merge(OUT, "..".join(commits), {"runs": result}, origin(command, seconds, versions(PACKAGES)))


@contextmanager
def checked_out(of: str | None, folder: Path) -> Iterator[Path]:
    """A commit as a working tree of its own while it is needed; this tree where it is None."""
    if of is None:
        yield ROOT
        return
    tree = folder / f"tree-{of[:10]}"
    git("worktree", "add", "--quiet", "--detach", str(tree), of)
    try:
        if (ROOT / SMOLLM2).exists() and not (tree / "models").exists():
            (tree / "models").symlink_to((ROOT / "models").resolve())
        yield tree
    finally:
        git("worktree", "remove", "--force", str(tree))
        shutil.rmtree(tree, ignore_errors=True)


def git(*arguments: str) -> str:
    """What git says, from the root of this checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
