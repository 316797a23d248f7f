"""`GRPOTrainer` beside TRL's: the same figures, weights and events for the same completions."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import grpo
from grpo.errors import DataError, PluginError, RecipeError, RunError
from grpo.rundir import checkpoint, ledger

FOLDER = str(Path(str(grpo.__file__)).parent / "recipes" / "assets/parity-base")
PROMPTS = [f"{number * 2654435761 % 65536:016b}=" for number in range(8)]
ROWS = [{"prompt": prompt, "half": i / 2} for i, prompt in enumerate(PROMPTS)]
SENT = (
    *("on_train_begin", "on_epoch_begin", "on_step_begin", "on_step_end", "on_log", "on_save"),
    *("on_epoch_end", "on_train_end"),
)
# Figures of TRL's that are of its own clock, or that are not computed here (docs/trainer.md).
OWN = {"step_time", "clip_ratio/low_min", "clip_ratio/high_max"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def ones(completions: list[str], half: list[float], **_: Any) -> list[float]:
    """A reward with a column."""
    return [text.count("1") / 10 + h / 1000 for text, h in zip(completions, half, strict=True)]


def short(completions: list[str], **_: Any) -> list[float | None]:
    """A reward that does not apply to every completion; in a batch it may be to none."""
    return [None if len(text) > 26 else len(text) / 20 for text in completions]


def settings(**more: Any) -> dict[str, Any]:
    """Arguments of both classes called GRPOConfig."""
    return {
        "output_dir": "out",
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "max_completion_length": 20,
        "bf16": False,
        "use_cpu": True,
        "max_steps": 4,
        "logging_steps": 2,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        **more,
    }


def trained(rows: list[dict[str, Any]] = ROWS, **more: Any) -> grpo.GRPOTrainer:
    """A trainer of ours after `train`."""
    given = {key: more.pop(key) for key in ("callbacks", "peft_config", "model") if key in more}
    model = given.pop("model", FOLDER)
    args = grpo.GRPOConfig(**settings(**more))
    trainer = grpo.GRPOTrainer(model, [ones, short], args, Dataset.from_list(rows), **given)
    trainer.train()
    return trainer


class Events(TrainerCallback):
    """Notes every event that both trainers send."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []


def _noting(name: str) -> Any:
    def event(self: Events, args: Any, state: Any, control: Any, **given: Any) -> None:
        assert given["model"] is not None
        assert given["processing_class"] is not None
        self.seen.append((name, state.global_step))

    return event


for _name in SENT:
    setattr(Events, _name, _noting(_name))


def sampled_by(trainer: grpo.GRPOTrainer, steps: int) -> dict[int, dict[str, list[list[int]]]]:
    """Rollout batch -> prompt -> completions."""
    run = trainer.run
    assert run is not None
    sampled: dict[int, dict[str, list[list[int]]]] = {}
    for step in range(1, steps + 1):
        of_prompt = sampled.setdefault(step, {})
        for line in ledger.read(run.place(run.recipe.stages[0]) / "ledger", step):
            ids = [token for segment in line["segments"] for token in segment["ids"]]
            of_prompt.setdefault(line["prompt"], []).append(ids)
    return sampled


def of_trl(
    sampled: dict[int, dict[str, list[list[int]]]], rewards: Any = None, **more: Any
) -> tuple[Any, Events]:
    """TRL's trainer after `train`, and its events. sampled: batch -> prompt -> completions."""
    trl: Any = import_module("trl")

    class Forced(trl.GRPOTrainer):
        """Takes completions instead of sampling them."""

        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            texts = self.processing_class.batch_decode(prompt_ids, skip_special_tokens=True)
            batch = self.state.global_step // self.num_iterations + 1
            queues = {k: list(v) for k, v in sampled[batch].items()}
            return [queues[text].pop(0) for text in texts], None

    events = Events()
    trainer = Forced(
        FOLDER,
        rewards or [ones, short],
        trl.GRPOConfig(**settings(gradient_checkpointing=False, disable_tqdm=True, **more)),
        Dataset.from_list(ROWS[:4]),
        callbacks=[events],
    )
    trainer.train()
    return trainer, events


def flat(model: Any) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.filterwarnings("ignore")  # TRL's and torch's own
def test_same_completions_give_trls_figures_weights_and_events() -> None:
    more = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    events = Events()
    ours = trained(ROWS[:4], callbacks=[events], **more)
    theirs, their_events = of_trl(sampled_by(ours, 4), output_dir="theirs", **more)

    logs, expected = ours.state.log_history, theirs.state.log_history
    assert [line["step"] for line in logs] == [line["step"] for line in expected] == [1, 2, 3, 4, 4]
    alive = 0
    for mine, line in zip(logs[:4], expected[:4], strict=True):
        same = line.keys() - OWN
        if line["frac_reward_zero_std"]:  # here entropy is of the completions that teach
            same -= {"entropy"}
        alive += "entropy" in same
        unscored = {k for k in same if line[k] is None}
        assert {k for k in same if mine[k] is None} == unscored
        near = pytest.approx({k: line[k] for k in same - unscored}, rel=2e-3, abs=1e-6)
        assert {k: mine[k] for k in same - unscored} == near
        assert {"reward", "rewards/ones/std", "num_tokens", "grad_norm", "learning_rate"} <= same
    assert alive
    assert expected[-1].keys() - {"total_flos"} <= logs[-1].keys()
    assert logs[-1]["train_loss"] == pytest.approx(expected[-1]["train_loss"], rel=1e-3)
    base = flat(AutoModelForCausalLM.from_pretrained(FOLDER))
    apart = (flat(ours.model) - flat(theirs.model)).norm() / (flat(theirs.model) - base).norm()
    # AdamW's first steps are as large where a gradient is but noise
    assert apart < 1e-3  # 6e-5 was seen
    # of single weights whose gradient is near AdamW's epsilon
    assert (flat(ours.model) - flat(theirs.model)).abs().max() < 1e-4

    # the end of an epoch comes before its checkpoint here
    assert sorted(events.seen, key=str) == sorted(their_events.seen, key=str)
    kept = [[e for e in one.seen if e[0] != "on_epoch_end"] for one in (events, their_events)]
    assert kept[0] == kept[1]


def few(completions: list[str], half: list[float], trainer_state: Any, **_: Any) -> Any:
    """In a batch: one score in all, nothing for half of the prompts, equal scores, one a group."""
    batch, rows = trainer_state.global_step // 2, range(len(completions))
    first = [row % 4 == 0 for row in rows]
    return [
        float(len(text)) if (h == 0 and one, h < 1, True, one)[batch] else None
        for text, h, one in zip(completions, half, first, strict=True)
    ]


@pytest.mark.filterwarnings("ignore")  # TRL's and torch's own
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_figures_of_few_scores_and_of_several_optimizer_steps_are_trls(scale: str) -> None:
    more = {"num_iterations": 2, "max_steps": 8, "scale_rewards": scale}
    args = grpo.GRPOConfig(**settings(**more))
    ours = grpo.GRPOTrainer(FOLDER, few, args, Dataset.from_list(ROWS[:4]))
    ours.train()
    theirs, _ = of_trl(sampled_by(ours, 4), [few], output_dir="theirs", **more)
    names = ("learning_rate", "reward_std", "rewards/few/std", "frac_reward_zero_std")
    lines = [line for line in theirs.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert lines[0]["reward_std"] is None
    for mine, line in zip(ours.state.log_history, lines, strict=False):
        for name in names:
            assert mine[name] == (None if line[name] is None else pytest.approx(line[name])), name


def test_the_model_in_memory_is_trained_in_place_and_saved() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    before = [p.clone() for p in model.parameters()]
    trainer = trained(model=model)
    assert trainer.model is model
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert trainer.run is not None
    left = trainer.run.model.state_dict()
    assert all(torch.equal(left[name], value) for name, value in model.state_dict().items())
    trainer.save_model()
    trainer.save_state()
    again = AutoModelForCausalLM.from_pretrained("out")
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert AutoTokenizer.from_pretrained("out").vocab_size == trainer.processing_class.vocab_size
    assert Path("out/trainer_state.json").is_file()
    with pytest.raises(RunError, match="trained already"):
        trainer.train()
    with pytest.raises(RunError, match="output_dir = 'out' already holds a run"):
        trained()


def test_what_changes_nothing_or_differs_is_said(caplog: pytest.LogCaptureFixture) -> None:
    args = grpo.GRPOConfig(**settings(dataloader_num_workers=2, eval_strategy="steps"))
    trainer = grpo.GRPOTrainer(FOLDER, ones, args, ROWS, eval_dataset=ROWS[6:])
    said = [record.message for record in caplog.records]
    assert said == [f"GRPOConfig: {note}" for note in trainer.notes]
    assert any("dataloader_num_workers = 2: changes nothing here" in one for one in said)
    assert any("2 of 8 rows of train_dataset have a prompt of eval" in one for one in said)


def test_a_callback_stops_the_run_in_order() -> None:
    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = state.global_step == 1
            control.should_training_stop = state.global_step == 2

    trainer = trained(callbacks=[Stops], logging_steps=1)
    run = trainer.run
    assert run is not None
    assert trainer.state.global_step == 2
    assert run.summary["steps"] == 2
    assert checkpoint.steps(run.place(run.recipe.stages[0])) == [1, 2]
    assert run.left_model().is_dir()
    assert [line["step"] for line in trainer.state.log_history] == [1, 2, 2]


def test_what_our_own_callbacks_return_is_done() -> None:
    seen: list[Any] = []

    class Own:
        def begin_step(self, step: int) -> None:
            seen.append(step)

        def evaluated(self, name: str, figures: dict[str, Any]) -> None:
            seen.append((name, len(figures["rewards"])))

        def end(self, step: int) -> None:
            seen.append(f"end {step}")

        def __call__(self, result: Any) -> list[str] | str | None:
            return {1: ["evaluate", "save"], 2: "stop"}.get(result.step)

    given: dict[str, Any] = {
        "num_generations": 4,
        "prompts_per_step": 4,
        "max_completion_length": 16,
        "data": {"args": {"heldout_fraction": 0.3}},
        "eval": {"num_tasks": 1, "num_samples": 1, "before": False},
    }
    run = grpo.train(
        model=FOLDER, dataset=ROWS, rewards=ones, max_steps=9, callbacks=[{"name": Own()}], **given
    )
    assert seen == [1, ("step_000001", 1), 2, ("after", 1), "end 2"]
    assert run.summary["steps"] == 2
    with pytest.raises(PluginError, match=r"returned True; valid: None, 'stop', 'save', 'evalu"):
        grpo.train(
            model=FOLDER,
            dataset=ROWS,
            rewards=ones,
            max_steps=2,
            callbacks=[{"name": lambda _result: True}],
            **given,
        )


def test_rewards_are_given_what_trl_gives_them() -> None:
    seen: dict[str, Any] = {}

    async def judge(prompts: Any, completions: Any, completion_ids: Any, **more: Any) -> Any:
        seen.update(more, prompts=prompts, completions=completions, ids=completion_ids)
        seen.setdefault("steps", []).append(more["trainer_state"].global_step)
        more["log_metric"]("judged", 0.5)
        more["log_extra"]("note", [""] * len(prompts))
        return [float(len(ids)) for ids in completion_ids]

    args = grpo.GRPOConfig(**settings(max_steps=2, logging_steps=1, reward_weights=[0.0, 2.0]))
    rows = [
        {"prompt": [{"role": "user", "content": text}], "solution": str(i), "odd": [i, "x"]}
        for i, text in enumerate(PROMPTS)
    ]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    trainer = grpo.GRPOTrainer(FOLDER, [short_chat, judge], args, rows, processing_class=tokenizer)
    trainer.train()
    assert sorted(set(seen["steps"])) == [0, 1]
    assert seen["trainer_state"] is trainer.state
    assert seen["solution"] == [seen["solution"][0]] * 4
    assert seen["odd"] == [[int(seen["solution"][0]), "x"]] * 4
    assert seen["prompts"][0] == [{"role": "user", "content": PROMPTS[seen["odd"][0][0]]}]
    assert [list(message) for message in seen["completions"][0]] == [["role", "content"]]
    line = trainer.state.log_history[0]
    assert line["judged"] == 0.5
    assert line["reward"] == pytest.approx(2 * line["rewards/judge/mean"])
    assert line["rewards/judge/mean"] == pytest.approx(line["completions/mean_length"])


def test_a_column_called_answer_reaches_rewards_as_it_is() -> None:
    """A verifier's gold answer is text; a function that compares numbers has to see numbers."""
    answers: list[Any] = [4, None, 0.5, True]
    seen: list[Any] = []

    def equal(completions: list[str], answer: list[Any], **_: Any) -> list[float]:
        seen.extend(answer)
        return [
            float(one == 4) + len(text) / 100 for one, text in zip(answer, completions, strict=True)
        ]

    rows = [{"prompt": p, "answer": a} for p, a in zip(PROMPTS, answers, strict=False)]
    args = grpo.GRPOConfig(**settings(max_steps=1))
    trainer = grpo.GRPOTrainer(FOLDER, equal, args, rows, eval_dataset=rows)
    trainer.train()
    assert sorted(map(repr, set(seen))) == ["0.5", "4", "None", "True"]
    seen.clear()
    trainer.evaluate()
    assert sorted(map(repr, set(seen))) == ["0.5", "4", "None", "True"]


def test_evaluate_weighs_and_asks_as_training_does() -> None:
    """Weights, template variables, long prompts and the whole distribution, not a stage's own."""
    seen: list[int] = []

    def tokens(completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.append(len(completion_ids))
        return [float(len(ids)) for ids in completion_ids]

    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ending }}"
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.chat_template = template
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in (*PROMPTS[:4], "01" * 15)]
    more = {"chat_template_kwargs": {"ending": "="}, "reward_weights": [3.0], "temperature": 0.9}
    args = grpo.GRPOConfig(**settings(**more))
    trainer = grpo.GRPOTrainer(FOLDER, tokens, args, rows, processing_class=tokenizer)
    found = trainer.evaluate(rows)
    assert found["eval_reward"] == pytest.approx(3 * found["eval_rewards/tokens/mean"])
    assert found["eval_rewards/tokens/mean"] == pytest.approx(found["eval_completions/mean_length"])
    stage: Any = grpo.load_run("runs/parity-base-eval-1").recipe.stages[0]
    assert (stage.top_p, stage.temperature, stage.data.max_prompt_length) == (1.0, 0.9, 31)
    assert stage.data.overlong == "error"
    assert stage.data.template_args == {"chat_template_kwargs": {"ending": "="}}
    assert sum(seen) == 5 * (4 + 1)  # four completions of a row, and the greedy one


def short_chat(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """A reward of conversations."""
    return [-float(len(messages[0]["content"])) for messages in completions]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
def test_an_adapter_is_put_around_the_model() -> None:
    trainer = trained(peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
    assert isinstance(trainer.model, PeftModel)
    assert trainer.model.peft_config["default"].to_dict()["r"] == 4
    assert trainer.run is not None
    merged = trainer.model.merge_and_unload().state_dict()
    left = trainer.run.model.state_dict()
    assert all(torch.allclose(left[name], value, atol=1e-5) for name, value in merged.items())


def test_a_run_that_broke_goes_on_to_the_same_bits() -> None:
    whole = trained(output_dir="whole")

    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                raise ValueError("full")

    def half(*callbacks: Any, **more: Any) -> grpo.GRPOTrainer:
        args = grpo.GRPOConfig(**settings(save_strategy="steps", save_steps=1, **more))
        return grpo.GRPOTrainer(FOLDER, [ones, short], args, ROWS, callbacks=callbacks)

    with pytest.raises(PluginError, match="ValueError: full at "):
        half(Breaks()).train()
    for more, said in (
        ({"max_steps": 8}, r"learner.max_steps = 8, and the run in .*out' was started with 4:"),
        ({"epsilon_high": 0.3}, "algorithm.epsilon_high = 0.3, and the run"),
        ({"top_k": 3}, "rollout.top_k = 3, and the run"),
    ):
        with pytest.raises(RunError, match=said):
            half(**more).train(resume_from_checkpoint=True)
    with pytest.raises(RunError, match="not the newest checkpoint of the run, which is that of"):
        half().train(resume_from_checkpoint="out/checkpoints/step_000001")
    again = half()
    assert again.train(resume_from_checkpoint=True).global_step == 4
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": [print]}, "tools is not honored"),
        ({"rollout_func": print}, "rollout_func is not honored"),
        ({"environment_factory": print}, "environment_factory is not honored"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config is not honored"),
        ({"optimizers": (object(), None)}, "optimizers is not honored"),
        ({"args": {"max_steps": 1}}, "args is a builtins.dict; make it with grpo.GRPOConfig"),
        ({"reward_funcs": []}, "reward_funcs is empty"),
        ({"reward_funcs": 3}, "reward_funcs has a int"),
        ({"reward_processing_classes": [None, None]}, "2 tokenizers for 1 reward_funcs"),
        ({"model": 3}, "model is of type int"),
        ({"train_dataset": None}, "train_dataset = None"),
        ({"train_dataset": {"train": ROWS}}, r"mapping of data sets \(train\)"),
        ({"train_dataset": iter(ROWS)}, "train_dataset is a stream"),
        (
            {"callbacks": [type("C", (TrainerCallback,), {"on_substep_end": print})]},
            "C wants on_su",
        ),
    ],
)
def test_what_cannot_be_honored_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    call = {"model": FOLDER, "reward_funcs": ones, "train_dataset": ROWS, **given}
    with pytest.raises((RecipeError, DataError), match=message):
        grpo.GRPOTrainer(**{"args": grpo.GRPOConfig(**settings()), **call})


def test_the_constructor_has_every_parameter_of_trls() -> None:
    trl: Any = import_module("trl")
    theirs = inspect.signature(trl.GRPOTrainer.__init__).parameters
    ours = inspect.signature(grpo.GRPOTrainer.__init__).parameters
    assert list(ours) == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)
