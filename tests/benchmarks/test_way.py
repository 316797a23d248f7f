"""What counts on the way of the rows: on a toy whose entries are known by reading it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import way
from way import Entry, Way, is_ground, returns, told

TOY = {
    "__init__.py": "",
    "cli.py": "from toy_way import command\n\ndef main(): command.run()\n",
    "command.py": "from toy_way import loop\n\ndef run(): loop.train_step()\n",
    "loop.py": """
from toy_way import check, learner, rows

def train_step():
    check.look()
    made = rows.make()
    learner.Learner().learn(made)
""",
    # Rows that the loop was not given, before it was: not on the way.
    "check.py": "from toy_way import rows\n\ndef look(): return len(rows.make())\n",
    "rows.py": """
import numpy as np
from grpo.types import Row

def make():
    of = {"prompt_ids": (1,), "ids": np.zeros(1), "mask": np.ones(1, bool)}
    return [Row(group=0, columns={"weights": np.zeros(1)}, **of)]
""",
    "learner.py": """
import torch
from toy_way import loss, model, pack, transfer

class Learner:
    def learn(self, rows):
        batch = pack.pack(rows)
        net = model.Net()
        for _ in range(2):
            net(batch.ids)
        pack.name("no rows")
        pack.count(net.weight)
        there = transfer.to_device(batch.ids)
        batch.size
        pack.cut(batch)
        model.late(lambda: there.sum())
        loss.clipped_surrogate(there)
        raise AssertionError("nobody looks after the loss")
""",
    "pack.py": """
from dataclasses import dataclass
import numpy as np
import torch

@dataclass(frozen=True)
class Batch:
    ids: torch.Tensor

    @property
    def size(self): return len(self.ids)

def pack(rows): return Batch(torch.from_numpy(np.stack([row.ids for row in rows])))
def name(word): return word.upper()
def count(weight): return len(weight)
def cut(batch): return None
""",
    "model.py": """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x): return x

def late(make): return float(make())
""",
    "transfer.py": "def to_device(ids): return ids.clone()\n",
    "loss.py": "def clipped_surrogate(logp): raise StopIteration\n",
}
ON_IT = [
    ("rows.py", "make", "loop.py"),
    ("learner.py", "Learner.learn", "loop.py"),
    ("pack.py", "pack", "learner.py"),
    ("model.py", "Net.forward", "learner.py"),  # torch called it; the second time is no other entry
    ("pack.py", "cut", "learner.py"),  # a return: the model was in between
    ("model.py", "late", "learner.py"),  # a return; its closure has a tensor along
    ("learner.py", "Learner.learn.<locals>.<lambda>", "model.py"),  # a return
    ("loss.py", "clipped_surrogate", "learner.py"),
]


# In a process of its own: pytest's threads and timers are not to be watched.
WATCH = """
import json, sys
from pathlib import Path
import way
way.ROOTS = [Path(sys.argv[1])]
from toy_way import cli
found = way.Way()
sys.setprofile(found)
try:
    cli.main()
except StopIteration:
    sys.setprofile(None)
    print(json.dumps([found.stack, [vars(entry) for entry in found.entries]]))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Way:
    """What is seen of the toy's step."""
    root = tmp_path_factory.mktemp("toy")
    for name, text in TOY.items():
        file = root / "toy_way" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    places = [str(root), str(Path(way.__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = Way()
    found.stack, entries = json.loads(done.stdout)
    found.entries = [Entry(**entry) for entry in entries]
    return found


def test_entries_are_those_that_bring_rows_from_another_file(seen: Way) -> None:
    entries = [e for e in seen.entries if e.brings and not is_ground(e.file)]
    found = [(Path(e.file).name, e.function, Path(e.caller).name) for e in entries]
    assert found == ON_IT
    assert [Path(e.file).name for e in seen.entries if is_ground(e.file)] == ["transfer.py"]
    quiet = {e.function for e in seen.entries if not e.brings}
    assert {"name", "count"} <= quiet


def test_the_stack_begins_behind_the_door_and_ends_at_the_loss(seen: Way) -> None:
    files = [Path(file).name for file in seen.stack]
    assert files == ["command.py", "loop.py", "learner.py", "loss.py"]


def test_the_page_counts_what_it_lists(seen: Way) -> None:
    page = told("toy", seen)
    assert "toy: from command to loss, 4 files\n" in page
    assert "toy: the rows' way, 8 entries, 3 returns\n" in page
    assert page.count("RETURN") == 3
    assert page.endswith("toy: ground, 1 files: toy_way/transfer.py")


def test_a_return_needs_another_file_in_between() -> None:
    assert returns([]) == []
    assert returns(list("aabacc")) == [False, False, False, True, False, False]
    assert returns(list("abab")) == [False, False, True, True]


def test_kernels_are_ground_wherever_they_lie() -> None:
    assert is_ground("grpo/kernels/layers.py")
    assert is_ground("grpo/model/transfer.py")
    assert not is_ground("grpo/learner/layers.py")
