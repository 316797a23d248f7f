# ---
# jupyter:
#   grpo:
#     small:
#       steps: 1
#       tasks: 4
#       samples: 2
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
# # SmolLM2 learns products
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# The models of the other notebooks are so small that they know one task and nothing else. This one
# is a real language model: SmolLM2 with 135 million parameters, which has read two trillion tokens
# and follows instructions. It is asked for products such as 7 times 8, and is told after each
# answer only whether it was right.
#
# It takes about three minutes on two CPU cores, once the model is there. The first time, the model
# is fetched: 98 MB.

# %%
# Installs the toolkit where it is missing. A package that is installed already is not replaced.
import importlib.util
import pathlib
import subprocess
import sys

SOURCE = ""  # a wheel, or "git+https://…" of the repository; empty: the checkout of this notebook
EXTRAS = "smollm2"

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
steps = 20  # training steps; the recipe has 80
tasks = 22  # products that are kept for the exam before and after training
samples = 8  # answers to each of them in the exam

# %% [markdown]
# ## The model
#
# The checkpoint is made of a package that pip finds, so that no account is needed. It holds the
# weights in 4 bits; they are written as an ordinary checkpoint of 269 MB into the folder
# `models/`. With the Hugging Face Hub in reach you can write
# `model = "HuggingFaceTB/SmolLM2-135M-Instruct"` instead.

# %%
import pandas as pd

from grpo.recipes import make_smollm2

model = str(make_smollm2.make("models/smollm2-135m-instruct"))
question = "What is {a} * {b}? Put the final answer in \\boxed{{}}."

messages = [
    [{"role": "user", "content": question.format(a=a, b=b)}]
    for a, b in [(7, 8), (3, 4), (12, 11), (6, 9)]
]
before = grpo.generate(model=model, prompts=messages, max_completion_length=48, seed=3)
before[["completion", "tokens"]]

# %% [markdown]
# It writes a sentence, often the right kind of sentence, and the number in it is often wrong. (Some
# of these four products will be trained, others not. The exam below has only ones that are not.)
#
# ## The task and the rewards
#
# A row is a product of two numbers from 2 to 12. Two rewards look at the answer. `lenient` takes
# the last number in the text, and pays 1 point if it is the product. `strict` takes only what
# stands in `\boxed{}`, and pays half a point. Here are both on three texts that we write by hand.

# %%
rewards = [
    {"name": "accuracy", "label": "lenient", "args": {"extraction": "lenient"}},
    {"name": "accuracy", "label": "strict", "weight": 0.5},
]
by_hand = ["7 * 8 = 56", "The answer is \\boxed{56}.", "7 * 8 is 54, I think."]
row = {"prompt": question.format(a=7, b=8), "answer": "56"}
grpo.score(rewards=rewards, dataset=[row | {"completion": text} for text in by_hand])[
    ["completion", "lenient", "strict"]
]

# %% [markdown]
# ## Training
#
# Eight prompts a step, eight answers each. `smollm2-multiplication` is a recipe that comes with the
# package; only what is written here differs from it. The exam asks products that are never trained
# on, so a model that merely learns the others by heart gains nothing there. The learning rate is
# twice that of the recipe, which has four times as many steps.

# %%
import torch

old_gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
dtype = "float16" if old_gpu else "bfloat16"  # the recipe's type, which a T4 does not have

run = grpo.train(
    "smollm2-multiplication",
    model=model,
    max_steps=steps,
    learning_rate=4e-5,
    warmup_steps=min(3, steps),
    eval={"num_tasks": tasks, "num_samples": samples},
    dir="runs/smollm2",
    overwrite=True,  # run the cell again and it starts anew
    **{"model.dtype": dtype},
)

# %%
run.plot("rewards/lenient/mean", "completions/mean_length", "entropy")

# %% [markdown]
# Two things happen at once. The answers get shorter, and more of them are right. The two may be
# linked. This is the first step, before anything was learned: are short answers right more often?

# %%
first = run.completions(step=1)
length = pd.cut(first["tokens"], [0, 12, 24, 47, 48], labels=["to 12", "to 24", "to 47", "cut off"])
first.groupby(length, observed=True).agg(
    answers=("lenient", "size"), right=("lenient", "mean")
).round(2)

# %% [markdown]
# ## The exam
#
# The same products before and after, each with an interval: 95% of such intervals contain the true
# difference. A star marks a difference whose interval excludes 0. `greedy accuracy` takes the most
# likely token each time, `pass@1` samples.

# %%
exam = pd.DataFrame(run.summary["paired"]).set_index("figure")
low, high = exam["ci"].str[0], exam["ci"].str[1]
exam["95% interval"] = [f"[{a:+.3f}, {b:+.3f}]" for a, b in zip(low, high, strict=True)]
exam["star"] = ((low > 0) | (high < 0)).map({True: "*", False: ""})
exam[["before", "after", "difference", "95% interval", "star"]].round(3)

# %% [markdown]
# Compare the two kinds of accuracy. Where the greedy one hardly moves, the model knew most products
# before it was trained. What training changed is what it says when it samples: there it came to
# say what it knew.
#
# ## The same questions again

# %%
after = run.generate(messages, max_completion_length=48, seed=3)
both = {"before": before["completion"], "after": after["completion"]}
pd.DataFrame(both).rename(index=dict(enumerate(["7 * 8", "3 * 4", "12 * 11", "6 * 9"])))

# %% [markdown]
# ## What it learned, and what it did not
#
# It learned to say the product, and to say little else. It did not learn the box, although a box
# pays half a point more. Look at the column `strict` of the completions:

# %%
last = run.completions(step=-1)
pd.DataFrame(
    {
        when: {
            "answers": len(of),
            "right, anywhere": of["lenient"].mean(),
            "right, in a box": of["strict"].mean(),
            "answers with a box": of["completion"].str.contains("boxed").mean(),
        }
        for when, of in {"first step": first, "last step": last}.items()
    }
).round(3)

# %% [markdown]
# Reinforcement learning makes more likely what the model does now and then. A right answer in a box
# is so rare at first that a group of eight seldom has one, and so it is seldom paid. To teach the
# box, show it: some demonstrations and [fine-tuning](../../docs/sft.md) come first, as in
# [the R1 pipeline](05-r1-pipeline.ipynb).
#
# ## On a GPU
#
# The same cell is meant to run there, with `bfloat16` on a GPU from Ampere on and `float16` on an
# older one such as a T4. Give it more to do: `prompts_per_step=32`, `max_steps=80`, and for
# sampling with vLLM `**{"rollout.engine": "vllm"}` ([scaling](../../docs/scaling.md)). This has not
# been run on a GPU yet.
#
# ## One thing to try
#
# Ask for sums instead: `data={"args": {"prompt": "What is {a} + {b}?"}}` will not do, because the
# answers are still products. Make rows of your own, `[{"prompt": [{"role": "user", "content":
# "What is 7 + 8?"}], "answer": "15"}, ...]`, and give them as `dataset=`. Does the model need as
# many steps as for products?
