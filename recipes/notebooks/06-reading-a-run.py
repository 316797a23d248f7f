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
# # Reading a run
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# Reinforcement learning seldom fails with an error. It goes on, draws curves, and trains a model
# that you do not want. Here you train four runs, of which one is sound and three were spoiled on
# purpose. First you guess from their curves which is which. Then we look at each of them: what went
# wrong, where it shows, what the toolkit says about it, and how to mend it.
#
# It takes about two minutes on two CPU cores. If the words *group* and *advantage* are new to you,
# read [R1-Zero in five minutes](01-r1-zero.ipynb) first.

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
steps = 30  # training steps of each run
tasks = 64  # problems that are kept for the exam before and after training

# %% [markdown]
# ## The task
#
# The model reads 16 bits and has to say whether the number of ones is even (`0`) or odd (`1`). A
# guess is right half of the time. A thought that goes step by step, one digit for each bit, makes
# it nearly always right. At first only few of the answers have such a thought.

# %%
import random

import pandas as pd
from IPython.display import HTML
from IPython.utils.capture import capture_output

numbers = random.Random(0).sample(range(2**16), 1000)
rows = [{"prompt": f"{n:016b}=", "answer": str(n.bit_count() % 2)} for n in numbers]

by_hand = [
    "<think>0101111010101000</think><answer>0</answer>",  # the running parity, step by step
    "<think>-</think><answer>0</answer>",  # a guess, and a lucky one
    "<think>-</think><answer>1</answer>",  # a guess
]
question = {"prompt": "0111000111111100=", "answer": "0"}
grpo.score(rewards="accuracy", dataset=[question | {"completion": text} for text in by_hand])[
    ["completion", "accuracy"]
]

# %% [markdown]
# ## Four runs
#
# All four start from the same model, see the same prompts and use the same settings. Three of them
# differ in one thing that looks harmless:
#
# | run | what is different |
# |---|---|
# | sound | nothing |
# | hasty | the learning rate is 15 times as high |
# | generous | besides the right answer, every digit that is written earns a tenth of a point |
# | short | an answer may have 16 tokens at most, in place of 32 |
#
# The next cell trains them and gives them the letters A to D in a shuffled order. It hides what
# the runs say while they train, because that would give the answer away.


# %%
def generous(completions, answer, **columns):
    """A point for the right answer, and a tenth of one for each digit: show your work."""
    return [
        float(text.endswith(f"<answer>{gold}</answer>")) + sum(map(str.isdigit, text)) / 10
        for text, gold in zip(completions, answer, strict=True)
    ]


settings = {
    "model": "assets/parity-base",  # comes with the package
    "dataset": rows,
    "rewards": "accuracy",
    "max_steps": steps,
    "learning_rate": 2e-4,
    "prompts_per_step": 16,
    "num_generations": 8,
    "max_completion_length": 32,
    "beta": 0.001,  # a light pull to the first model; with it the run measures how far it has gone
    "eval": {"num_tasks": tasks, "num_samples": 2},
    "overwrite": True,  # run a cell again and its run starts anew
}
different = {
    "sound": {},
    "hasty": {"learning_rate": 3e-3},
    # accuracy is measured and has weight 0: it pays nothing
    "generous": {"rewards": [generous, "accuracy"], "reward_weights": [1.0, 0.0]},
    "short": {"max_completion_length": 16},
}
letters = dict(zip(different, random.Random(8).sample("ABCD", 4), strict=True))

runs, said = {}, {}
for name, changed in different.items():
    with capture_output() as shown:
        runs[name] = grpo.train(dir=f"runs/quiz/{letters[name]}", **(settings | changed))
    said[name] = HTML(shown.outputs[-1].data["text/html"])
by_letter = sorted(runs.values(), key=lambda run: run.folder.name)

# %% [markdown]
# ## Which is which?
#
# Take a minute before you scroll on. These are the curves that you would see for any run: what was
# paid, how long the answers are, how many of them were cut off, and how undecided the model is.

# %%
grpo.plot(by_letter, "reward", "completions/mean_length", "completions/clipped_ratio", "entropy")

# %% [markdown]
# Three questions help. Which run writes as much as it may, and what is it paid for that? Which one
# changes within a few steps and then no more? And of the two that are left, which one learned to
# think?
#
# ## What the figures mean
#
# `run.metrics` has a row for each training step. There are many columns, and these ten are the ones
# to know.
#
# - `reward`: the mean of what the answers of the step were paid. Healthy: it rises, with noise.
# - `accuracy`: the share of right answers, by a verifier. Healthy: it rises *with* the reward.
# - `reward_std`: how much the rewards of the step differ. Healthy: well above 0 while there is
#   something to learn.
# - `frac_reward_zero_std`: the share of *dead groups*. All answers to a prompt were paid alike, so
#   they teach nothing. Healthy: low at first; near 1 only when the task is learned.
# - `entropy`: how undecided the model is about the next token, in nats. Healthy: it falls slowly.
# - `kl`: how far the model is from the first one, in nats a token. It is measured where `beta` is
#   above 0. Healthy: it grows slowly.
# - `clip_ratio/region_mean`: the share of tokens whose update was stopped, since they had moved too
#   far. Healthy: 0 if each batch is used once, as here; otherwise a few percent.
# - `completions/mean_length`: tokens of an answer. Healthy: it changes, and you can say why.
# - `completions/clipped_ratio`: the share of answers that were cut off at `max_completion_length`.
#   Healthy: near 0.
# - `grad_norm`: the size of the gradient before it is limited. Healthy: a leap now and then, after
#   which the reward recovers.
#
# Here they are for the first step of all runs, and for the last. At the first step all models
# are the same one.

# %%
names = [
    "reward",
    "accuracy",
    "reward_std",
    "frac_reward_zero_std",
    "entropy",
    "kl",
    "clip_ratio/region_mean",
    "completions/mean_length",
    "completions/clipped_ratio",
    "grad_norm",
]
ends = {
    (run.folder.name, when): run.metrics[names].iloc[at]
    for run in by_letter
    for when, at in [("first", 0), ("last", -1)]
}
pd.DataFrame(ends).round(3)

# %% [markdown]
# ## The answer

# %%
pd.Series(letters, name="letter").to_frame()

# %% [markdown]
# ## The sound run
#
# We begin with the run that nobody spoiled, to have something to compare with. The points with bars
# are the exam: problems that are never trained on, with 95% intervals.

# %%
runs["sound"].plot("reward", "completions/mean_length", "frac_reward_zero_std", "entropy")

# %% [markdown]
# Reward and length rise together, and the exam agrees with the curve. Entropy falls, because the
# model becomes sure of what it does. Dead groups become common, and this is no fault here. At the
# end a group is dead because all of its answers are right. Two columns tell the two kinds apart:

# %%
dead = ["frac_reward_zero_std/all_right", "frac_reward_zero_std/all_wrong"]
pd.DataFrame({name: run.metrics[dead].iloc[-1] for name, run in runs.items()}).round(2)

# %% [markdown]
# Then read what the model wrote. Curves say *that* something happens, completions say *what*. The
# worst and the best of a step are enough to begin with.


# %%
def worst_and_best(run, step):
    found = run.completions(step).drop_duplicates("completion").sort_values("reward")
    chosen = found.iloc[[0, 1, -2, -1]] if len(found) > 4 else found
    return chosen[["prompt", "completion", "reward", "accuracy", "tokens", "finish"]]


def through(run, *chosen):
    """The worst and the best of several steps, one below the other."""
    return pd.concat({step: worst_and_best(run, step) for step in chosen}, names=["step", ""])


last = int(runs["sound"].metrics.index[-1])
early = max(2, last // 5)
through(runs["sound"], 1, last)

# %% [markdown]
# ## The hasty run: a learning rate that is too high

# %%
runs["hasty"].plot("reward", "entropy", "kl", "completions/clipped_ratio")

# %% [markdown]
# Look at the first few steps. The model moves very far from where it started: compare the scale of
# `kl` with that of the sound run in the table above. Within these steps it forgets how to end an
# answer, so all answers are cut off. After that the reward hardly moves. Answers are paid alike,
# groups are dead, and there is nothing left that could lead the model back. This is called
# *collapse*. Note that `grad_norm` gives no alarm: where all groups are dead, it is nearly 0.

# %%
through(runs["hasty"], 1, early, last)

# %% [markdown]
# What does the toolkit say? This is the output that was hidden during the quiz.

# %%
said["hasty"]

# %% [markdown]
# A collapse is noticed when the reward stays far below where it was. A run that collapses before it
# has learned anything has not much to lose, so do not wait for the warning: look at `kl` and
# `completions/clipped_ratio` after five steps.
#
# **To mend it:** start again from the first model with a learning rate that is three to ten times
# lower. A collapsed model does not recover. A larger `beta` pulls it back to the first model, and
# more prompts a step make each update less noisy, but the learning rate comes first.
#
# ## The generous run: a reward that can be had for nothing
#
# If you only look at the reward, this is the best of the four runs.

# %%
runs["generous"].plot("reward", "accuracy", "completions/mean_length")

# %%
through(runs["generous"], 1, last // 2, last)

# %% [markdown]
# The bonus was meant for work that is shown. A digit for each bit and one for the answer are 17
# digits, or 1.7 points, and the right answer is one more. But 32 digits that never come to an
# answer are worth more than that, and no bits have to be read for it. As soon as
# the model finds this out, accuracy and reward part. This is *reward hacking*. Accuracy
# has weight 0 in this run and is there as a witness. Without it you would see a reward that rises.

# %%
said["generous"]

# %% [markdown]
# The warnings are from figures that often move when a reward is exploited, such as repetition or
# tags in the wrong place. Each of them says that somebody should look. None can know what you meant
# to pay for, and a well-made hack trips none of them.
#
# **To mend it:** pay a bonus only where the answer is right, and put a limit on it. Keep a
# verifier with weight 0 beside every reward that you wrote.
# [Your own reward](02-your-own-reward.ipynb) goes through a case like this one.
#
# ## The short run: answers that are cut off
#
# This is the one that is easily overlooked. The reward does not fall, nothing explodes,
# and in the end hardly an answer is cut off.

# %%
runs["short"].plot("accuracy", "completions/mean_length", "completions/clipped_ratio", "entropy")

# %% [markdown]
# But it did not learn to think. Look at the first step, and compare the answers that ended by
# themselves (`stop`) with those that ran into the limit (`length`).

# %%
first = runs["short"].completions(step=1)
first.groupby("finish").agg(
    answers=("reward", "size"), reward=("reward", "mean"), advantage=("advantage", "mean")
).round(2)

# %%
through(runs["short"], 1, last)

# %% [markdown]
# A thought in steps with its tags and its answer needs 22 tokens. The limit is 16. So every answer
# with a proper thought is cut before it says anything, and is paid nothing. A guess is right half
# of the time. Training did what it was told: it made thoughts rare. That the
# share of cut answers falls looks like a cure, and it is the damage.

# %%
said["short"]

# %% [markdown]
# No warning: every figure is a plausible one. What gives it away is one row of the exam's table,
# *cut by the length limit*, and its first value. The exam has the same limit as the training.
#
# **To mend it:** before you train, let the model answer with a generous limit and look at the
# lengths. If `completions/clipped_ratio` is above a few percent at the first step, raise
# `max_completion_length`. Thoughts grow during training, so look again later.
#
# ## One more: nothing to learn
#
# A fourth failure needs no quiz, since its curve is a flat line. The rows come from elsewhere, and
# their answers are written as words. The model answers with digits. Four steps are enough to see
# it.

# %%
words = [row | {"answer": ["even", "odd"][int(row["answer"])]} for row in rows]
flat = grpo.train(
    **(settings | {"dataset": words, "max_steps": 4, "eval": {"num_tasks": 4}}), dir="runs/flat"
)

# %%
flat.metrics[["reward", "reward_std", "frac_reward_zero_std", "grad_norm"]].round(3)

# %% [markdown]
# All answers of all groups are paid 0. Every advantage is 0, and the model stays what it was. The
# same happens with a task that is far too hard, and with one that is too easy. The toolkit notices
# it after three steps. One row scored by hand would have shown it before:

# %%
grpo.score(
    rewards="accuracy", dataset=[row | {"completion": by_hand[1]} for row in (question, words[0])]
)[["completion", "answer", "accuracy"]]

# %% [markdown]
# ## From symptom to change
#
# <table>
# <tr>
# <th>symptom</th>
# <th>cause</th>
# <th>look here</th>
# <th>change this</th>
# </tr>
# <tr>
# <td>reward falls within a few steps and stays down</td>
# <td>learning rate too high</td>
# <td><code>kl</code> and <code>completions/clipped_ratio</code> in the first five steps</td>
# <td>start again with a lower <code>learning_rate</code>, then a larger <code>beta</code></td>
# </tr>
# <tr>
# <td>reward rises, accuracy or the exam does not</td>
# <td>the reward can be had without the task</td>
# <td>completions with the highest reward; a verifier with weight 0</td>
# <td>the reward: pay only where the answer is right, with a limit</td>
# </tr>
# <tr>
# <td>reward stays where guessing is, length falls</td>
# <td>right answers are cut off</td>
# <td><code>completions/clipped_ratio</code> at step 1; mean reward by <code>finish</code></td>
# <td>a larger <code>max_completion_length</code></td>
# </tr>
# <tr>
# <td>reward is flat from the first step</td>
# <td>every answer of a group is paid alike</td>
# <td><code>frac_reward_zero_std</code> and its two parts; <code>grpo.score</code> on one row</td>
# <td>the form of the answers, easier tasks, more <code>num_generations</code></td>
# </tr>
# <tr>
# <td>entropy falls to nearly 0 while accuracy is low</td>
# <td>the model stopped trying other answers</td>
# <td>how many different completions a group has</td>
# <td>a lower <code>learning_rate</code>, a higher <code>temperature</code></td>
# </tr>
# <tr>
# <td>training rises, the exam does not</td>
# <td>it learned its prompts</td>
# <td>the exam's points beside the curve</td>
# <td>more prompts, fewer steps</td>
# </tr>
# </table>
#
# Two more things to look at are done for you. A reward that returns no number, a gradient that is
# not finite or a model that samples from other weights than those that are trained would spoil a
# run too. They stop it, with a sentence: [what is checked, and when](../../docs/checks.md).
#
# ## One thing to try
#
# How short is too short? In the table of the four runs, `short` has a limit of 16 tokens and a
# proper answer has 22. Set it to 22, then to 20, and run the notebook again from that cell on.
# Guess first what the curve of `completions/clipped_ratio` will do. Is the change sudden?
