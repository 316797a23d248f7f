"""What a run was started with, kept in its provenance.json and compared whenever it resumes.

    settings   resolved.json as it was written
    process    what decides the bits and is no setting: threads, compiled kernels, ranks, device
    versions   of packages, and what the machine computes with: they may differ, with a notice
    stages     of each stage: its rows, and the files that it was given (code, models)
    changes    what was accepted since, each with its time

Settings and process must be the same, and so must rows and files unless their change is accepted.
The file has a hash of itself, which tells a damaged file from inputs that have changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from grpo.errors import RunError
from grpo.outside.files.durable import RESTORE, Tree, read_json, write_json
from grpo.rundir.identity import DIGEST, REVISION, HashedRows, changed_files, difference
from grpo.rundir.provenance import text_hash

FILE = "provenance.json"
ROWS = "rows"  # folder of the hashes of single rows, by which a change is described
ACCEPT = "--accept-changes"
# Keys of `process.described` that are about the latest part of a run, not its start.
CURRENT = ("versions", "commit", "process", "computes")


def read(folder: Path) -> Tree:
    """The record of the run in `folder`. Raises RunError if it is gone or damaged."""
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


def check_inputs(
    folder: Path,
    record: Tree,
    stage: str,
    files: Mapping[str, Tree],
    rows: Mapping[str, HashedRows],
) -> list[str]:
    """What has changed in the inputs of a stage since its first start, a phrase each.

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
    rows: Mapping[str, HashedRows],
) -> None:
    """Replace the inputs of a stage in `record`; `write` then saves it."""
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
    """Add lines to the changes of a run, with the time."""
    time = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    record.setdefault("changes", []).extend({"time": time, "what": line} for line in lines)


def accept(record: Tree, stage: str, changes: Sequence[str]) -> None:
    """Note changes of a stage's inputs that the user has accepted, so that it samples anew."""
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
    """The hashes of single rows; None if the file does not match the record."""
    try:
        found = base64.b64decode(read_json(folder / ROWS / f"{stage}.json")[part], validate=True)
    except (RunError, KeyError, TypeError, binascii.Error):
        return None
    digests = [found[i : i + DIGEST] for i in range(0, len(found), DIGEST)]
    return digests if hashlib.sha256(found).hexdigest() == sha256 else None


def _hash(data: Mapping[str, Any]) -> str:
    return text_hash(json.dumps(data, sort_keys=True))


# Settings that may be edited in a run's resolved.json: they change no number.
FREE = (
    *("run.dir", "run.trackers", "run.save_steps", "run.save_total_limit"),
    *("run.num_samples_logged", "ray.address", "ray.timeout"),
)
# The length of an rl stage may be edited too if its learning rate is constant.
LENGTH = "learner.max_steps"


def check_settings(record: Tree, now: Tree, folder: Path) -> list[str]:
    """Lines about the settings in resolved.json that were edited and may be. `record` gets them.

    Raises RunError naming every other setting that differs, with both values.
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


def _is_free(name: str, record: Tree, before: Tree, after: Tree) -> bool:
    """Whether a setting may be edited between two parts of a run."""
    if name in FREE:
        return True
    where = name.removesuffix(LENGTH)
    if name.endswith(LENGTH) and before.get(f"{where}kind") == "rl":
        return before.get(f"{where}learner.lr_scheduler_type", "constant") == "constant"
    # A file that was moved keeps its name, and is compared by its content.
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
    """(dotted name, value) of every setting. A single stage's settings lack its name."""
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
