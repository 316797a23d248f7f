"""Scripts of TRL's documentation run here with one import line changed.

They are TRL's word for word, but for that line. There is no network: a process of its own finds
tiny models and rows in the caches of `huggingface_hub` and `datasets`, under their real names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from tests.grpo.tiny_bases import save_tiny_base

SHA = "0" * 40
LETTERS = (
    " abcdefghijklmnopqrstuvwxyz0123456789=<>/?+*.,:|_ABCDEFGHIJKLMNOPQRSTUVWXYZ'\n\\$-();%{}#!"
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MODELS = ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2-0.5B-Instruct")
ROWS: dict[str, list[dict[str, Any]]] = {
    "trl-lib/DeepMath-103K": [
        {"prompt": [{"role": "user", "content": f"What is 1+{n}?"}], "solution": f"${n + 1}$"}
        for n in range(2)
    ],
    "trl-lib/tldr": [
        {"prompt": f"POST: number {n}\n\nTL;DR:", "completion": " it is"} for n in range(2)
    ],
    "openai/gsm8k": [
        {"question": f"What is {n}+{n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"}
        for n in range(2)
    ],
}

# README.md, "GRPOTrainer".
README = """
from datasets import load_dataset
from trl import GRPOTrainer
from trl.rewards import accuracy_reward

dataset = load_dataset("trl-lib/DeepMath-103K", split="train")

trainer = GRPOTrainer(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    reward_funcs=accuracy_reward,
    train_dataset=dataset,
)
trainer.train()
"""

# The quick start of docs/source/grpo_trainer.md, and its rewards of numbers of characters.
QUICK_START = """
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer

dataset = load_dataset("trl-lib/tldr", split="train")

# Dummy reward function for demonstration purposes
def reward_num_unique_chars(completions, **kwargs):
    return [len(set(c)) for c in completions]

def reward_len(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", logging_steps=2)
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=[reward_num_unique_chars, reward_len],
    args=training_args,
    train_dataset=dataset,
)
trainer.train()
"""

# Conversations and a format reward; a reward with a column; TRL's own think_format_reward.
FORMAT = '''
import re

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import think_format_reward

dataset = Dataset.from_list(
    [
        {
            "prompt": [{"role": "user", "content": "What is the result of (1 + 2) * 4?"}],
            "ground_truth": "12",
        },
        {
            "prompt": [{"role": "user", "content": "What is the result of (3 + 1) * 2?"}],
            "ground_truth": "8",
        },
    ]
)

def format_reward_func(completions, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]

def reward_func(completions, ground_truth, **kwargs):
    # Regular expression to capture content inside \\boxed{}
    contents = [completion[0]["content"] for completion in completions]
    matches = [re.search(r"\\\\boxed\\{(.*?)\\}", content) for content in contents]
    contents = [match.group(1) if match else "" for match in matches]
    # Reward 1 if the content is the same as the ground truth, 0 otherwise
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]

trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=[format_reward_func, reward_func, think_format_reward],
    args=GRPOConfig(reward_weights=[1.0, 2.0, 0.5]),
    train_dataset=dataset,
)
trainer.train()
'''

# Several tasks: each reward says None where it does not apply. One of them is asynchronous.
MULTI_TASK = """
import asyncio

from datasets import Dataset
from trl import GRPOTrainer

# Define a dataset that contains both math and coding problems
dataset = Dataset.from_list(
    [
        {"prompt": "What is 2+2?", "task": "math"},
        {"prompt": "Write a function that returns the sum of two numbers.", "task": "code"},
        {"prompt": "What is 3*4?", "task": "math"},
        {"prompt": "Write a function that returns the product of two numbers.", "task": "code"},
    ]
)

def check_math_solution(prompt, completion):
    return "4" in completion

def test_code_solution(prompt, completion):
    return "f" in completion

# Math-specific reward function
def math_reward_func(prompts, completions, task, **kwargs):
    rewards = []
    for prompt, completion, t in zip(prompts, completions, task):
        if t == "math":
            # Calculate math-specific reward
            correct = check_math_solution(prompt, completion)
            reward = 1.0 if correct else -1.0
            rewards.append(reward)
        else:
            # Return None for non-math tasks
            rewards.append(None)
    return rewards

# Coding-specific reward function
async def coding_reward_func(prompts, completions, task, **kwargs):
    await asyncio.sleep(0.01)
    rewards = []
    for prompt, completion, t in zip(prompts, completions, task):
        if t == "code":
            # Calculate coding-specific reward
            works = test_code_solution(prompt, completion)
            reward = 1.0 if works else -1.0
            rewards.append(reward)
        else:
            # Return None for non-coding tasks
            rewards.append(None)
    return rewards

# Use both task-specific reward functions
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=[math_reward_func, coding_reward_func],
    train_dataset=dataset,
)

trainer.train()
"""

# GSM8K with a system prompt, rows made by `map`, and the tokenizer given.
GSM8K = """
import re

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

SYSTEM_PROMPT = "Respond with <reasoning>...</reasoning><answer>...</answer>"

def extract_hash_answer(text):
    return text.split("####")[1].strip() if "####" in text else None

dataset = load_dataset("openai/gsm8k", "main", split="train")
dataset = dataset.map(
    lambda x: {
        "prompt": [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": x["question"]},
        ],
        "answer": extract_hash_answer(x["answer"]),
    }
)

def correctness_reward_func(prompts, completions, answer, **kwargs):
    responses = [completion[0]["content"] for completion in completions]
    extracted = [r.split("<answer>")[-1].split("</answer>")[0].strip() for r in responses]
    return [2.0 if r == a else 0.0 for r, a in zip(extracted, answer)]

def int_reward_func(completions, **kwargs):
    return [0.5 if any(c.isdigit() for c in x[0]["content"]) else 0.0 for x in completions]

model_name = "Qwen/Qwen2.5-0.5B-Instruct"
tokenizer = AutoTokenizer.from_pretrained(model_name)
tokenizer.pad_token = tokenizer.eos_token
training_args = GRPOConfig(
    output_dir="outputs/gsm8k",
    run_name="gsm8k",
    learning_rate=5e-6,
    adam_beta1=0.9,
    adam_beta2=0.99,
    weight_decay=0.1,
    warmup_steps=0.1,
    lr_scheduler_type="cosine",
    logging_steps=1,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    num_generations=8,
    max_completion_length=64,
    num_train_epochs=1,
    save_steps=100,
    max_grad_norm=0.1,
    report_to="none",
)
trainer = GRPOTrainer(
    model=model_name,
    processing_class=tokenizer,
    reward_funcs=[int_reward_func, correctness_reward_func],
    args=training_args,
    train_dataset=dataset,
)
trainer.train()
trainer.save_model(training_args.output_dir)
"""
SCRIPTS = {
    "readme": README,
    "quick_start": QUICK_START,
    "format": FORMAT,
    "multi_task": MULTI_TASK,
    "gsm8k": GSM8K,
}
# Runs each script in a folder of its own; a line of JSON for each.
DRIVER = """
import json, os, runpy, sys, traceback
for file in sys.argv[1:]:
    place = file.removesuffix(".py")
    os.makedirs(place), os.chdir(place)
    try:
        trainer = runpy.run_path(file)["trainer"]
        found = {"log": trainer.state.log_history, "step": trainer.state.global_step}
        found["folder"] = str(trainer.run.folder)
    except Exception:
        found = {"error": traceback.format_exc()}
    print("FOUND " + json.dumps([os.path.basename(place), found]), flush=True)
"""


def _rows_in_cache(cache: Path, name: str, rows: list[dict[str, Any]], config: str) -> None:
    """`load_dataset(name)` finds the rows in `cache`, as after a download."""
    file = cache / "rows.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_dataset("json", data_files=str(file), cache_dir=str(cache / "made"))
    made = next((cache / "made" / "json").glob("*/*/*/dataset_info.json")).parent
    owner, _, short = name.partition("/")
    snake = {"DeepMath-103K": "deep_math-103_k"}.get(short, short)
    place = cache / f"{owner}___{snake}" / config / "0.0.0" / SHA
    shutil.copytree(made, place)
    shutil.rmtree(cache / "made")
    (place / "json-train.arrow").rename(place / f"{snake}-train.arrow")
    info = json.loads((place / "dataset_info.json").read_text())
    info |= {"config_name": config, "dataset_name": snake, "builder_name": snake}
    info["splits"]["train"]["dataset_name"] = snake
    (place / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """script -> its log, the last step and its folder."""
    home = tmp_path_factory.mktemp("home")
    for model in MODELS:
        place = home / "hub" / f"models--{model.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(SHA)
        folder = place / "snapshots" / SHA
        save_tiny_base(folder, letters=LETTERS, max_position=1024)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        ending = json.loads((folder / "generation_config.json").read_text())
        ending["eos_token_id"] = [ending["eos_token_id"], *range(10, 50)]  # or they end at 512
        (folder / "generation_config.json").write_text(json.dumps(ending))
    for name, rows in ROWS.items():
        config = "main" if name == "openai/gsm8k" else "default"
        _rows_in_cache(home / "datasets", name, rows, config)
    files: list[str] = []
    for name, text in SCRIPTS.items():
        lines = text.splitlines(keepends=True)
        (home / f"{name}.py").write_text(
            "".join(
                line.replace("from trl import", "from grpo import")
                if "GRPOTrainer" in line
                else line
                for line in lines
            )
        )
        files.append(str(home / f"{name}.py"))
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for unset in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        offline[unset] = str(home / {"HF_HUB_CACHE": "hub"}.get(unset, "datasets"))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *files],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [x.removeprefix("FOUND ") for x in done.stdout.splitlines() if x.startswith("FOUND ")]
    assert len(lines) == len(SCRIPTS), done.stderr[-3000:]
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize(
    ("name", "steps", "folder", "figures"),
    [
        ("readme", 6, "Qwen2.5-0.5B-Instruct-GRPO", ["accuracy_reward"]),
        ("quick_start", 6, "Qwen2-0.5B-GRPO", ["reward_num_unique_chars", "reward_len"]),
        ("format", 6, "", ["format_reward_func", "reward_func", "think_format_reward"]),
        (
            "multi_task",
            12,
            "Qwen2-0.5B-Instruct-GRPO",
            ["math_reward_func", "coding_reward_func"],
        ),
        ("gsm8k", 2, "outputs/gsm8k", ["int_reward_func", "correctness_reward_func"]),
    ],
)
def test_a_script_of_trl_runs_with_one_line_changed(
    found: dict[str, Any], name: str, steps: int, folder: str, figures: list[str]
) -> None:
    one = found[name]
    assert "error" not in one, one["error"]
    assert one["step"] == steps  # by TRL's arithmetic: rows, epochs and batches
    assert one["folder"].endswith(folder)
    lines = [line for line in one["log"] if "reward" in line]
    assert [line["step"] for line in lines] == list(range(*_logged(name, steps)))
    for line in lines:
        assert {f"rewards/{figure}/mean" for figure in figures} <= line.keys()
    assert one["log"][-1]["train_runtime"] > 0


def _logged(name: str, steps: int) -> tuple[int, int, int]:
    """TRL's default is every tenth step."""
    every = {"quick_start": 2, "gsm8k": 1}.get(name, 10)
    return every, steps + 1, every


def test_the_figures_of_scripts_are_of_their_own_rewards(found: dict[str, Any]) -> None:
    for line in found["quick_start"]["log"][:3]:
        mean = line["rewards/reward_len/mean"]
        assert mean == pytest.approx(line["completions/mean_length"])
        both = mean + line["rewards/reward_num_unique_chars/mean"]
        assert line["reward"] == pytest.approx(both)
    folder = Path(found["gsm8k"]["folder"])
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()
