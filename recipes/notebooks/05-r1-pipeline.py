# ---
# jupyter:
#   grpo:
#     small:
#       steps: 2
#       tasks: 8
#       sampled: 40
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
# # The R1 pipeline
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# DeepSeek-R1-Zero is reinforcement learning alone. It learns to think, but its thoughts are hard
# to read and switch between languages. DeepSeek-R1 mends that with a few more stages. Here you
# run all of them, one cell each, on a tiny model, and ask the model of every stage the same
# question.
#
# It takes about a minute on two CPU cores. The base model comes with the package.

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
steps = 15  # training steps of each reinforcement learning stage
tasks = 100  # held-out questions of each kind that every model is asked
sampled = 400  # prompts that rejection sampling answers

# %% [markdown]
# ## The task and the base model
#
# The question is a row of 12 bits. `011010100101=` asks for the parity: is the number of ones
# even (`0`) or odd (`1`)? That takes a thought, a running parity in words: `odd` and `even`, or 奇
# and 偶. `011010100101-` asks only for the last bit, which needs no thought.
#
# The base model has read both. About a third of its parity texts had a thought, in words that
# switch between English and Chinese at random. So it *can* think, but mostly it answers at once.
#
# After each stage we ask the new model the same held-out questions, each twice. `right` is the
# share of right answers, and `English` the share of English words in the thoughts that have
# words. `last bit` is the share of right answers to the quick question.

# %%
import pandas as pd
from IPython.utils.capture import capture_output

question = "011010100101="
parity = {"source": "bilingual", "args": {"bits": 12}}
last_bit = {"source": "bilingual", "args": {"bits": 12, "ask": "last"}}
raw = {"template": "raw", "max_prompt_length": 16}  # a prompt is used as it stands
measured, answers = {}, {}


def exam(name, model, data):
    """Figures of one model on held-out questions of one kind."""
    with capture_output():
        run = grpo.evaluate(
            model=model,
            dataset=None,  # `data` names the source
            rewards=["accuracy", "language_consistency", "format"],
            data={**data, **raw},
            num_tasks=tasks,
            num_samples=2,
            max_completion_length=20,
            dir=f"runs/r1/exam-{name}-{data['args'].get('ask', 'parity')}",
            overwrite=True,
        )
    return next(iter(run.summary["details"].values()))


def ask(name, model):
    """Put a model to both exams and to our question; the table of all models so far."""
    thinking, quick = exam(name, model, parity), exam(name, model, last_bit)
    measured[name] = {
        "right": thinking["rewards"]["accuracy"]["mean"],
        "English": thinking["rewards"]["language_consistency"]["mean"],
        "tokens": thinking["mean_length"],
        "last bit": quick["rewards"]["accuracy"]["mean"],
    }
    said = grpo.generate(
        model=model, prompts=question, temperature=0.6, max_completion_length=20, seed=1
    )
    answers[name] = said["completion"][0]
    return pd.DataFrame(measured).T.round(2)


base = "assets/mini-r1-base"
ask("base", base)

# %% [markdown]
# ## Stage 1: R1-Zero
#
# Reinforcement learning from the base, with two rules: the answer is right, and it has the form
# that was asked for. Nothing says how to think, nor in which language.

# %%
settings = {
    "num_generations": 8,
    "prompts_per_step": 32,
    "max_completion_length": 20,
    "max_steps": steps,
    "learning_rate": 2e-4,
    "eval": {"num_tasks": 8},
    "overwrite": True,
}
zero = grpo.train(
    model=base,
    data={**parity, **raw},
    rewards=["accuracy", "format"],
    dir="runs/r1/zero",
    **settings,
)
zero.plot("reward", "completions/mean_length")

# %%
ask("zero", zero)

# %% [markdown]
# Compare the two rows. The completions are longer, because the model thinks more often, and more
# answers are right. The words are still a mix of two languages: no reward looks at them.
#
# ## Stage 2: cold start
#
# A few demonstrations show the base how a readable thought looks. This is plain fine-tuning, on
# 12 rows in English.

# %%
import json
from importlib.resources import files
from pathlib import Path


def read(file):
    """Prompts and completions of a file of JSON lines."""
    rows = map(json.loads, Path(file).read_text(encoding="utf-8").splitlines())
    return [{key: row[key] for key in ("prompt", "completion")} for row in rows]


assets = Path(str(files("grpo.recipes"))) / "assets"
demonstrations = read(assets / "mini-r1-cold-start.jsonl")
cold = grpo.sft(
    model=base,
    dataset=demonstrations,
    num_train_epochs=10,
    learning_rate=3e-4,
    batch_size=4,
    max_length=64,
    dir="runs/r1/cold",
    overwrite=True,
)
print(*demonstrations[0].values())
ask("cold", cold)

# %% [markdown]
# ## Stage 3: reinforcement learning with a language reward
#
# Training for right answers alone could bring the mix of languages back. So a third reward counts
# the share of the words of a thought that are English.

# %%
dev = grpo.train(
    model=cold,
    data={**parity, **raw},
    rewards=["accuracy", "format", "language_consistency"],
    dir="runs/r1/dev",
    **settings,
)
dev.plot("reward", "rewards/language_consistency/mean")

# %%
ask("dev", dev)

# %% [markdown]
# Look at `last bit`, too. A model that is trained on one kind of question may get worse at
# another, and the next two stages are there for that.
#
# ## Stage 4: rejection sampling
#
# The model writes its own training data. It answers each prompt twice, and only an answer that is
# right, finished, in English and not a repetition is kept, at most one for a prompt.

# %%
samples = grpo.reject(
    model=dev,
    dataset=None,  # `data` names the source
    data={**parity, **raw},
    rewards=["accuracy"],
    rollout={"prompts_per_step": 100, "num_generations": 2, "max_completion_length": 20},
    filter={"num_tasks": sampled, "keep": 1, "language": "en", "max_repetition": 0.9},
    dir="runs/r1/samples",
    overwrite=True,
)
counts = {"kept": samples.summary["rows"], **samples.summary["dropped"]}
pd.DataFrame({"completions": counts})

# %% [markdown]
# `duplicate` is a second answer with the same text as the first. `language` is a thought with too
# many words that are not English. Here are three of the rows that were kept.

# %%
kept = read(samples.folder / "data" / "train.jsonl")
for row in kept[:3]:
    print(row["prompt"], row["completion"])

# %% [markdown]
# ## Stage 5: fine-tuning on what was kept
#
# The base is taught once more, from the start. It gets the rows that were kept and, so that it
# does not forget them, some questions that need no thought.

# %%
quick = read(assets / "mini-r1-general.jsonl")[: len(kept) // 4]
sft = grpo.sft(
    model=base,
    dataset=kept + quick,
    num_train_epochs=3,
    learning_rate=3e-4,
    batch_size=16,
    max_length=64,
    dir="runs/r1/sft",
    overwrite=True,
)
ask("sft", sft)

# %% [markdown]
# ## Stage 6: reinforcement learning for everything
#
# The last stage trains on both kinds of questions, each with rewards of its own. Three quarters
# are parity, with the rewards of stage 3; one quarter is the last bit, where a short answer is
# rewarded as well.

# %%
consistent = [{"name": name} for name in ("accuracy", "format", "language_consistency")]
brief = {"name": "length_cosine", "args": {"max_length": 20}}
parts = [
    {"name": "reasoning", **parity, "weight": 3},
    {"name": "general", **last_bit, "weight": 1},
]
routes = {"reasoning": consistent, "general": [*consistent[:2], brief]}
r1 = grpo.train(
    model=sft,
    data={"source": "mixture", "args": {"parts": parts}, **raw},
    rewards=[{"name": "routed", "args": {"routes": routes}}],
    dir="runs/r1/r1",
    **settings,
)
ask("r1", r1)

# %% [markdown]
# ## The same question, six models

# %%
print(question, "  right answer:", question.count("1") % 2)
for name, answer in answers.items():
    print(f"{name:>5}  {answer}")

# %%
import matplotlib.pyplot as plt

table = pd.DataFrame(measured).T
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
for name, mark in (("right", "o"), ("English", "s"), ("last bit", "^")):
    axis.plot(table.index, table[name], marker=mark, label=name)
axis.set(ylim=(0, 1.05), ylabel="share", title="the model after each stage")
axis.legend()
figure.show()

# %% [markdown]
# How to read it: `right` rises with the first reinforcement learning, `English` with the cold
# start, and after that there is little left to gain in either. The later stages are there for
# `last bit`, and for a model that was trained on its own checked answers alone. How far `last
# bit` falls in between differs from run to run at this size. A difference of a few hundredths is
# within the noise of so few questions.
#
# The stages here are short and start from a base that was trained before. [The R1 recipe in
# minutes](../../docs/r1.md) has the whole of it, from random weights, with three seeds and
# intervals: there R1-Zero is right nearly always and still mixes its languages, the stages in the
# middle get worse at the quick question, and the last two bring it back. It is one command, `grpo
# train mini-r1`. Several calls in one folder are also `grpo.pipeline([dict(kind="sft", ...),
# dict(kind="rl", ...)])`.
#
# ## One thing to try
#
# Add `"language_consistency"` to the rewards of stage 1 and run all cells again. R1-Zero then
# writes in one language. Is it right as often after as many steps?
