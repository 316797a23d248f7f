"""data.chat_template: read, tried, used by every stage and saved with the model."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict, load, resolved
from grpo.errors import RecipeError
from grpo.model import pretrained
from grpo.outside.terminal.console import Console
from grpo.stages.endings import warn_of_turn_end
from grpo.stages.from_scratch import build_tokenizer
from grpo.stages.prompting import check_text
from tests.grpo.tiny_bases import save_tiny_base

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}\
{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer(string.printable)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return save_tiny_base(folder, tokenizer=tokenizer, max_position=128)


def rl(base: str, run: Path, template: str, **settings: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "run": {"dir": str(run), "threads": 1},
        "model": {"path": base},
        "data": {
            "source": "parity",
            "args": {"bits": 3},
            "template": "chat",
            "chat_template": template,
            "max_prompt_length": 100,
        },
        "rollout": {"prompts_per_step": 1, "num_generations": 2, "max_completion_length": 4},
        "rewards": [{"name": "accuracy"}],
        "learner": {"max_steps": 1},
        "eval": {"num_tasks": 2, "num_samples": 1},
        **settings,
    }


def said(prompt: str) -> str:
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("given", ["text", "file", "folder", "old folder"])
def test_a_template_is_text_a_file_or_a_tokenizers_folder(
    given: str, base: str, tmp_path: Path
) -> None:
    (tmp_path / "chatml.jinja").write_text(CHATML)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "chat_template.jinja").write_text(CHATML)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    names = {"text": CHATML, "file": "chatml.jinja", "folder": "new", "old folder": "old"}
    settings = rl(base, tmp_path / "run", names[given])
    (tmp_path / "r.yaml").write_text(json.dumps(settings))
    recipe = load(tmp_path / "r.yaml")
    # The recipe of a run holds the text: it is the same when it is resumed, and anywhere.
    assert recipe.stages[0].data.chat_template == CHATML  # pyright: ignore[reportAttributeAccessIssue]
    assert from_dict(resolved(recipe)) == recipe


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("nofile.jinja", r"rl|data\.chat_template = 'nofile\.jinja' is neither a template"),
        ("{% for m in messages %}\n{{ m.content }", r"data\.chat_template, line 2: "),
        ("{{ messages[0].content }}\n{{ nothing.at.all }}", r"line 2: 'nothing' is undefined"),
        (CHATML.partition("{% if add")[0], "does not use add_generation_prompt"),
        ("{{ bos_token }}{{ messages[0].role }}", "does not show the text of the user's"),
        (
            "{{ messages[0].content }}{% if add_generation_prompt %}A:{% endif %}",
            "does not show the text of the assistant's",
        ),
    ],
)
def test_a_template_that_does_not_work_is_one_sentence(
    template: str, expected: str, base: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=expected) as raised:
        check_text(from_dict(rl(base, tmp_path / "run", template)).stages[0])
    assert "\n" not in str(raised.value)


def test_templates_that_begin_an_answer_without_a_word_work(base: str) -> None:
    assert pretrained.tokenizer(base, chat_template=INST).chat_template == INST


def test_it_needs_the_template_that_shows_it(base: str, tmp_path: Path) -> None:
    settings = rl(base, tmp_path / "run", CHATML)
    settings["data"]["template"] = "raw"
    with pytest.raises(RecipeError, match=r"data\.chat_template needs data\.template = 'chat'"):
        from_dict(settings)


def test_without_one_a_base_model_is_told_of_it(base: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no chat template; give it one by data\.chat_template"):
        check_text(from_dict(rl(base, tmp_path / "run", "")).stages[0])


def test_every_stage_prompts_with_it_and_leaves_it_to_the_next(base: str, tmp_path: Path) -> None:
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1+1", "completion": "2"}) + "\n")
    stage = rl(base, tmp_path / "run", "")
    data = {name: value for name, value in stage["data"].items() if name != "chat_template"}
    learner = {"max_steps": 1, "batch_size": 1}
    sft = {"path": str(rows), "template": "chat", "chat_template": str(file)}
    parts = {"rollout": stage["rollout"], "rewards": stage["rewards"]}
    recipe = from_dict(
        {
            "name": "t",
            "run": {"dir": str(tmp_path / "run"), "threads": 1, "save_steps": 1},
            "stages": [
                {"kind": "sft", "model": {"path": base}, "data": sft, "learner": learner},
                {
                    "kind": "rl",
                    "model": {"path": "stage:sft"},
                    "data": data,
                    **parts,
                    "learner": {"max_steps": 1},
                    "eval": stage["eval"],
                },
            ],
        }
    )
    train_recipe(recipe, Console(quiet=True))
    for folder in ("sft/model", "rl/model", "rl/checkpoints/step_000001"):
        found: Any = AutoTokenizer.from_pretrained(tmp_path / "run" / folder)
        assert found.chat_template == CHATML
    line = json.loads((tmp_path / "run/rl/eval/before.jsonl").read_text().splitlines()[0])
    assert said("").split("user\n")[0] in json.dumps(line, ensure_ascii=False).replace("\\n", "\n")


def test_a_resumed_run_has_the_template_it_began_with(base: str, tmp_path: Path) -> None:
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML)
    recipe = from_dict(rl(base, tmp_path / "run", str(file)))
    train_recipe(recipe, Console(quiet=True))
    file.write_text("{{ 'another' }}")
    for gone in ("summary.json",):
        (tmp_path / "run" / gone).unlink()
    resume_run(tmp_path / "run", Console(quiet=True))
    found: Any = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert found.chat_template == CHATML


def test_a_turn_that_ends_with_no_eos_is_said(base: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = pretrained.tokenizer(base, chat_template=CHATML)
    eos, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    warn_of_turn_end(tokenizer, [eos, end])
    warn_of_turn_end(tokenizer, [eos], ["<|im_end|>"])
    warn_of_turn_end(pretrained.tokenizer(base, chat_template=INST), [eos])
    assert not caplog.records
    warn_of_turn_end(tokenizer, [eos])
    assert "ends a turn with '<|im_end|>', which is no eos of the model" in caplog.text
    assert "name it in rollout.stop" in caplog.text
    plain = pretrained.tokenizer(base, chat_template=CHATML.replace("<|im_end|>", "</turn>"))
    warn_of_turn_end(plain, [eos], taught=True)
    assert "ends a turn with '</turn>', which is plain text to the tokenizer" in caplog.text
    assert f"rows are taught to end with {tokenizer.eos_token!r}" in caplog.text
