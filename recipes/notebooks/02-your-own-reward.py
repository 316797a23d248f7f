# ---
# jupyter:
#   grpo:
#     small:
#       steps: 2
#       tasks: 4
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
# # Your own reward
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# A reward is a Python function that gives each answer of the model a number. The model learns to
# get more of that number, by whatever means it finds. Here you write rewards, try them before
# anything is trained, train with them, and see how a careless one is exploited and repaired.
#
# It takes about a minute on two CPU cores. If the words *group* and *advantage* are new to
# you, read [R1-Zero in five minutes](01-r1-zero.ipynb) first.

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
steps = 25  # training steps of each run
tasks = 64  # problems that are kept for the exam before and after training

# %% [markdown]
# ## The task
#
# The model reads 16 bits and has to say whether the number of ones is even (`0`) or odd (`1`). It
# answers with a thought in `<think>` tags and an answer in `<answer>` tags. Our rows have three
# columns. Only `prompt` has a meaning to the trainer. All others are handed to your reward.

# %%
import random

import pandas as pd

numbers = random.Random(0).sample(range(2**16), 1000)
rows = [
    {"prompt": f"{n:016b}=", "answer": str(n.bit_count() % 2), "ones": n.bit_count()}
    for n in numbers
]
pd.DataFrame(rows).head(3)

# %% [markdown]
# ## A function in a cell
#
# The signature is TRL's, so a reward that you have from there works here. A reward gets lists of
# equal length: `completions` (the texts that the model wrote), `prompts`, and each column of your
# rows under its own name. It returns a number for each completion. Name the arguments that you
# need and let `**columns` take the rest.


# %%
def right(completions, answer, **columns):
    """1 where the text ends with the right answer in its tags."""
    return [
        1.0 if text.endswith(f"<answer>{gold}</answer>") else 0.0
        for text, gold in zip(completions, answer, strict=True)
    ]


# %% [markdown]
# ## Try it before you train
#
# `grpo.score` calls a reward as training does, on completions that you write down. Do this with
# every new reward: one answer that should be paid, one that should not, and one that is strange.

# %%
question = {"prompt": "0111000111111100=", "answer": "0", "ones": 10}
by_hand = [
    "<think>0101111010101000</think><answer>0</answer>",
    "<think>-</think><answer>1</answer>",
    "<answer>1</answer><answer>0</answer>",
]
written = [question | {"completion": text} for text in by_hand]
grpo.score(rewards=right, dataset=written)[["completion", "right", "status"]]

# %% [markdown]
# The third text gives both answers, and our function pays it. Keep that in mind: what you do not
# forbid is allowed. A model that is trained long enough finds such gaps.
#
# What exactly does a reward receive? Write one that looks.


# %%
def look(completions, **columns):
    for name, values in {"completions": completions, **columns}.items():
        print(f"{name:12} {values!r:.75}")
    return [0.0 for _ in completions]


looked = grpo.score(rewards=look, dataset=written[:1])

# %% [markdown]
# In training a call has all completions of one prompt, and what TRL passes besides:
# `completion_ids` (the tokens of each completion), `trainer_state` (which step it is) and
# `log_metric`, a function that records a figure of your own.
#
# ## Train
#
# The function is passed as it is. All runs of this notebook use the same settings, so we write
# them down once. The built-in `accuracy` has weight 0: it is measured and pays nothing. That makes
# it an independent witness, and you will be glad to have one in a moment.

# %%
settings = {
    "model": "assets/parity-base",  # comes with the package
    "dataset": rows,
    "reward_weights": [1.0, 0.0],
    "max_steps": steps,
    "learning_rate": 3e-4,
    "prompts_per_step": 16,
    "num_generations": 8,
    "max_completion_length": 48,
    "eval": {"num_tasks": tasks, "num_samples": 2},
    "overwrite": True,  # run a cell again and its run starts anew
}

run = grpo.train(rewards=[right, "accuracy"], name="right", **settings)

# %%
run.plot("rewards/right/mean", "rewards/accuracy/mean", "completions/mean_length")

# %% [markdown]
# Now read what the model wrote. `run.completions(step)` has every answer of a step with all its
# scores. These are the worst and the best of the first step and of the last one.


# %%
def worst_and_best(run, step):
    found = run.completions(step).drop_duplicates("completion").sort_values("reward")
    return found.iloc[[0, 1, -2, -1]][["completion", "reward", "accuracy", "tokens", "finish"]]


last = run.metrics.index[-1]
pd.concat({"first": worst_and_best(run, 1), "last": worst_and_best(run, last)}, names=["step", ""])

# %% [markdown]
# ## A reward with a loophole
#
# The model does better when it thinks in steps. So why not pay for thinking? The next reward pays
# for long answers, one point for a hundred characters. It sounds reasonable. Guess what the model
# will do with it.


# %%
def thinks(completions, **columns):
    """More text is more thought, and more thought is better. Is it not?"""
    return [len(text) / 100 for text in completions]


hacked = grpo.train(rewards=[thinks, "accuracy"], name="thinks", **settings)

# %%
hacked.plot("rewards/thinks/mean", "rewards/accuracy/mean", "completions/mean_length")

# %% [markdown]
# Plot the reward alone, and this is a success. The witness tells another story. For a while all
# goes as hoped: the model thinks in steps, and is right more often. Then it finds something better,
# and accuracy falls to the ground while the reward climbs. Where that happens, read completions.

# %%
shown = [1, max(1, last // 3), last]  # the beginning, the good days, the end
pd.concat(
    {
        step: hacked.completions(step)[["completion", "thinks", "accuracy"]].head(2)
        for step in shown
    },
    names=["step", ""],
)

# %% [markdown]
# In the end the model neither thinks nor answers. It repeats a closing tag. A tag is one token and
# has nine characters, where a `0` or a `1` has one. As an answer may have 48 tokens at most, this
# is the way to write the most characters. The model did what was paid, not what was meant. This is
# called *reward hacking*.
#
# While it trained, the run said `look at some completions` with the figure that looked wrong. These
# warnings cost nothing, but only your eyes can tell what they mean.
#
# ## The loophole closed
#
# Two things were wrong: length was paid whether the answer was right or not, and there was no end
# to it. The new version counts only what stands inside the thought, pays up to 16 characters of it,
# and pays nothing for a wrong answer.
#
# There is no old version in some cache. Change a function, run its cell and then the training cell,
# and the new one is used, under the same name too.


# %%
def thinks(completions, answer, **columns):
    """Up to half a point for a thought, if the answer is right."""
    paid = []
    for text, gold in zip(completions, answer, strict=True):
        thought, closed, rest = text.removeprefix("<think>").partition("</think>")
        is_right = bool(closed) and rest == f"<answer>{gold}</answer>"
        paid.append(0.5 + min(len(thought), 16) / 32 if is_right else 0.0)
    return paid


tags = {"completion": "</answer>" * 40}
grpo.score(rewards=thinks, dataset=[*written, question | tags])[["completion", "thinks"]]

# %% [markdown]
# The same texts as above, and the trick of the last run. Only the first text is paid now, the one
# with both answers is not. Train again:

# %%
mended = grpo.train(rewards=[thinks, "accuracy"], name="mended", **settings)

# %%
grpo.plot([hacked, mended], "rewards/thinks/mean", "rewards/accuracy/mean")

# %% [markdown]
# ## Several rewards, and rewards that skip
#
# `reward_weights` says how much each reward counts in the sum. A reward may return `None` for a
# completion that it has no opinion on. That is not a zero: the other rewards decide alone.
#
# A reward can also be asynchronous, say when it asks a server, and it can be an object that
# remembers what it has seen. This cell has one of each. They are scored, not trained.

# %%
import asyncio
from collections import Counter


async def few_ones(completions, ones, **columns):
    """Asks a slow server about prompts with fewer than eight ones, and skips all others."""
    await asyncio.sleep(0.1)  # stands for the server
    return [1.0 if count < 8 else None for count in ones]


class Novelty:
    """Pays less for a text each time it comes."""

    def __init__(self):
        self.seen = Counter()

    def __call__(self, completions, **columns):
        self.seen.update(completions)
        return [1 / self.seen[text] for text in completions]

    def state_dict(self):  # what a checkpoint keeps, so that a run can be resumed
        return dict(self.seen)

    def load_state_dict(self, state):
        self.seen = Counter(state)


novelty = Novelty()
twice = [question | {"completion": by_hand[0]}] * 2 + [rows[2] | {"completion": by_hand[0]}]
grpo.score(rewards=[few_ones, novelty], dataset=twice)[["prompt", "few_ones", "Novelty", "status"]]

# %% [markdown]
# ## What to remember
#
# - Score a few texts by hand before you train.
# - Measure what you really want beside what you pay, with weight 0 if need be.
# - A reward that rises is no proof. Read the best completions; a hack is always among them.
# - Pay for a property only where the answer is right, and put a limit on it.
#
# [Rewards](../../docs/rewards.md) lists the built-in ones and says what a function may count on.
#
# ## One thing to try
#
# Take the limit out of the mended reward: replace `min(len(thought), 16)` by `len(thought)`, and
# train again. The answer must still be right. Does the model find a way to write longer thoughts
# and still be right? Look at the longest completions of the last step.
