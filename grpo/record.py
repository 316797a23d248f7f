"""What a run was started with, kept in its provenance.json and compared whenever it goes on.

    settings   resolved.json as it was written
    process    what decides the bits and is no setting: threads, compiled kernels, ranks, device
    versions   of packages, and what the machine computes with: they may differ, and are said
    stages     of each stage: its rows, and the files that it was given (code, models)
    changes    what was accepted since, each with its time

Settings and process have to be what they were; rows and files too, unless their change is accepted.
The file ends in a hash of itself: where that fails it is damaged, and no input has changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from grpo.errors import RunError
from grpo.identity import DIGEST, REVISION, Rows, changed_files, difference
from grpo.provenance import text_hash

FILE = "provenance.json"
ROWS = "rows"  # folder of the hashes of single rows, by which a change is described
RESTORE = "restore it from a copy, or start a new run from a checkpoint (model.path=FOLDER)"
ACCEPT = "--accept-changes"
# settings that a run may be given anew in its resolved.json: they change no number
FREE = (
    *("run.dir", "run.trackers", "run.save_steps", "run.save_total_limit"),
    *("run.num_samples_logged", "ray.address", "ray.timeout"),
)
# and the length of an rl stage with a constant learning rate, whose steps are the same until then
LENGTH = "learner.max_steps"

# what `process.described` says that is of the latest part of a run, not of its start
CURRENT = ("versions", "commit", "process", "computes")

Tree = dict[str, Any]


def read(folder: Path) -> Tree:
    """The record of the run in `folder`. Raises RunError where it is gone or damaged."""
    path = folder / FILE
    data = read_json(path)
    if data.pop("sha256", None) != _hash(data):
        raise RunError(
            f"{path} is damaged: it is not what this run has written, so nothing says what the run "
            f"was started with; {RESTORE}"
        )
    return data


def write(folder: Path, data: Mapping[str, Any]) -> None:
    """Write the record, whole or not at all."""
    write_json(folder / FILE, {**data, "sha256": _hash(data)})


def read_json(path: Path, advice: str = RESTORE) -> Tree:
    """The object in a file of a run. Raises RunError, with the advice, where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; {advice}") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; {advice}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: it is not JSON ({error}); {advice}") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise RunError(f"{path} is damaged: it holds a {kind}, not an object; {advice}")
    return cast(Tree, found)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write atomically, and so that it stays."""
    aside = path.with_suffix(".tmp")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(json.dumps(data, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def check_settings(record: Tree, now: Tree, folder: Path) -> list[str]:
    """Lines about the settings in resolved.json that were edited and may be; the record has them.

    Raises RunError naming every other one that differs, with both values.
    """
    before, after = (dict(_flat(tree)) for tree in (record["settings"], now))
    names = [name for name in {**before, **after} if _text(before, name) != _text(after, name)]
    said = {n: f"{n} = {_text(after, n)} (was {_text(before, n)})" for n in names}
    may = [name for name in names if _is_free(name, record, before, after)]
    refused = [said[name] for name in names if name not in may]
    if refused:
        many = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise RunError(
            f"{folder / 'resolved.json'} is not what the run was started with: "
            f"{', '.join(refused[:5])}{many}; put it back, or start a new run from a checkpoint "
            f"(model.path=FOLDER). {', '.join(FREE)} may be edited, {LENGTH} where the learning "
            "rate is constant, and a path whose content is the same"
        )
    record["settings"] = now
    return [f"resolved.json: {said[name]}" for name in may]


def check_process(record: Tree, now: Tree) -> list[str]:
    """What of the process is not as it was and cannot be made so: ranks and device."""
    before, after = record.get("process", {}), now["process"]
    return [
        f"{what} = {after[name]} (was {before[name]})"
        for name, what in (("ranks", "learner ranks"), ("device", "device"))
        if name in before and before[name] != after[name]
    ]


def check_versions(record: Tree, now: Tree) -> list[str]:
    """A line on the versions and the machine, where they are not what they were."""
    before, after = _computed_with(record), _computed_with(now)
    told = [
        f"{name} {value} (was {before[name]})"
        for name, value in after.items()
        if before.get(name, value) != value
    ]
    if not told:
        return []
    return [f"{', '.join(told)}: from here on the last bits may be others"]


def _computed_with(record: Tree) -> dict[str, Any]:
    kernels = record.get("process", {}).get("kernels")
    return {
        **record.get("versions", {}),
        **({"the toolkit's commit": record["commit"]} if "commit" in record else {}),
        **record.get("computes", {}),
        **({} if kernels is None else {"compiled kernels": "on" if kernels else "off"}),
    }


def check_inputs(
    folder: Path,
    record: Tree,
    stage: str,
    files: Mapping[str, Tree],
    rows: Mapping[str, Rows],
) -> list[str]:
    """What has changed in the inputs of a stage since it was first met, a phrase each.

    files: setting -> {path, files: name -> digest}. rows: part of the data -> rows.
    """
    known = record.get("stages", {}).get(stage, {})
    changes: list[str] = []
    for part, old in known.get("rows", {}).items():
        now = rows.get(part)
        if now is None and rows:
            changes.append(f"{part} of the data is gone")
        elif now is not None and (old["rows"], old["sha256"]) != (now.size, now.sha256):
            before = _kept_rows(folder, stage, part, old["sha256"])
            what = "they have changed" if before is None else difference(before, now)
            changes.append(f"{now.title}: {what}")
    for setting, old in known.get("files", {}).items():
        now = files.get(setting)
        if now is None and REVISION not in old["files"]:
            changes.append(f"{setting} = {old['path']!r} is gone")
        what = changed_files(old["files"], now["files"]) if now is not None else ""
        if now is not None and what:
            changes.append(f"{setting} = {now['path']!r}: {what}")
    return changes


def keep_inputs(
    folder: Path,
    record: Tree,
    stage: str,
    files: Mapping[str, Tree],
    rows: Mapping[str, Rows],
) -> None:
    """Put the inputs of a stage, in place of those it had, into the record for `write` to take."""
    entry = record.setdefault("stages", {}).setdefault(stage, {})
    entry["files"] = dict(files)
    if not rows:  # not read this time
        return
    kept = {part: {"rows": r.size, "sha256": r.sha256} for part, r in rows.items()}
    if kept != entry.get("rows"):
        (folder / ROWS).mkdir(exist_ok=True)
        digests = {n: base64.b64encode(b"".join(r.digests)).decode() for n, r in rows.items()}
        write_json(folder / ROWS / f"{stage}.json", digests)
    entry["rows"] = kept


def note(record: Tree, lines: Sequence[str]) -> None:
    """Add to the changes of a run what is said of them."""
    time = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    record.setdefault("changes", []).extend({"time": time, "what": line} for line in lines)


def accept(record: Tree, stage: str, changes: Sequence[str]) -> None:
    """Note changes of a stage's inputs that the user has accepted: it samples anew from here on."""
    note(record, changes)
    entry = record.setdefault("stages", {}).setdefault(stage, {})
    entry["accepted"] = entry.get("accepted", 0) + 1


def accepted(folder: Path, stage: str) -> int:
    """How often a change of the inputs of `stage` was accepted; `folder` is the stage's."""
    place = folder if (folder / FILE).is_file() else folder.parent
    if not (place / FILE).is_file():
        return 0
    return read(place).get("stages", {}).get(stage, {}).get("accepted", 0)


def _kept_rows(folder: Path, stage: str, part: str, sha256: str) -> list[bytes] | None:
    """The hashes of single rows, None where the file has not those that the record means."""
    try:
        found = base64.b64decode(read_json(folder / ROWS / f"{stage}.json")[part], validate=True)
    except (RunError, KeyError, TypeError, binascii.Error):
        return None
    digests = [found[i : i + DIGEST] for i in range(0, len(found), DIGEST)]
    return digests if hashlib.sha256(found).hexdigest() == sha256 else None


def _is_free(name: str, record: Tree, before: Tree, after: Tree) -> bool:
    """Whether a setting may be edited between two parts of a run."""
    if name in FREE:
        return True
    where = name.removesuffix(LENGTH)
    if name.endswith(LENGTH) and before.get(f"{where}kind") == "rl":
        return before.get(f"{where}learner.lr_scheduler_type", "constant") == "constant"
    # what was moved keeps its name, and is compared by its content
    old, new = before.get(name), after.get(name)
    if not (isinstance(old, str) and isinstance(new, str) and Path(old).name == Path(new).name):
        return False
    stages = record.get("stages", {})
    many = len(record["settings"].get("stages", [])) > 1
    stage, _, inner = name.partition(".") if many else (next(iter(stages), ""), "", name)
    return inner in stages.get(stage, {}).get("files", {}) or _leads_to_rows(inner)


def _leads_to_rows(setting: str) -> bool:
    last = setting.rpartition(".")[2]
    return setting == "data.path" or (
        setting.startswith("data.args.") and (last == "path" or last.endswith("_path"))
    )


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting; those of one stage alone stand without its name."""
    if isinstance(tree, dict) and not name and isinstance(tree.get("stages"), list):
        rest = {key: value for key, value in tree.items() if key != "stages"}
        yield from _flat(rest)
        stages = cast(list[Any], tree["stages"])
        for index, stage in enumerate(stages):
            title = stage.get("name", index) if isinstance(stage, dict) else index
            yield from _flat(stage, f"{title}." if len(stages) > 1 else ".")
        return
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(cast(list[Any], tree))
        for key, value in items:
            yield from _flat(value, f"{name}{key}." if name != "." else f"{key}.")
        return
    yield name.rstrip("."), tree


def _text(flat: Mapping[str, Any], name: str) -> str:
    return json.dumps(flat[name]) if name in flat else "nothing"


def _hash(data: Mapping[str, Any]) -> str:
    return text_hash(json.dumps(data, sort_keys=True))
