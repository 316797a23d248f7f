"""A script with Python objects, launched as several ranks: one run, one folder, one model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os
import grpo
from grpo.model import pretrained

def short(completions, **columns):
    return [-len(text) / 100 for text in completions]

rows = [{"prompt": f"{n * 2654435761 % 65536:016b}=", "answer": str(n % 2)} for n in range(24)]
run = grpo.train(
    model=pretrained.load_model("recipes/assets/parity-base"),
    tokenizer=pretrained.tokenizer("recipes/assets/parity-base"),
    dataset=rows,
    rewards=["accuracy", short],
    dir=FOLDER,
    threads=2,
    max_steps=2,
    num_generations=4,
    prompts_per_step=4,
    max_completion_length=24,
    eval={"num_tasks": 2, "num_samples": 1},
)
said = [f"left {run.folder} {len(run.completions(2))}"]
try:
    bad = {"dataset": rows, "rewards": [short], "dir": BAD, "nothing": 1}
    grpo.train(model="recipes/assets/parity-base", **bad)
except grpo.GrpoError as error:
    said.append(f"refused {error}")
with open(f"{FOLDER}.{os.environ['RANK']}", "w") as file:  # lines of two processes would mix
    file.write("\\n".join(said))
"""


def test_two_ranks_make_one_run_of_objects_and_both_hear_of_an_error(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    names = f"FOLDER, BAD = {str(tmp_path / 'run')!r}, {str(tmp_path / 'bad')!r}"
    script.write_text(f"{names}\n{SCRIPT}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        left, refused = (tmp_path / f"run.{rank}").read_text().splitlines()
        assert left == f"left {tmp_path / 'run'} 16"
        assert refused.startswith("refused there is no setting 'nothing'")
    assert done.stderr.count("rl step 2/2") == 1  # the first rank alone prints
    assert (tmp_path / "run" / "given" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "bad").exists()
