"""What becomes of a run whose folder was damaged? Every file of it, damaged in every way.

    python benchmarks/damaged_runs.py [KIND … | random] [--random 200] [--seed 0] [--at-once 2]

A tiny run of each kind is killed (or finished), and its folder copied, damaged and continued, once
for every file and every kind of damage. What may come of it: the bytes of the run that nobody
disturbed, or one sentence that names the file. Written: how often each of these and, by name,
everything else, to benchmarks/results/damaged_runs.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_runs
from record import merge, origin, versions

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "damaged_runs.json"
RANDOM = "random"
LAST = -1  # finished but for the last stage's summary
DONE = 0
# kind of run as in tiny_runs -> how many lines of metrics it had written when it was killed
STATES: dict[str, tuple[str, int]] = {
    "rl": ("rl", 5),
    "rl, finished": ("rl", DONE),
    "rl, best kept": ("rl, best kept", 5),
    "rl, adapter, one step off": ("rl, adapter, one step off", 5),
    "sft": ("sft", 5),
    "pretrain": ("pretrain", 3),
    "reject": ("reject", 2),
    "reject, finished": ("reject", DONE),
    "distill, while learning": ("distill", 8),
    "pretrain, sft, rl": ("pretrain, sft, rl", 15),
    "reject, sft, eval": ("reject, sft, eval", LAST),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One damage: `act` does it in the folder of a run; `names` are what a sentence may name."""

    title: str
    damage: str
    names: tuple[str, ...]
    act: Callable[[Path], None]


def _gone(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff{not json\n" * 20)


def _other_json(path: Path) -> None:
    path.write_text('[{"step": "five", "seal": 7}, null, 1e999]\n')


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside.txt").write_text("something else")


def _unreadable(path: Path) -> None:
    path.chmod(0)


BROKEN = {
    "missing": _gone,
    "empty": _empty,
    "truncated": _cut,
    "zeroed": _zeroed,
    "one bit": _bit,
    "garbage": _garbage,
    "other JSON": _other_json,
    "a folder": _folder,
    **({"unreadable": _unreadable} if os.geteuid() else {}),  # root reads everything
}


def every(run: Path) -> list[Case]:
    """Each file damaged in each way, exchanged with its like, and joined by one that is unknown."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    files = [path.relative_to(run) for path in files]
    found = [
        Case(
            title=f"{name}: {how}",
            damage=how,
            names=(name.name,),
            act=lambda root, n=name, a=act: a(root / n),
        )
        for name in files
        for how, act in BROKEN.items()
    ]
    for name in files:
        like = [other for other in files if other.name == name.name and other != name]
        like += [o for o in files if o.suffix == name.suffix and o != name]
        if like:
            found.append(
                Case(
                    title=f"{name}: exchanged with {like[0]}",
                    damage="exchanged",
                    names=(name.name, like[0].name),
                    act=lambda root, a=name, b=like[0]: _exchange(root / a, root / b),
                )
            )
    folders = sorted({folder for name in files for folder in name.parents})
    for folder in folders:
        for extra in ("extra.json", "model-extra.safetensors", "notes.txt"):
            found.append(
                Case(
                    title=f"{folder / extra}: unknown",
                    damage="unknown file",
                    names=(extra,),
                    act=lambda root, n=folder / extra: (root / n).write_bytes(b"{}") and None,
                )
            )
        if folder != Path("."):
            found.append(
                Case(
                    title=f"{folder}/: missing",
                    damage="folder missing",
                    names=(folder.name,),
                    act=lambda root, n=folder: shutil.rmtree(root / n),
                )
            )
    return found


def at_random(run: Path, number: int, seed: int) -> Case:
    """Damage by a seed: bits, bytes, lengths, or a stretch of another file; of one file or two."""
    rng = random.Random(f"{seed}/{number}")
    files = sorted(path for path in run.rglob("*") if path.is_file())
    files = [path.relative_to(run) for path in files]
    chosen = rng.sample(files, rng.choice((1, 1, 1, 2)))
    names = tuple(name.name for name in chosen)

    def act(root: Path) -> None:
        for name in chosen:
            path = root / name
            content = bytearray(path.read_bytes())
            place = rng.randrange(len(content) + 1)
            match rng.randrange(6):
                case 0:
                    for _ in range(rng.choice((1, 3, 50))):
                        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                case 1:
                    del content[place:]
                case 2:
                    content[place : place + 100] = bytes(len(content[place : place + 100]))
                case 3:
                    content[place:place] = rng.randbytes(rng.choice((1, 64, 4096)))
                case 4:
                    other = (root / rng.choice(files)).read_bytes()
                    content[place:] = other[place:]
                case _:
                    path.unlink()
                    continue
            path.write_bytes(content)

    return Case(title=f"random {number}: {', '.join(names)}", damage="random", names=names, act=act)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A folder to damage copies of, what should come of them, and where to make them."""

    run: Path
    wanted: dict[str, str]
    scratch: Path


def judge(prepared: Prepared, case: Case) -> dict[str, str]:
    """Damage a copy, continue it, and say what came of it."""
    folder = prepared.scratch / f"trial-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared.run, folder)
    case.act(folder)
    how, said = tiny_runs.ended(tiny_runs.resume(folder))
    verdict, why = "bad", f"{how}: {said[-1500:]}"
    if how == "done":
        found = tiny_runs.facts(folder)
        wrong = [n for n in {**prepared.wanted, **found} if found.get(n) != prepared.wanted.get(n)]
        wrong = [name for name in wrong if case.title != f"{name}: unknown"]  # beside the others
        removed = case.damage == "folder missing" and all(
            name.startswith(case.title.partition(":")[0]) and name not in found for name in wrong
        )
        if not wrong or (removed and "was removed" in said):
            verdict, why = ("right, and said" if _named(case, said) else "right"), ""
        else:
            why = f"ended with other bytes: {', '.join(sorted(wrong))}"
    elif how == "refused" and "\n" not in said.strip() and _named(case, said):
        verdict, why = "refused by name", said.strip().replace(str(folder), "RUN")
    shutil.rmtree(folder, ignore_errors=True)
    return {"title": case.title, "damage": case.damage, "verdict": verdict, "why": why}


def _named(case: Case, said: str) -> bool:
    return any(name in said for name in case.names)


def _exchange(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def prepare(place: Path, kind: str) -> Prepared:
    """The damaged run's beginning, and the facts of the whole one."""
    name, lines = STATES[kind]
    stages = tiny_runs.kinds(place)[name]
    whole, run = place / "whole" / kind, place / "runs" / kind
    for folder in (whole, run):
        shutil.rmtree(folder, ignore_errors=True)
    how, said = tiny_runs.ended(tiny_runs.train(stages, whole))
    if how != "done":
        raise SystemExit(f"{kind}: {how}: {said}")
    if lines > 0:
        how, said = tiny_runs.ended(tiny_runs.train_until(stages, run, lines))
        if how != "killed":
            raise SystemExit(f"{kind} was not killed: {how}: {said}")
    else:
        shutil.copytree(whole, run)
    for file in ("summary.json", f"{stages[-1]['name']}/summary.json") if lines == LAST else ():
        (run / file).unlink()
    return Prepared(run=run, wanted=tiny_runs.facts(whole), scratch=place / "trials")


WORK: list[tuple[Prepared, Case]] = []  # inherited by the workers


def _number(number: int) -> dict[str, str]:
    return judge(*WORK[number])


def try_all(cases: list[tuple[Prepared, Case]], at_once: int) -> list[dict[str, str]]:
    """What came of each, several at a time."""
    WORK[:] = cases
    found: list[dict[str, str]] = []
    with multiprocessing.get_context("fork").Pool(at_once) as pool:
        for one in pool.imap(_number, range(len(WORK))):
            found.append(one)
            if one["verdict"] == "bad":
                print(f"  bad: {one['title']}: {one['why']}", flush=True)
    return found


def counts(found: list[dict[str, str]]) -> dict[str, Any]:
    """How often each verdict, by damage, and the bad ones by name."""
    damages: dict[str, Counter[str]] = {}
    for one in found:
        damages.setdefault(one["damage"], Counter())[one["verdict"]] += 1
    return {
        "tried": len(found),
        "verdicts": dict(Counter(one["verdict"] for one in found)),
        "damages": {damage: dict(counter) for damage, counter in damages.items()},
        "refused": sorted({one["why"] for one in found if one["verdict"] == "refused by name"})[:8],
        "bad": [f"{one['title']}: {one['why']}" for one in found if one["verdict"] == "bad"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(STATES))
    parser.add_argument("--random", type=int, default=200, help="random damages over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    bad = 0
    packages = versions(["torch", "transformers", "trl"])
    with tempfile.TemporaryDirectory(prefix="damaged-") as scratch:
        place = Path(scratch)
        how, said = tiny_runs.ended(lambda _: tiny_runs.make_base(place))
        if how != "done":
            raise SystemExit(said)
        tiny_runs.warm(place)
        alone = asked.kinds == [RANDOM]
        kinds = {k: prepare(place, k) for k in (asked.kinds if not alone else ()) or STATES}
        parts = {
            kind: [(prepared, case) for case in every(prepared.run)]
            for kind, prepared in kinds.items()
            if not alone
        }
        names = list(kinds)
        drawn = [kinds[names[number % len(names)]] for number in range(asked.random)]
        if drawn:
            parts[RANDOM] = [(p, at_random(p.run, n, asked.seed)) for n, p in enumerate(drawn)]
        for title, cases in parts.items():
            began = time.perf_counter()
            found = counts(try_all(cases, asked.at_once))
            bad += len(found["bad"])
            command = f"python benchmarks/damaged_runs.py --seed {asked.seed}"
            merge(asked.out, title, found, origin(command, time.perf_counter() - began, packages))
            print(f"{title}: {found['tried']} tried, {found['verdicts']}", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
