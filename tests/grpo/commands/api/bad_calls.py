"""Calls that are wrong, each as a user would write it, and what the answer has to say.

name -> (the end of the script, pieces of the sentence). A script starts with `PRELUDE`; the last
line that is written here is the one that the sentence names, where it names no line of a reward.
"""

from __future__ import annotations

from pathlib import Path

import grpo

FOLDER = str(Path(str(grpo.__file__)).parent / "recipes" / "assets" / "parity-base")
PRELUDE = f"""
import asyncio, os, sys, threading, time
import grpo
BASE = {FOLDER!r}
ROWS = [{{"prompt": f"{{n * 2654435761 % 65536:016b}}=", "answer": str(n % 2)}} for n in range(24)]
PAIRS = [{{"prompt": "0=", "completion": "1"}}] * 4
def short(completions, **_):
    return [text.count('1') / 10 for text in completions]
GOOD = dict(
    model=BASE, dataset=ROWS, rewards=[short], max_steps=1, num_generations=2, prompts_per_step=2,
    max_completion_length=8, eval={{"num_tasks": 1, "num_samples": 1}}, threads=1,
    learning_rate=1e-3,
)
def loaded():
    from transformers import AutoModelForCausalLM, AutoTokenizer
    return AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
"""


def train(before: str = "", **keywords: str) -> str:
    """A script that trains with these keywords, each a piece of Python."""
    given = ", ".join(f"{name}={value}" for name, value in keywords.items())
    return f"{before}\ngrpo.train(**GOOD | dict({given}))"


def reward(body: str, takes: str = "completions, **_", kind: str = "def", **more: str) -> str:
    """A script that trains with a reward of this body."""
    lines = body.replace("\n", "\n    ")
    return train(f"{kind} bad({takes}):\n    {lines}", **{"rewards": "[bad]"} | more)


MESSAGES = "[{'prompt': [{'role': 'user', 'content': r['prompt']}]} for r in ROWS]"
TINY_BERT = "vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2"
SEVERAL = "model, tokenizer = loaded()\n"

ARGUMENTS: dict[str, tuple[str, str]] = {
    "recipe of a wrong type": ("grpo.train(3, **GOOD)", "recipe = 3 is of type int; valid: the"),
    "recipe with a typo": ("grpo.train('gsm9k')", "unknown recipe 'gsm9k'"),
    "two positional": ("grpo.train(BASE, ROWS)", "too many positional.*it takes recipe, model="),
    "nothing": ("grpo.train()", "model is missing"),
    "no dataset": ("grpo.sft(model=BASE)", "missing a required argument: 'dataset'"),
    "name": (train(name="'../x'"), "name = '../x': it names the folder"),
    "overwrite": (train(overwrite="'yes'"), "overwrite = 'yes': it should be True or False"),
    "kind": (train(kind="'sft'"), "kind = 'sft', and this function runs .*'rl'"),
    "sft with rewards": (
        "grpo.sft(model=BASE, dataset=PAIRS, rewards=[short])",
        "'sft' takes no rewards; it takes model, tokenizer, dataset",
    ),
    "sft with held-out rows": (
        "grpo.sft(model=BASE, dataset=PAIRS, eval_dataset=PAIRS)",
        "takes no eval_dataset",
    ),
    "sft without completions": (
        "grpo.sft(model=BASE, dataset=ROWS)",
        "row 1 of dataset has no column 'completion'",
    ),
    "teacher": (
        "grpo.distill(model=BASE, teacher=3, dataset=ROWS, rewards=[short])",
        "teacher is of type int; valid",
    ),
    "second model": (
        "grpo.evaluate(model=[BASE, 3], dataset=ROWS, rewards=['accuracy'])",
        "model_2 is of type int",
    ),
    "no models": ("grpo.evaluate(model=[], dataset=ROWS, rewards=[short])", "at least 1 item"),
    "prompts": ("grpo.generate(model=BASE, prompts=[3])", r"prompts\[0\] = 3 is of type int"),
    "prompts of a wrong type": (
        "grpo.generate(model=BASE, prompts=3)",
        "prompts is of type int; give",
    ),
    "no prompts": ("grpo.generate(model=BASE, prompts=[])", r"prompts = \[\]: give at least one"),
    "n": ("grpo.generate(model=BASE, prompts=['0='], n=0)", "n = 0: valid are 1, 2, 3"),
    "generate with rewards": (
        "grpo.generate(model=BASE, prompts=['0='], rewards=[short])",
        "takes no rewards; grpo.evaluate",
    ),
    "no stages": ("grpo.pipeline([])", r"stages = \[\]: give a list of dicts"),
    "one stage": ("grpo.pipeline({'kind': 'rl', **GOOD})", "stages = {.*: give a list of dicts"),
    "a stage": ("grpo.pipeline([3])", r"stages\[0\] = 3 is of type int"),
    "kind of a stage": ("grpo.pipeline([{'kind': 'dpo', **GOOD}])", "unknown kind 'dpo'. Valid"),
    "two stages of a name": ("grpo.pipeline([GOOD, GOOD])", "stage name 'rl' is taken"),
    "no run": ("grpo.load_run('runs/nowhere')", "is not a run"),
    "run of a wrong type": ("grpo.load_run(3)", "folder = 3 is of type int, not a path"),
}
MODELS: dict[str, tuple[str, str]] = {
    "typo": (train(model="'parity-bas'"), "model.path = 'parity-bas': there is no such folder"),
    "without weights": (train("os.makedirs('empty')", model="'empty'"), "is an empty folder"),
    "number": (train(model="3"), "model is of type int; valid: a folder, a hub id, a run, or"),
    "class": (
        train("import transformers", model="transformers.LlamaForCausalLM"),
        "the class LlamaForCausalLM; give an object of it",
    ),
    "DataParallel": (
        train(SEVERAL + "import torch", model="torch.nn.DataParallel(model)"),
        "of type DataParallel; give model.module",
    ),
    "PeftModel": (
        train(
            SEVERAL + "import peft\nlora = peft.LoraConfig(r=2, target_modules=['q_proj'])",
            model="peft.PeftModel(model, lora)",
        ),
        "give model.merge_and_unload()",
    ),
    "encoder": (
        train(
            "from transformers import BertConfig, BertForMaskedLM",
            model=f"BertForMaskedLM(BertConfig({TINY_BERT}, intermediate_size=16))",
        ),
        "BertForMaskedLM, which generates no text; give a causal language model",
    ),
    "meta": (
        train(SEVERAL + "model.lm_head = model.lm_head.to('meta')", model="model"),
        "no numbers in 'lm_head.weight', which is on the meta device",
    ),
    "without a tokenizer": (
        train(SEVERAL + "model.name_or_path = ''", model="model"),
        "no tokenizer was found for it .*pass tokenizer=",
    ),
    "NaN": (
        train(SEVERAL + "model.lm_head.weight.data.fill_(float('nan'))", model="model"),
        "holds weights that are not numbers",
    ),
    "tokenizer of a wrong type": (train(tokenizer="3"), "tokenizer is of type int; valid: a tok"),
    "tokenizer of another vocabulary": (
        train(
            SEVERAL + "tokenizer.add_tokens(['<x>', '<y>'])", model="model", tokenizer="tokenizer"
        ),
        "tokens that the model has no embedding for, which has 10: '<x>'",
    ),
    "tokenizer without a template": (
        train(
            SEVERAL + "tokenizer.chat_template = None",
            model="model",
            tokenizer="tokenizer",
            dataset=MESSAGES,
        ),
        "chat_template",
    ),
}
ROWS: dict[str, tuple[str, str]] = {
    "none": (train(dataset="[]"), "dataset has no rows"),
    "dict": (train(dataset="ROWS[0]"), r"dataset is one dict .*give \[dataset\]: a list of dicts"),
    "columns": (train(dataset="{'prompt': ['0='], 'answer': []}"), "differ in length"),
    "number": (train(dataset="3"), "dataset is of type int; give a list of dicts"),
    "text": (train(dataset="[ROWS[0], 7]"), "row 2 of dataset is of type int"),
    "a file that is not there": (train(dataset="'rows.jsonl'"), "rows.jsonl does not exist"),
    "neither path nor id": (train(dataset="'no such set'"), "'no such set'.* cannot be loaded"),
    "no prompt": (train(dataset="[{'question': '0='}] * 24"), "no column 'prompt'. Columns: que"),
    "prompt of a wrong type": (train(dataset="[{'prompt': 3}] * 24"), "must be non-empty text"),
    "empty prompt": (train(dataset="[{'prompt': ''}] * 24"), "must be non-empty text"),
    "half a message": (
        train(dataset="[{'prompt': [{'role': 'user'}]}] * 24"),
        "a list of messages with role and content, not",
    ),
    "one row": (train(dataset="ROWS[:1]"), "no held-out tasks to evaluate on"),
    "column of a reward's own name": (
        train(dataset="[{**row, 'trainer_state': 4} for row in ROWS]"),
        "dataset has a column 'trainer_state'.* rename the column",
    ),
    "DatasetDict": (
        train(
            "import datasets",
            dataset="datasets.DatasetDict({'train': datasets.Dataset.from_list(ROWS)})",
        ),
        r"give one of them: dataset\['train'\]",
    ),
    "closed generator": (
        train("rows = (row for row in ROWS)\nrows.close()", dataset="rows"),
        "has no rows; a generator gives its rows only once",
    ),
    "generator that fails": (
        train("def rows():\n    yield ROWS[0]\n    raise KeyError('x')", dataset="rows()"),
        "dataset raised KeyError: 'x' at ",
    ),
    "held-out rows of a wrong type": (train(eval_dataset="3"), "eval_dataset is of type int"),
    "held-out rows alone": (
        "grpo.train('parity-r1-zero', eval_dataset=ROWS)",
        "eval_dataset goes with dataset=",
    ),
}
