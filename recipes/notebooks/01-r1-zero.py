# ---
# jupyter:
#   grpo:
#     small:
#       steps: 2
#       tasks: 16
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
# # R1-Zero in five minutes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# DeepSeek-R1-Zero is a language model that learned to think before it answers. Nobody showed it
# how. It was only told, after each answer, whether the answer was right. This notebook does the
# same with a model so small that a laptop trains it while you watch.
#
# You need to know some Python and nothing of reinforcement learning. It takes about a minute
# on two CPU cores. No GPU and no account is needed, and nothing is downloaded once the first cell
# has run.

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
steps = 40  # training steps of each run
tasks = 256  # problems that are kept for the exam before and after training

# %% [markdown]
# ## The task
#
# The model reads 16 bits and has to say whether the number of ones is even (`0`) or odd (`1`).
# This is called the *parity* of the bits. It is hard to guess: change any one bit and the answer
# changes. And it is easy if you go step by step: write down the parity of the first bit, of the
# first two, of the first three, and so on. The last one is the answer.

# %%
from itertools import accumulate
from operator import xor

prompt = "0111000111111100="
bits = [int(bit) for bit in prompt.removesuffix("=")]
step_by_step = "".join(map(str, accumulate(bits, xor)))
answer = step_by_step[-1]

print("bits          ", prompt)
print("step by step  ", step_by_step)
print("right answer  ", answer, f"({sum(bits)} ones)")

# %% [markdown]
# ## The model before training
#
# Our model has 0.85 million parameters. It has read texts of this task, so it knows how an answer
# looks: a thought between `<think>` tags, then the answer between `<answer>` tags. Let it answer
# our prompt four times. `temperature=1.0` means that each next token is drawn with the probability
# that the model gives it, so the four answers may differ.

# %%
model = "assets/parity-base"  # comes with the package
before = grpo.generate(
    model=model, prompts=prompt, n=4, temperature=1.0, max_completion_length=32, seed=1
)
before[["prompt", "completion"]]

# %% [markdown]
# The thought is mostly `-`: no thought at all. Without steps the model can only guess, and a guess
# is right half of the time.
#
# ## The reward
#
# A *reward* gives each answer a number. We use two that look at the text and nothing else:
# `accuracy` is 1 if the answer is right, and `format` is 1 if all tags are in their places. Neither
# of them looks at what stands in the thought. Here they score three texts that we write by hand.

# %%
by_hand = [
    f"<think>-</think><answer>{answer}</answer>",
    f"<think>{step_by_step}</think><answer>{1 - int(answer)}</answer>",
    f"I think it is {answer}",
]
grpo.score(
    rewards=["accuracy", "format"],
    dataset=[{"prompt": prompt, "completion": text, "answer": answer} for text in by_hand],
)[["completion", "accuracy", "format"]]

# %% [markdown]
# The first text is paid in full, although it did not think. The second thought correctly and then
# answered wrongly, so it gets the point for its form only. The third has no tags, and gets nothing.
#
# ## Training
#
# GRPO, *Group Relative Policy Optimization*, repeats one step:
#
# 1. Take some prompts and let the model answer each of them eight times. The eight answers to one
#    prompt are a *group*.
# 2. Score every answer.
# 3. Compare the answers within their group. What is better than the average of its group becomes a
#    bit more likely, what is worse becomes a bit less likely.
#
# That is all. The next cell does it with 32 prompts a step. `parity-r1-zero` is the name of a
# *recipe*, a file with all the settings of a run; whatever you write beside it replaces its
# settings. Before and after training the model sits an exam on problems that are never trained on.

# %%
run = grpo.train(
    "parity-r1-zero",
    max_steps=steps,
    eval={"num_tasks": tasks},
    dir="runs/r1-zero",
    overwrite=True,  # run the cell again and it starts anew
)

# %% [markdown]
# ## It writes more because it pays
#
# Each point of a curve is the mean over the answers of one training step. The dots with bars are
# the two exams. *Length* counts tokens: characters and tags.

# %%
run.plot("reward", "accuracy", "completions/mean_length")

# %% [markdown]
# The reward rises, and so does the length. (If a curve drops for a step or two, one update was too
# large. The model then makes mistakes in its thoughts, these are paid less, and it recovers.)
#
# Nobody asked for long answers. So why does the model write more? Look at the first three training
# steps, and split the answers into those that thought in steps and those that did not.

# %%
import pandas as pd

early = pd.concat([run.completions(step) for step in run.metrics.index[:3]])
thought = early["completion"].str.extract(r"<think>(.*?)</think>")[0].fillna("")
early["thought"] = (thought.str.len() > 1).map({True: "in steps", False: "none"})
early.groupby("thought").agg(
    answers=("accuracy", "size"), right=("accuracy", "mean"), advantage=("advantage", "mean")
).round(2)

# %% [markdown]
# Few answers had steps. But these were right far more often, so they were the better ones of their
# groups, and training made them more likely. The column `advantage` says so in one number. Here is
# what it means.
#
# ## The advantage, by hand
#
# This is one group of the first step: eight answers to one prompt.

# %%
first = run.completions(step=1)
mixed = first.groupby("prompt", sort=False)["accuracy"].transform("std") > 0
group = first[first["prompt"] == first.loc[mixed, "prompt"].iloc[0]]
group[["prompt", "completion", "accuracy", "format", "reward", "advantage"]]

# %% [markdown]
# The advantage of an answer is its reward minus the mean reward of its group, in units of the
# group's standard deviation. (A ten-thousandth is added to the latter, so that nobody divides by
# zero.) Let us compute it ourselves and put it beside the column.

# %%
reward = group["reward"]
ours = (reward - reward.mean()) / (reward.std() + 1e-4)
print(f"mean {reward.mean():.3f}, standard deviation {reward.std():.3f}")
pd.DataFrame({"reward": reward, "ours": ours, "from the run": group["advantage"]}).round(4)

# %% [markdown]
# An answer with a positive advantage becomes more likely, token by token; one with a negative
# advantage becomes less likely. If all eight answers get the same reward, every advantage is 0 and
# the group teaches nothing: there was nothing to compare.
#
# ## The same prompt, before and after

# %%
after = run.generate(prompt, n=4, temperature=1.0, seed=1)
pd.concat({"before": before["completion"], "after": after["completion"]}).to_frame("completion")

# %% [markdown]
# Are the steps in these thoughts the right ones? This cell compares each with the running parity.

# %%
for text in after["completion"]:
    steps_written = text.partition("<think>")[2].partition("</think>")[0]
    right_steps = steps_written == step_by_step
    print(f"{steps_written:18}", "all steps right" if right_steps else "not the running parity")

# %% [markdown]
# ## The exam
#
# One prompt proves little. These are the figures of the exam. `greedy accuracy` takes the most
# likely token each time, `pass@1` samples. The interval says how far the difference might be off
# because the exam has only so many problems: 95% of such intervals contain the true value.

# %%
exam = pd.DataFrame(run.summary["paired"]).set_index("figure")
exam["95% interval"] = [f"[{low:+.3f}, {high:+.3f}]" for low, high in exam["ci"]]
exam[["before", "after", "difference", "95% interval"]].round(3)

# %% [markdown]
# ## Was it the reward?
#
# Something improved. To know why, we change one thing and repeat: now the reward is a coin toss.
# Accuracy is still measured, but with weight 0 it pays nothing. If the model improves all the same,
# our explanation is wrong.

# %%
control = grpo.train(
    "parity-random-reward",
    rewards=["random", "accuracy"],
    reward_weights=[1.0, 0.0],
    max_steps=steps,
    eval={"num_tasks": tasks},
    dir="runs/random-reward",
    overwrite=True,
)

# %%
grpo.plot([run, control], "accuracy", "completions/mean_length")

# %% [markdown]
# With a coin for a reward the curve has nowhere to go: an answer in steps wins no more often than a
# guess. What the first run learned, it learned from being told right or wrong.
#
# ## What this shows, and what it does not
#
# - The model found out *when to think*, from rewards for the final answer only. That is the effect
#   that DeepSeek-R1-Zero is known for.
# - It did not invent the steps. Of the texts that it had read before, 15% had them. Reinforcement
#   learning made a rare habit common. How much of a large model's reasoning is new in
#   this sense is a question that researchers still argue about.
# - The problem is tiny, and so is the model. The method is the same for larger ones.
#
# ## One thing to try
#
# In the cell of the control, replace `"random"` by `"format"` and run it again. Now the model is
# paid for its tags alone, and these are nearly always right already. What will the two curves do?
# Think first. Then look at `control.metrics["frac_reward_zero_std"]`, the share of groups whose
# answers all got the same reward.
