"""The R1 recipe and its distillation on tiny models, several seeds; the tables of docs/r1.md.

    python benchmarks/bench_r1.py r1 [--seeds 0 1 2] [--runs runs]
    python benchmarks/bench_r1.py distill      the models that r1 left are the teachers
    python benchmarks/bench_r1.py rows         the student on more cold-start rows than mini-r1 has
    python benchmarks/bench_r1.py table        no run: tables and figure from the JSON files

Writes benchmarks/results/mini_r1.json and mini_distill.json, each as soon as it can with the seeds
that are there. Runs that are finished already are read, not repeated. Beside `grpo train mini-r1`,
`r1` trains two models per seed that its recipe has not: `plain` is `dev` without the language
reward, and `consistent` is `zero` with it. That is how R1's article finds what the reward costs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cold_start import ENGLISH, rows
from r1_page import write_page
from record import ROOT, merge, origin, versions

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict, load, resolved
from grpo.config.schema import Recipe

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "trl")
KEPT = ("seed", "stage", "result", "seconds", "steps", "rows", "tokens_trained", "loss", "dropped")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("r1", "distill", "rows", "table"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    if arguments.what != "table":
        began = time.perf_counter()
        seeds = {str(seed): SEED[arguments.what](seed, arguments.runs) for seed in arguments.seeds}
        words = " ".join(map(str, arguments.seeds))
        made = origin(
            f"python benchmarks/bench_r1.py {arguments.what} --seeds {words}",
            time.perf_counter() - began,
            versions(PACKAGES),
        )
        if arguments.what == "rows":
            merge(RESULTS / "mini_distill.json", "cold_start_rows", {"seeds": seeds}, made)
        else:
            found = {"seeds": seeds, "bars": BARS[arguments.what](seeds)}
            merge(RESULTS / f"mini_{arguments.what}.json", "results", found, made)
    write_page(RESULTS, ROOT / "docs")


def r1_seed(seed: int, runs: Path) -> dict[str, Any]:
    """Everything of one seed: stages, tables of models, and the arms about the language reward."""
    folder = (runs / f"mini-r1-seed{seed}").resolve()
    finished(load("mini-r1", [f"run.seed={seed}", f"run.dir={folder}"]), folder)
    arms = folder.with_name(f"mini-r1-language-seed{seed}")
    finished(language_arms(folder, arms, seed), arms)
    return {
        **stages(folder),
        "reasoning": models(folder / "table"),
        "general": models(folder / "general"),
        "language_reward": models(arms / "table"),
        "temperature_1": at_temperature_1(folder, ("zero", "dev"))
        | at_temperature_1(arms, ("consistent", "plain")),
    }


def distill_seed(seed: int, runs: Path) -> dict[str, Any]:
    """Student, its arms and their tokens, of one seed."""
    teacher = (runs / f"mini-r1-seed{seed}" / "r1" / "model").resolve()
    folder = (runs / f"mini-distill-seed{seed}").resolve()
    paths = [f"{stage}.teacher.path={teacher}" for stage in ("distilled", "shuffled")]
    recipe = load("mini-distill", [f"run.seed={seed}", f"run.dir={folder}", *paths])
    finished(recipe, folder)
    return {**stages(folder), "models": models(folder / "table")}


def rows_seed(seed: int, runs: Path) -> dict[str, Any]:
    """The finished student on 16 and on 32 cold-start rows, with the tokens of its other arms."""
    home = (runs / f"mini-distill-rows-seed{seed}").resolve()
    tree = resolved(load("mini-distill", [f"run.seed={seed}", f"run.dir={home}"]))
    by_name = {stage["name"]: stage for stage in tree["stages"]}
    student = (runs / f"mini-distill-seed{seed}" / "student" / "model").resolve()
    home.mkdir(exist_ok=True)
    arms: list[dict[str, Any]] = []
    for count in (16, 32):
        path = home / f"{count}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(ENGLISH, count)))
        data = {**by_name["cold"]["data"], "path": str(path)}
        model = {**by_name["cold"]["model"], "path": str(student)}
        arms.append({**by_name["cold"], "name": f"rows-{count}", "data": data, "model": model})
    table = {**by_name["table"], "models": [f"stage:{arm['name']}" for arm in arms], "baseline": ""}
    finished(from_dict({**tree, "name": "mini-distill-rows", "stages": [*arms, table]}), home)
    return {**stages(home), "models": models(home / "table")}


def language_arms(folder: Path, home: Path, seed: int) -> Recipe:
    """`plain`, `consistent` and their table with `dev` and `zero` of a finished run."""
    tree = resolved(load("mini-r1", [f"run.seed={seed}", f"run.dir={home}"]))
    by_name = {stage["name"]: stage for stage in tree["stages"]}

    def arm(name: str, of: str, base: str, rewards: str) -> dict[str, Any]:
        model = {**by_name[of]["model"], "path": str(folder / base / "model")}
        rewarded = by_name[rewards]["rewards"]
        return {**by_name[of], "name": name, "model": model, "rewards": rewarded}

    table = by_name["table"]
    earlier = {name: str(folder / name / "model") for name in ("zero", "dev")}
    table["models"] = [earlier["zero"], "stage:consistent", earlier["dev"], "stage:plain"]
    table["baseline"] = earlier["zero"]
    tree["name"] = "mini-r1-language"
    tree["stages"] = [
        arm("consistent", "zero", "base", "dev"),
        arm("plain", "dev", "cold", "zero"),
        table,
    ]
    return from_dict(tree)


def finished(recipe: Recipe, folder: Path) -> None:
    """Run, resume or leave alone, as `folder` has it."""
    if (folder / "summary.json").is_file():
        return
    if (folder / "resolved.json").is_file():
        resume_run(folder)
    else:
        train_recipe(recipe)


def stages(folder: Path) -> dict[str, Any]:
    """What each stage of a run says of itself, with the run's commit."""
    names = [
        stage["name"] for stage in json.loads((folder / "resolved.json").read_text())["stages"]
    ]
    found = {name: json.loads((folder / name / "summary.json").read_text()) for name in names}
    shown = {
        name: {key: summary[key] for key in KEPT if key in summary}
        | {key: summary[key]["pass1"] for key in ("before", "after") if key in summary}
        | {key: summary[key] for key in ("parameters",) if key in summary}
        for name, summary in found.items()
    }
    commit = json.loads((folder / "provenance.json").read_text())["commit"]
    return {"commit": commit, "stages": shown}


def models(folder: Path) -> dict[str, Any]:
    """The rows of an eval stage's table: {model: {heading: [value, low, high] or a number}}."""
    summary = json.loads((folder / "summary.json").read_text())
    return {"baseline": summary["baseline"], "models": summary["models"]}


def at_temperature_1(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What rl stages measured of themselves at their end, where sampling is not sharpened."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        after = json.loads((folder / name / "summary.json").read_text())["after"]
        found[name] = {
            heading: [after["rewards"][heading]["mean"], *after["rewards"][heading]["mean_ci"]]
            for heading in ("accuracy", "language_consistency", "format")
        }
    return found


# Bars


def r1_bars(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The bars of the R1 recipe, each with what every seed measured."""
    found = [seed["reasoning"]["models"] for seed in seeds.values()]
    share = {
        name: [row[name]["language_consistency"][0] for row in found]
        for name in ("zero", "dev", "r1")
    }
    gap = [row["r1"]["accuracy"][0] - row["zero"]["accuracy"][0] for row in found]
    return {
        "zero mixes: language consistency <= 0.8": bar(share["zero"], max(share["zero"]) <= 0.8),
        "after cold start and RL >= 0.95 (dev)": bar(share["dev"], min(share["dev"]) >= 0.95),
        "at the end >= 0.95 (r1)": bar(share["r1"], min(share["r1"]) >= 0.95),
        "accuracy of r1 - zero >= -0.02": bar(gap, min(gap) >= -0.02),
    }


def distill_bars(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The bars of distillation, each with what every seed measured."""
    found = [seed["models"]["models"] for seed in seeds.values()]
    trained = [seed["stages"] for seed in seeds.values()]
    tokens = [s["cold"]["tokens_trained"] / s["distilled"]["tokens_trained"] for s in trained]
    apart = [row["distilled"]["accuracy"][1] - row["cold"]["accuracy"][2] for row in found]
    control = [row["shuffled"]["accuracy"][0] - row["student"]["accuracy"][0] for row in found]
    return {
        "distilled above cold-start SFT, intervals apart (gap of the ends)": bar(
            apart, min(apart) > 0
        ),
        "tokens trained, cold-start SFT / distilled, within 2%": bar(
            tokens, all(abs(ratio - 1) <= 0.02 for ratio in tokens)
        ),
        "shuffled answers - student's base <= 0.02": bar(control, max(control) <= 0.02),
    }


def bar(measured: Sequence[float], met: bool) -> dict[str, Any]:
    """One bar with the figure of each seed."""
    return {"seeds": [round(value, 4) for value in measured], "met": met}


SEED = {"r1": r1_seed, "distill": distill_seed, "rows": rows_seed}
BARS = {"r1": r1_bars, "distill": distill_bars}

if __name__ == "__main__":
    main()
