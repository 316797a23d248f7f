"""The kit for a machine without network: pieces in any state and order."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import bundle
from kit.archive import QUICK, archive
from kit.pack import MIB, PARTS, Packed, bounded, empty, placed, receiver
from kit.pieces import (
    ABSENT,
    DAMAGED,
    SHORT,
    WHOLE,
    KitError,
    Manifest,
    Part,
    Piece,
    condition,
    cut,
    unpack,
)
from kit.wheels import Machine, canonical, leave_out, needs
from kit.work import Work, held

RUN = Path(__file__).parents[2] / "benchmarks" / "kit" / "run.sh"
# Stands in for the runner: says what it sees, and takes its time where it is told to.
RUNNER = """
import importlib.util, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
if "--table" in sys.argv:
    sys.exit(print("### the table"))
with open(folder / "calls", "a") as calls:
    calls.write(f"late {importlib.util.find_spec('late') is not None} {os.environ['ONE']}\\n")
if "--failing" in sys.argv:
    sys.exit(1)
if "--slow" in sys.argv and not (folder / "quick").exists():
    time.sleep(60)
"""


def described(sizes: list[int], pieces: list[int], first: int = 1) -> Manifest:
    """A manifest of parts and pieces of these sizes, with no files behind it."""
    starts = [0, *itertools.accumulate(sizes)]
    return Manifest(
        commit="c" * 40,
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
        environment={"ONE": "1"},
        parts=[
            Part(name=f"part{i}", start=start, bytes=size, sha256="", first=i < first)
            for i, (start, size) in enumerate(zip(starts, sizes, strict=False))
        ],
        pieces=[Piece(name=f"piece-{i + 1}", bytes=n, sha256="") for i, n in enumerate(pieces)],
    )


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit of a project with a stand-in for the runner, and a package that comes in two pieces."""
    source, out = tmp_path / "source", tmp_path / "kit"
    made = {}
    noise = random.Random(0).randbytes(40_000)
    for name, files in {
        "project": {"benchmarks/bench_gpu.py": RUNNER.encode(), "noise": noise[:1000]},
        "late": {"late/__init__.py": b"", "late/noise": noise},
    }.items():
        for inside, content in files.items():
            path = source / name / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        archive(
            [(source / name / inside, inside) for inside in files], source / f"{name}.xz", QUICK
        )
        made[name] = Packed(path=source / f"{name}.xz", holds={name: "0"})
    parts = placed(made)
    out.mkdir()
    pieces = cut(
        [packed.path for packed in made.values()],
        out,
        itertools.chain([parts[0].bytes], itertools.repeat(parts[1].bytes // 2 + 1)),
    )
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    manifest = Manifest(
        commit="c" * 40, python=python, environment={"ONE": "1"}, parts=parts, pieces=pieces
    )
    manifest.write(out)
    (out / "run.sh").write_bytes(RUN.read_bytes())
    (out / "run.sh").chmod(0o755)
    receiver(out / "receive.pyz")
    return out


def run_sh(kit: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(kit / "run.sh"), *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=60,
    )


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def aside(kit: Path, *names: str) -> Path:
    """Take pieces out of the kit, to come later."""
    folder = kit.parent / "aside"
    folder.mkdir(exist_ok=True)
    for name in names:
        (kit / name).rename(folder / name)
    return folder


def calls(work: Work) -> list[str]:
    path = work.run / "calls"
    return path.read_text().splitlines() if path.exists() else []


def idle(work: Work) -> bool:
    return not any(held(work.root / f"{name}.lock") for name in ("keeper", "runner"))


def test_a_part_lies_in_the_pieces_that_share_a_byte_with_it() -> None:
    # parts  [0, 10) [10, 15) [15, 24) [24, 35);  pieces [0, 12) [12, 24) [24, 35)
    manifest = described([10, 5, 9, 11], [12, 12, 11])
    found = [[piece.name[-1] for piece in manifest.pieces_of(part)] for part in manifest.parts]
    assert found == [["1"], ["1", "2"], ["2"], ["3"]]


@pytest.mark.parametrize("size", [1 << 20, 1000, 333, 64])
def test_what_is_cut_is_unpacked_again_whatever_the_size(tmp_path: Path, size: int) -> None:
    content = {"a/b": random.Random(1).randbytes(3000), "c": b"", "d": b"d" * 5000}
    (tmp_path / "a").mkdir()
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link").symlink_to("a/b")
    names = [*content, "link"]
    for name, inside in {"one.xz": names[:1], "two.xz": names[1:]}.items():
        archive([(tmp_path / each, each) for each in inside], tmp_path / name, QUICK)
    (tmp_path / "out").mkdir()
    packed = {n: Packed(path=tmp_path / f"{n}.xz", holds={}) for n in ("one", "two")}
    pieces = cut([p.path for p in packed.values()], tmp_path / "out", itertools.repeat(size))
    assert all(piece.bytes == size for piece in pieces[:-1])
    assert pieces[-1].bytes <= size
    manifest = Manifest(commit="", python="", environment={}, parts=placed(packed), pieces=pieces)
    for part in manifest.parts:
        unpack(manifest, part, tmp_path / "out", tmp_path / part.name)
    assert (tmp_path / "one" / "a" / "b").read_bytes() == content["a/b"]
    assert {name: (tmp_path / "two" / name).read_bytes() for name in ("c", "d")} == {
        "c": b"",
        "d": b"d" * 5000,
    }
    assert os.readlink(tmp_path / "two" / "link") == "a/b"


def test_a_part_that_is_not_what_was_packed_is_not_there(kit: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(kit)
    content = bytearray((kit / "piece-3").read_bytes())
    content[100] ^= 1
    (kit / "piece-3").write_bytes(content)
    with pytest.raises(KitError, match=r"'late' is damaged: remove .*, and copy and add"):
        unpack(manifest, manifest.parts[1], kit, tmp_path / "late")
    assert not (tmp_path / "late").exists()


def test_a_part_with_another_checksum_is_not_there(kit: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(kit)
    other = dataclasses.replace(manifest.parts[1], sha256="0" * 64)
    with pytest.raises(KitError, match="'late' is damaged"):
        unpack(manifest, other, kit, tmp_path / "late")
    assert not (tmp_path / "late").exists()


def test_archives_of_the_same_files_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    archive([(tmp_path / "a", "a")], tmp_path / "1.xz")
    os.utime(tmp_path / "a", (1, 1))
    archive([(tmp_path / "a", "a")], tmp_path / "2.xz")
    assert (tmp_path / "1.xz").read_bytes() == (tmp_path / "2.xz").read_bytes()


def test_conditions_of_a_piece(tmp_path: Path) -> None:
    piece = cut([_file(tmp_path / "x", b"abcdef")], tmp_path, iter([6]))[0]
    path = tmp_path / piece.name
    assert condition(path, piece) == WHOLE
    path.write_bytes(b"abc")
    assert condition(path, piece) == SHORT
    path.write_bytes(b"abcdeg")
    assert condition(path, piece) == DAMAGED
    path.write_bytes(b"abcdefg")
    assert condition(path, piece) == DAMAGED
    path.unlink()
    assert condition(path, piece) == ABSENT


def test_manifest_is_read_as_written_and_refused_otherwise(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"manifest.json is missing: copy manifest.json and run.sh"):
        Manifest.read(tmp_path)
    manifest = described([10, 5], [15])
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    path = tmp_path / "manifest.json"
    found = json.loads(path.read_text())
    for change in ({**found, "commit": "d" * 40}, {**found, "more": 1}, {"sha256": ""}, []):
        path.write_text(json.dumps(change))
        with pytest.raises(KitError, match=r"manifest.json is damaged: copy it again"):
            Manifest.read(tmp_path)
    path.write_text("{")
    with pytest.raises(KitError, match="damaged"):
        Manifest.read(tmp_path)


def test_sizes_are_bounded() -> None:
    bounded(described([50 * MIB, 150 * MIB], [52 * MIB] * 3 + [44 * MIB]))
    with pytest.raises(KitError, match=r"the kit has 225.4 MB, more than 220 MB"):
        bounded(described([215 * MIB], [43 * MIB] * 5, first=0))
    with pytest.raises(KitError, match=r"piece-2 has 56.0 MiB, more than 55"):
        bounded(described([10 * MIB, 56 * MIB], [10 * MIB, 56 * MIB]))
    with pytest.raises(KitError, match="part1 is not all in the first piece"):
        bounded(described([30 * MIB, 30 * MIB], [50 * MIB, 10 * MIB], first=2))


def test_only_an_empty_folder_or_a_kit_is_packed_into(kit: Path, tmp_path: Path) -> None:
    empty(kit)
    assert list(kit.iterdir()) == []
    _file(tmp_path / "mine" / "thesis.txt", b"")
    with pytest.raises(KitError, match=r"thesis.txt is not of a kit: name an empty folder"):
        empty(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_needs_are_what_the_machine_lacks_each_once() -> None:
    machine = Machine.read()
    wanted = [need for part in PARTS for need in needs(part)]
    names = [canonical(need.name) for need in wanted]
    assert len(names) == len(set(names))
    assert set(names) & {canonical(name) for name in machine.packages} == set()
    assert set(machine.left_out) <= {"vllm"}


def test_what_is_left_out_has_to_be_there(tmp_path: Path) -> None:
    for name in ("a/big.so", "a/deep/er/file", "kept"):
        _file(tmp_path / name, b"12345")
    assert leave_out(tmp_path, {"a/*.so": "", "a/deep/**/*": ""}) == {"a/*.so": 5, "a/deep/**/*": 5}
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["kept"]
    with pytest.raises(KitError, match=r"leaves out 'a/\*.so', of which there is nothing"):
        leave_out(tmp_path, {"a/*.so": ""})


def test_pieces_come_late_damaged_half_and_out_of_order(kit: Path, tmp_path: Path) -> None:
    work = Work.at(tmp_path / "work")
    later = aside(kit, "piece-2", "piece-3")
    done = run_sh(kit, "start", kit, work.root)
    assert done.returncode == 0
    assert done.stdout == "piece-1: taken\nmissing: piece-2, piece-3; late wait for them\n"
    until(lambda: calls(work) == ["late False 1"] and idle(work))

    whole = {name: (later / name).read_bytes() for name in ("piece-2", "piece-3")}
    (kit / "piece-2").write_bytes(whole["piece-2"][:1000])
    (kit / "piece-3").write_bytes(b"?" + whole["piece-3"][1:])
    done = run_sh(kit, "add", kit, work.root)
    assert done.returncode == 1
    assert "piece-2: 0.0 of 0.0 MiB are there; it waits: run.sh add" in done.stdout
    assert "piece-3: refused, its checksum is wrong: copy it again, then" in done.stdout
    assert not any((work.pieces / name).exists() for name in whole)

    (kit / "piece-3").write_bytes(whole["piece-3"])
    done = run_sh(kit, "add", kit, work.root)
    assert done.returncode == 0
    assert "piece-3: taken" in done.stdout
    assert "missing: piece-2; late wait for them" in done.stdout
    (kit / "piece-2").write_bytes(whole["piece-2"])
    assert run_sh(kit, "add", kit, work.root).stdout == "piece-2: taken\nall pieces are here\n"
    until(lambda: len(calls(work)) == 2 and idle(work))
    assert calls(work) == ["late False 1", "late True 1"]
    assert (work.parts / "late" / "late" / "noise").stat().st_size == 40_000
    said = run_sh(kit, "status", work.root).stdout
    assert said.startswith("### the table\n")
    assert "unpacked: project, late\nkeeper: not running; runner: not running\n" in said


def test_killed_at_work_it_goes_on_and_many_calls_start_one_runner(
    kit: Path, tmp_path: Path
) -> None:
    work = Work.at(tmp_path / "work")
    assert run_sh(kit, "start", kit, work.root, "--", "--slow").returncode == 0
    until(lambda: len(calls(work)) == 1 and held(work.root / "runner.lock"))
    for pid in _processes(work):
        os.kill(pid, signal.SIGKILL)
    until(lambda: idle(work))
    (work.run / "quick").touch()
    command = [str(kit / "run.sh"), "start", str(kit), str(work.root)]
    environment = {**os.environ, "PYTHON": sys.executable}
    racing = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(4)
    ]
    assert [each.wait(60) for each in racing] == [0] * 4
    until(lambda: len(calls(work)) == 2 and idle(work))
    assert run_sh(kit, "start", kit, work.root).returncode == 0  # all is done: nothing is called
    until(lambda: idle(work))
    assert len(calls(work)) == 2


def test_start_calls_a_runner_again_that_ended_with_something_left(
    kit: Path, tmp_path: Path
) -> None:
    work = Work.at(tmp_path / "work")
    aside(kit, "piece-2", "piece-3")
    run_sh(kit, "start", kit, work.root, "--", "--failing")
    until(lambda: len(calls(work)) == 1 and idle(work))
    run_sh(kit, "add", kit, work.root)  # nothing has come
    until(lambda: idle(work))
    assert len(calls(work)) == 1
    run_sh(kit, "start", kit, work.root)
    until(lambda: len(calls(work)) == 2 and idle(work))


def test_measuring_begins_before_the_later_parts_are_unpacked(kit: Path, tmp_path: Path) -> None:
    work = Work.at(tmp_path / "work")
    run_sh(kit, "start", kit, work.root)
    until(lambda: (work.parts / "late").exists() and idle(work))
    said = [line.split(maxsplit=1)[1] for line in _log(work)]
    assert said[0].startswith("unpacked project in")
    assert said[1] == "the runner begins: project"
    assert said[2].startswith("unpacked late in")
    assert "the runner begins: project late" in said[3:]


def test_models_are_linked_also_where_the_keeper_was_killed_before(tmp_path: Path) -> None:
    work = Work.at(tmp_path)
    part = Part(name="big", start=0, bytes=1, sha256="", first=True, links={"a.gguf": "in/a"})
    work.adopt(Manifest(commit="", python="", environment={}, parts=[part], pieces=[]))
    work.link_models()
    assert not (work.assets / "a.gguf").is_symlink()
    _file(work.parts / "big" / "in" / "a", b"model")
    work.link_models()
    work.link_models()
    assert (work.assets / "a.gguf").read_bytes() == b"model"


def test_a_folder_that_cannot_be_written_to_is_named(kit: Path, tmp_path: Path) -> None:
    _file(tmp_path / "file", b"")
    done = run_sh(kit, "start", kit, tmp_path / "file")
    assert done.returncode == 2
    assert done.stderr.startswith("run.sh: ")
    assert str(tmp_path / "file") in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_starts_in_a_folder_with_a_space(tmp_path: Path) -> None:
    work = Work.at(tmp_path / "a folder")
    work.adopt(described([1], [1]))
    _file(work.parts / "part0" / "grpo" / "cli.py", b"def main():\n    print('here')\n")
    work.make_env()
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run([work.env / "bin" / "grpo"], env=bare, capture_output=True, text=True)
    assert said.stdout == "here\n"


def test_a_log_that_does_not_fit_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "LARGEST", 10_000)
    work = Work.at(tmp_path / "work")
    _file(work.run / "logs" / "card.log", b"log")
    _file(work.run / "logs" / "large.log", random.Random(3).randbytes(12_000))
    _file(work.run / "lost.log", b"gone")
    tar = bundle._tar

    def losing(work: Work, files: list[Path], how: str) -> bytes:
        (work.run / "lost.log").unlink(missing_ok=True)  # by the runner, which goes on
        return tar(work, files, how)

    monkeypatch.setattr(bundle, "_tar", losing)
    out = tmp_path / "out"
    bundle.bundle(work, out)
    with tarfile.open(out / "logs.tar.xz") as packed:
        assert packed.getnames() == ["run/logs/card.log"]
    assert (out / "left-behind.txt").read_text() == "run/logs/large.log\n"


def test_another_kit_another_python_and_nothing_started_are_refused(
    kit: Path, tmp_path: Path
) -> None:
    work = Work.at(tmp_path / "work")
    done = run_sh(kit, "add", kit, work.root)
    assert (done.returncode, "nothing was started in" in done.stderr) == (2, True)
    work.root.mkdir()
    work.adopt(described([1], [1]))
    done = run_sh(kit, "start", kit, work.root)
    assert done.returncode == 2
    assert "belongs to the kit of commit cccccccccc, and these pieces are of another" in done.stderr
    Manifest(commit="", python="2.7", environment={}, parts=[], pieces=[]).write(kit)
    done = run_sh(kit, "start", kit, tmp_path / "other")
    assert done.returncode == 2
    assert "and the kit's packages are built for 2.7" in done.stderr


def test_what_is_brought_back_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "LARGEST", 10_000)
    monkeypatch.setattr(bundle, "TOGETHER", 45_000)
    work = Work.at(tmp_path / "work")
    noise = random.Random(2)
    _file(work.run / "gpu.json", b"{}")
    _file(work.run / "state" / "card" / "copy.json", b"{}")
    _file(work.run / "logs" / "card.log", b"log")
    _file(work.run / "parity" / "model" / "model.safetensors", noise.randbytes(12_000))
    for number in range(4):
        _file(work.run / "traces" / f"{number}.json", noise.randbytes(12_000))
    out = tmp_path / "out"
    bundle.bundle(work, out)
    files = {path.name: path.stat().st_size for path in out.iterdir()}
    # 45,000 bytes hold four files of 10,000 beside the small ones: three of the traces.
    assert (out / "left-behind.txt").read_text() == "run/traces/3.json\n"
    assert sorted(files) == [
        "gpu.json",
        "left-behind.txt",
        "logs.tar.xz",
        "state.tar.xz",
        *(f"traces.tar.gz.0{number}" for number in range(4)),
    ]
    assert len(files) <= bundle.FILES
    assert max(files.values()) <= 10_000
    joined = b"".join((out / f"traces.tar.gz.0{number}").read_bytes() for number in range(4))
    whole = _file(tmp_path / "joined.tar.gz", joined)
    listed = subprocess.run(["tar", "tzf", str(whole)], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines() == [f"run/traces/{number}.json" for number in range(3)]
    monkeypatch.setattr(bundle, "FILES", 5)  # gpu.json, logs, state, the list and one of traces
    bundle.bundle(work, out)  # an older one is replaced
    assert len(list(out.iterdir())) == 4
    assert (out / "left-behind.txt").read_text().count("\n") == 4
    _file(out / "mine.txt", b"")
    with pytest.raises(KitError, match=r"mine.txt is not of an earlier `results`"):
        bundle.bundle(work, out)


def _file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _log(work: Work) -> list[str]:
    return (work.logs / "keeper.log").read_text().splitlines()


def _processes(work: Work) -> list[int]:
    """Keeper and runner of one folder."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                said = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if str(work.root).encode() in said:
                found.append(int(folder.name))
    return found
