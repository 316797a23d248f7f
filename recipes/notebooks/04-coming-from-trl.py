# ---
# jupyter:
#   grpo:
#     small:
#       seeds: [0]
#       steps: 2
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Coming from TRL
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# You have a script that trains with TRL's `GRPOTrainer`. Here it runs twice: once with TRL, once
# with one import line changed. Then we lay the two side by side: how long they took, what they
# learned, which figures they log. At the end the same training is one call of `grpo.train`.
#
# It takes about a minute on two CPU cores. The model is tiny and comes with the package.

# %%
# Installs the toolkit where it is missing. A package that is installed already is not replaced.
import importlib.util
import pathlib
import subprocess
import sys

SOURCE = ""  # a wheel, or "git+https://…" of the repository; empty: the checkout of this notebook
EXTRAS = ""

if importlib.util.find_spec("grpo") is None:
    here = pathlib.Path.cwd()
    checkouts = [str(place) for place in (here, *here.parents) if (place / "grpo").is_dir()]
    if not SOURCE and not checkouts:
        raise FileNotFoundError("write into SOURCE where the toolkit is: a wheel, or git+https://…")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, SOURCE or checkouts[0]], check=True)
    importlib.invalidate_caches()

import grpo

print(grpo.setup(EXTRAS))

# %% tags=["parameters"]
seeds = [0, 1]  # each trains once with TRL and once here
steps = 20  # optimizer steps of a run

# %% [markdown]
# ## The task
#
# The prompt is a row of 16 bits, such as `0110100110010110=`. The right answer is the parity: `0`
# if the number of ones is even, `1` if it is odd. The model has seen such texts. It can answer at
# once, which is a guess, or write down a running parity first, which is nearly always right.
# Reinforcement learning has to find out which of the two pays.
#
# The rows and the reward are what they would be for TRL: a column `prompt`, a column `answer`,
# and a function that is given the completions and every column, and returns one number for each
# completion.

# %%
from importlib.resources import files

from datasets import Dataset

model = str(files("grpo.recipes") / "assets" / "parity-base")
numbers = [n * 2654435761 % 65536 for n in range(1, 2049)]
rows = Dataset.from_list(
    [{"prompt": f"{n:016b}=", "answer": str(n.bit_count() % 2)} for n in numbers]
)


def parity(completions, answer, **kwargs):
    return [
        float(f"<answer>{right}</answer>" in text)
        for text, right in zip(completions, answer, strict=True)
    ]


print(rows[0], rows[1], sep="\n")

# %% [markdown]
# ## The script
#
# This is the script. We keep it in a function, so that it can run with either library and with
# several seeds. In a file of your own, `library` is the line `from trl import GRPOConfig,
# GRPOTrainer`, and the change is `from grpo import GRPOConfig, GRPOTrainer`.

# %%
import shutil
from pathlib import Path

folder = Path("runs", "from-trl")


def fresh(name):
    """A folder without a run in it: a trainer writes over nothing, and a cell may run again."""
    shutil.rmtree(folder / name, ignore_errors=True)
    return str(folder / name)


def script(library, seed):
    trainer = library.GRPOTrainer(
        model=model,
        reward_funcs=parity,
        args=library.GRPOConfig(
            output_dir=fresh(f"{library.__name__}-{seed}"),
            seed=seed,
            max_steps=steps,
            num_generations=8,  # completions of a prompt
            per_device_train_batch_size=128,  # completions of a step: 16 prompts
            max_completion_length=32,
            learning_rate=3e-4,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=rows,
    )
    trainer.train()
    return trainer


# %% [markdown]
# Now it runs, in turns. Both libraries draw a progress display, which we leave out of this page.

# %%
import time

import trl
from IPython.utils.capture import capture_output

trainers, seconds = {}, {}
for seed in seeds:
    for library in (trl, grpo):
        began = time.perf_counter()
        with capture_output():
            trainers[library.__name__, seed] = script(library, seed)
        seconds[library.__name__, seed] = time.perf_counter() - began
        print(f"seed {seed}, {library.__name__:4}: {seconds[library.__name__, seed]:5.1f} s")

# %% [markdown]
# ## How long it took
#
# `whole script` is what you wait for: loading the model, training, saving. `a step` is the mean
# time of a training step after the first one, in which libraries are still loaded.

# %%
import pandas as pd

logs = {
    key: pd.DataFrame([line for line in trainer.state.log_history if "reward" in line])
    for key, trainer in trainers.items()
}
times = pd.DataFrame(
    {
        "library": [name for name, _ in logs],
        "seed": [seed for _, seed in logs],
        "whole script (s)": list(seconds.values()),
        "a step (s)": [log["step_time"][1:].mean() for log in logs.values()],
    }
)
times.pivot(index="seed", columns="library").round(2)

# %%
import matplotlib.pyplot as plt

colors = {"trl": "tab:orange", "grpo": "tab:blue"}
figure, axes = plt.subplots(1, 2, figsize=(8, 2), layout="constrained")
for axis, name in zip(axes, ["whole script (s)", "a step (s)"], strict=True):
    median = times.groupby("library")[name].median()
    bars = axis.barh(list(colors), [median[one] for one in colors], color=list(colors.values()))
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set_title(f"{name}, median of {len(seeds)}", fontsize=10)
    axis.margins(x=0.15)
ratio = times.groupby("library")["a step (s)"].median()
print(f"A step takes TRL {ratio['trl'] / ratio['grpo']:.1f} times as long.")

# %% [markdown]
# These are a few short runs of a tiny model on whatever machine ran this page, perhaps with other
# programs beside it. The ratio is another one for a larger model: the
# [benchmark](../../docs/trainer.md#beside-trl-over-seeds) has it for two models, each seed in a
# process of its own.
#
# ## What they learned
#
# The random numbers of the two libraries differ, so no two lines are the same. They should climb
# alike, within what seeds differ anyway.

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
panels = {
    "reward": "reward: share of right answers",
    "completions/mean_length": "length of completions (tokens)",
    "loss": "loss",
}
for axis, (name, title) in zip(axes, panels.items(), strict=True):
    for (library, seed), log in logs.items():
        label = library if seed == seeds[0] else None
        axis.plot(log["step"], log[name], color=colors[library], alpha=0.7, label=label)
    axis.set(title=title, xlabel="step")
axes[0].legend()
figure.show()

# %% [markdown]
# The completions grow because the thought that pays is the long one. The model that TRL would
# leave in `trainer.model` is there, too, and `trainer.run` is more: every completion of every
# step, with its reward.

# %%
trainer = trainers["grpo", seeds[0]]
told = trainer.run.completions(step=-1)
told[["prompt", "completion", "reward", "advantage"]].head(4)

# %% [markdown]
# ## The same names
#
# What you plot, what your dashboard shows, what your callbacks read: the figures have TRL's
# names.

# %%
ours, theirs = (set(logs[name, seeds[0]].columns) for name in ("grpo", "trl"))
print("in both:      ", ", ".join(sorted(ours & theirs)))
print("only TRL's:   ", ", ".join(sorted(theirs - ours)) or "none")
print("only ours:    ", len(ours - theirs), "more, such as", ", ".join(sorted(ours - theirs)[:3]))

# %% [markdown]
# ## Your callbacks
#
# Callbacks of `transformers` work as they are. This one stops the training once nine answers of
# ten are right.

# %%
from transformers import TrainerCallback


class Enough(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        self.good = (logs or {}).get("reward", 0) >= 0.9

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = getattr(self, "good", False)


with capture_output():  # a note that comes further down
    stopped = grpo.GRPOTrainer(
        model=model,
        reward_funcs=parity,
        args=grpo.GRPOConfig(
            output_dir=fresh("enough"),
            max_steps=2 * steps,
            per_device_train_batch_size=128,
            max_completion_length=32,
            learning_rate=3e-4,
            bf16=False,
            logging_steps=1,
            save_strategy="no",
        ),
        train_dataset=rows,
        callbacks=[Enough],
    )
stopped.train()
print(f"stopped after step {stopped.state.global_step} of {2 * steps}")

# %% [markdown]
# ## What is not honored says so
#
# TRL's configuration has close to 200 fields. Here each one is honored, or changes no number, or
# is refused. None is taken and left out without a word. A field that changes nothing is a note
# when the trainer is made:

# %%
import logging

logging.getLogger("grpo").setLevel(logging.ERROR)  # the notes are printed below instead
noted = grpo.GRPOTrainer(
    model=model,
    reward_funcs=parity,
    args=grpo.GRPOConfig(max_steps=steps, torch_compile=True, dataloader_num_workers=4),
    train_dataset=rows,
)
for note in noted.notes:
    print("-", note)
logging.getLogger("grpo").setLevel(logging.NOTSET)

# %% [markdown]
# A field that would train something else than you think is an error, in one sentence that says
# what to do. So is a name that does not exist.

# %%
for field in ({"repetition_penalty": 1.1}, {"num_generation": 4}):
    try:
        grpo.GRPOTrainer(
            model=model,
            reward_funcs=parity,
            args=grpo.GRPOConfig(max_steps=steps, **field),
            train_dataset=rows,
        )
    except (grpo.GrpoError, TypeError) as error:
        print("-", error)

# %% [markdown]
# [Moving from TRL](../../docs/trl.md) has all fields in a table, and what differs between the two
# trainers.
#
# ## The short way
#
# The same training without a trainer is one call. A step is counted in prompts here: 16 prompts
# with 8 completions each are the 128 completions from above. A tenth of the prompts is held out,
# and the model is asked about them before and after.

# %%
run = grpo.train(
    model=model,
    dataset=rows,
    rewards=[parity],
    max_steps=steps,
    num_generations=8,
    prompts_per_step=16,
    max_completion_length=32,
    learning_rate=3e-4,
    dir=str(folder / "short-way"),
    overwrite=True,
)
run

# %% [markdown]
# ## One thing to try
#
# Take a `GRPOConfig` of your own, put it where `script` has its settings, and make the trainer
# without training it: `print(grpo.GRPOTrainer(…).notes)`. An empty list means that every field
# you set is honored. A file for the command line of `trl grpo` goes through `grpo import-trl
# config.yaml -o recipe.yaml` instead.
