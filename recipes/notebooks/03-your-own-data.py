# ---
# jupyter:
#   grpo:
#     small:
#       steps: 2
#       exam_rows: 16
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
# # Your own data
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# Rows for training may be a list of dicts, a file, a data frame or a data set. Here you make rows
# of a task that the model has never seen, look at them before they are used, train on them, and
# measure what was learned on rows that you kept back. You also see what happens to a bad row.
#
# It takes about a minute on two CPU cores. If the words *group* and *reward* are new to you,
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
steps = 60  # training steps
exam_rows = 128  # rows that are kept for the exam

# %% [markdown]
# ## A list of dicts
#
# A row needs a `prompt`. It may have any other columns, and your rewards get them. The task here:
# are there more ones or more zeros among the 16 bits? The column `label` has the right answer, in
# our words. The column `ones` is something that we know about the row and want to look at later.

# %%
import random

numbers = random.Random(0).sample(range(2**16), 2000)
rows = [
    {
        "prompt": f"{n:016b}=",
        "label": "more ones" if n.bit_count() > 8 else "more zeros",
        "ones": n.bit_count(),
    }
    for n in numbers
    if n.bit_count() != 8  # as many ones as zeros: no right answer
]
rows[:2]

# %% [markdown]
# ## A file, and a look at it
#
# The same rows as a CSV file, as you may have them. Any path of a `.csv`, `.jsonl`, `.json` or
# `.parquet` file can be given as `dataset=`. All cells of a CSV file are text for the trainer, so
# that `007` stays `007`. A data frame keeps its types.

# %%
import pandas as pd

pd.DataFrame(rows).to_csv("bits.csv", index=False)
frame = pd.read_csv("bits.csv")
frame.head(3)

# %% [markdown]
# Look at rows before you train on them. Prompts that come twice, empty cells and one label for all
# are the usual surprises. In a terminal, `grpo data bits.csv` prints these figures and more.

# %%
pd.Series(
    {
        "rows": len(frame),
        "prompts that come twice": frame["prompt"].duplicated().sum(),
        "empty cells": frame.isna().sum().sum(),
        "longest prompt, characters": frame["prompt"].str.len().max(),
        "share of 'more ones'": round((frame["label"] == "more ones").mean(), 3),
    },
    dtype=object,  # counts stay whole numbers
).to_frame("bits.csv")

# %% [markdown]
# ## Rows that are held out
#
# Rows that a model was trained on say little about what it learned. So keep some back: the first
# part is the exam, the rest is for training. Without `eval_dataset`, a tenth of the prompts is held
# out for you.

# %%
exam, training = frame[:exam_rows], frame[exam_rows:]
print(len(training), "rows to train on,", len(exam), "rows for the exam")

# %% [markdown]
# ## A reward that reads your columns
#
# This model can write `0` or `1` between its `<answer>` tags, and our labels are words. The reward
# knows both. Every column comes by its name, a list with one value for each completion.


# %%
def agrees(completions, label, **columns):
    """1 where the answer says what the label says."""
    means = {"<answer>1</answer>": "more ones", "<answer>0</answer>": "more zeros"}
    return [
        1.0 if means.get(text.partition("</think>")[2]) == right else 0.0
        for text, right in zip(completions, label, strict=True)
    ]


written = training.head(2).assign(completion="<think>-</think><answer>1</answer>")
grpo.score(rewards=agrees, dataset=written)[["prompt", "completion", "label", "agrees"]]

# %% [markdown]
# ## Train

# %%
settings = {
    "model": "assets/parity-base",  # comes with the package
    "prompts_per_step": 32,
    "num_generations": 8,
    "max_completion_length": 32,
    "overwrite": True,  # run a cell again and its run starts anew
}
run = grpo.train(
    rewards=agrees,
    dataset=training,
    eval_dataset=exam,
    max_steps=steps,
    learning_rate=3e-4,
    lr_scheduler_type="linear",
    eval={"num_samples": 2},
    name="bits",
    **settings,
)

# %%
run.plot("reward", "completions/mean_length")

# %% [markdown]
# The model had read texts about another question (is the number of ones odd?), so at first its
# answers to ours are no better than a coin. The reward teaches it the new question. For this one it
# needs no thought in steps: a look at all the bits at once is enough.
#
# ## Before and after, on your rows
#
# `run.evaluate` asks the first model and the trained one the same questions, with the same random
# numbers, and compares them row by row. It takes any rows, so you can also give it data that came
# later. Here it gets the rows that are nearly balanced, the hard ones.

# %%
hard = exam[exam["ones"].between(7, 9)]
comparison = run.evaluate(hard, name="bits-hard", num_samples=2)
comparison

# %% [markdown]
# Which rows are hard for the trained model? A data frame makes this a question of one line: ask it
# all rows of the exam, score the answers, and group by a column.

# %%
answers = run.generate(list(exam["prompt"]), greedy=True)
scored = grpo.score(rewards=agrees, dataset=exam.merge(answers, on="prompt"))
by_ones = scored.groupby("ones")["agrees"].agg(rows="size", right="mean")
axes = by_ones["right"].plot.bar(
    figsize=(6, 2.5), xlabel="ones among 16 bits", ylabel="share of right answers", rot=0
)

# %% [markdown]
# ## Prompts that are messages
#
# Chat models take a list of messages. Write them into `prompt`, and the model's chat template turns
# them into text. Our tiny model has no template, so this cell brings one, which writes nothing but
# the content and the `=` that ends a question. Your chat model has its own; you would leave out
# `chat_template`.
#
# Rewards then get messages as well, as in TRL: a completion is a list with one message of the
# assistant, and its `content` is the text.


# %%
def agrees_in_chat(completions, **columns):
    return agrees([messages[-1]["content"] for messages in completions], **columns)


template = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'user' %}={% endif %}{% endfor %}"
)
chats = [
    {**row, "prompt": [{"role": "user", "content": row["prompt"].removesuffix("=")}]}
    for row in rows[:100]
]
talk = grpo.train(
    dataset=chats,
    rewards=agrees_in_chat,
    data={"template": "chat", "chat_template": template},
    max_steps=2,
    eval={"num_tasks": 8, "num_samples": 1},
    name="chat",
    **settings,
)
talk.completions()[["prompt", "completion", "reward"]].head(3)

# %% [markdown]
# ## A bad row
#
# Rows are read before anything is trained. What cannot be used is refused in one sentence, with the
# number of the row. These are three common mistakes: a row without a prompt, a number in place of a
# text, and characters that this model does not know.

# %%
bad_rows = [
    {"label": "more ones"},
    {"prompt": 1101, "label": "more ones"},
    {"prompt": "Are there more ones in 1101?", "label": "more ones"},
]
for bad in bad_rows:
    try:
        grpo.train(rewards=agrees, dataset=[*rows[:20], bad], max_steps=1, name="bad", **settings)
    except grpo.GrpoError as error:
        print(bad, "\n   ", error, "\n")

# %% [markdown]
# Nothing was trained, and no folder was left behind. Correct the row, or leave it out.
#
# [Data](../../docs/data.md) has the details: other names of columns, the Hugging Face hub, large
# files, mixtures of several sources.
#
# ## One thing to try
#
# Make the question harder: is the number of ones divisible by three? Change `label` in the cell
# that makes the rows, and the two phrases in `agrees`, and train again. Is one look at all the bits
# still enough? Before you trust the curve, work out how often a model is right that always gives
# the more frequent answer.
