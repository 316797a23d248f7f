"""`GRPOTrainer` by TRL's signature (version 1.16): a script of TRL's trains here by its import.

    constructor -> `to_recipe` of its GRPOConfig -> grpo.train -> the weights back into the model

TRL itself is never imported. docs/trainer.md says what is the same and what is not.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerControl
from transformers.trainer_utils import TrainOutput

from grpo.commands.api import calls, going_on
from grpo.commands.api.callbacks import Bridge, Flow, Handler, evaluation, first_state
from grpo.commands.api.run import Run
from grpo.commands.api.trainer_given import (
    check,
    check_newest,
    check_same,
    listed,
    longest,
    path_and_model,
    reward_entries,
    rows_of,
    taken_out,
    with_state,
)
from grpo.config.trl.batches import batches_of
from grpo.config.trl.convert import to_recipe
from grpo.config.trl.settings import GRPOConfig
from grpo.errors import DataError, RunError
from grpo.model import pretrained
from grpo.model.adapter_config import lora_of
from grpo.rundir.run_folder import SETTINGS

logger = logging.getLogger(__name__)
AS_IT_IS = {"answer": None}  # of `data.args`: a column "answer" is not made text for verifiers


class GRPOTrainer:
    """Train a model with GRPO; every parameter of TRL's trainer, with its meaning.

        trainer = GRPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", accuracy_reward, train_dataset=rows)
        trainer.train()

    model: a folder, a hub id, or a PreTrainedModel, which has the trained weights afterwards.
    reward_funcs: one or a list of functions (also async), sequence-classification models, or ids of
    such models. args: `grpo.GRPOConfig`. train_dataset, eval_dataset: rows with a column `prompt`,
    text or messages. processing_class: the tokenizer. reward_processing_classes: those of reward
    models. callbacks: `transformers.TrainerCallback` objects or classes. peft_config: a LoraConfig.
    Everything else has to be left out. `run` is the finished run (`grpo.Run`).

    Raises RecipeError for what cannot be honored, with what to do.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
    ) -> None:
        given = {
            "tools": tools,
            "rollout_func": rollout_func,
            "environment_factory": environment_factory,
            "quantization_config": quantization_config,
        }
        check(given, optimizers, args)
        self._path, model = path_and_model(model)
        self._name = (self._path or "model").rstrip("/").split("/")[-1]
        self.args = args or GRPOConfig(output_dir=f"{self._name}-GRPO")
        self.train_dataset = rows_of(train_dataset, "train_dataset")
        self.eval_dataset = None if eval_dataset is None else rows_of(eval_dataset, "eval_dataset")
        self._given_model = model
        if model is None and processing_class is not None:
            self._given_model = pretrained.load_model(self._path)
        self._model: Any = self._given_model
        self.processing_class = processing_class or pretrained.tokenizer(self._path, "model")
        self.peft_config = peft_config
        self.reward_funcs: list[Any] = listed(reward_funcs)
        self._rewards = reward_entries(self.reward_funcs, reward_processing_classes)
        self.run: Run | None = None
        self._settings, self.notes = to_recipe(
            self.args,
            num_rows=len(self.train_dataset),
            num_rewards=len(self._rewards),
            num_eval_rows=len(self.eval_dataset or ()),
            longest_prompt=longest(self.processing_class, self._all_rows(), self.args),
        )
        held = self._held()
        self.notes += [] if held is None else taken_out(self.train_dataset, held)
        for note in self.notes:
            logger.warning("GRPOConfig: %s", note)
        self._batches = batches_of(self.args, num_rows=len(self.train_dataset))
        self._handler = Handler(
            [Flow(), *(callbacks or ())], model, self.processing_class, None, None
        )
        self.state = first_state(self.args, self._batches, self._handler.callbacks)
        self.control = TrainerControl()
        self._send("on_init_end")

    # -- training ---------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Train to the last step; global_step, training_loss and metrics.

        resume_from_checkpoint: True goes on with the run in `args.output_dir` from its newest
        checkpoint, under the settings it has. A trainer trains once. Raises GrpoError, and
        KeyboardInterrupt after saving.
        """
        if self.run is not None:
            raise RunError(
                "this trainer has trained already; make a new one with model=trainer.model and "
                "another output_dir to go on from its weights"
            )
        bridge = Bridge(
            args=self.args, state=self.state, handler=self._handler, batches=self._batches
        )
        call = self._call(bridge)
        if resume_from_checkpoint:
            self.run = self._resumed(resume_from_checkpoint, call)
        else:
            self._check_folder()
            self.run = calls.train(None, **call, **self._sections())
        self.control = bridge.control
        self._take_weights(self.run)
        metrics = next(
            (line for line in reversed(self.state.log_history) if "train_loss" in line), {}
        )
        metrics = {name: value for name, value in metrics.items() if name != "step"}
        loss = float(metrics.get("train_loss", 0.0))
        return TrainOutput(self.state.global_step, loss, metrics)

    def _call(self, bridge: Bridge) -> dict[str, Any]:
        """The objects of the call of `grpo.train`."""
        return {
            "model": self._path if self._given_model is None else self._given_model,
            "tokenizer": self.processing_class if self._given_model is not None else None,
            "dataset": self.train_dataset,
            "eval_dataset": self._held(),
            "rewards": self._called(),
            "callbacks": [{"name": bridge}],
        }

    def _held(self) -> Any:
        """The rows that are held out while training; None where no evaluation is asked for."""
        asked = self.args.eval_strategy != "no" or self.args.eval_on_start
        return self.eval_dataset if asked else None

    def _called(self) -> list[dict[str, Any]]:
        """The rewards, functions with the trainer's own `trainer_state`."""
        return [
            {**reward, "name": with_state(reward["name"], self.state)} for reward in self._rewards
        ]

    def _sections(self) -> dict[str, Any]:
        """The settings of the call, a section each; those of the model by dotted names."""
        sections = copy.deepcopy(self._settings)
        weights = sections.pop("rewards", None)
        name = sections.pop("name", f"{self._name}-GRPO")
        model = {f"model.{key}": value for key, value in sections.pop("model").items()}
        if self.peft_config is not None:
            known = self._given_model
            config = pretrained.config(self._path) if known is None else known.config
            model["model.lora"] = lora_of(self.peft_config, config.model_type)
        sections["data"]["args"] = {"heldout_fraction": 0.0, **AS_IT_IS}
        if weights is not None:
            sections["reward_weights"] = [one["weight"] for one in weights]
        return {**sections, **model, "name": name}

    def _check_folder(self) -> None:
        folder = self.args.output_dir
        if folder and (Path(folder).expanduser() / SETTINGS).exists():
            raise RunError(
                f"args.output_dir = {folder!r} already holds a run: go on with "
                "trainer.train(resume_from_checkpoint=True), or name another output_dir"
            )

    def _resumed(self, checkpoint: str | bool, call: dict[str, Any]) -> Run:
        folder = self.args.output_dir
        if not folder:
            raise RunError(
                "resume_from_checkpoint needs args.output_dir, the folder of the run to go on with"
            )
        if checkpoint is not True and not Path(str(checkpoint)).resolve().is_relative_to(
            Path(folder).resolve()
        ):
            raise RunError(
                f"resume_from_checkpoint = {str(checkpoint)!r} is not in args.output_dir = "
                f"{folder!r}; True goes on from the newest checkpoint there"
            )
        run = Run(folder)
        check_same(run, self._settings)
        if checkpoint is not True:
            check_newest(run, str(checkpoint))
        again = {key: call[key] for key in ("rewards", "dataset", "eval_dataset", "callbacks")}
        return going_on.resume(run, **again)

    def _take_weights(self, run: Run) -> None:
        """Copy the trained weights into the model that was given; an adapter is put around it."""
        if self.peft_config is not None:
            from peft import PeftModel

            base = (
                pretrained.load_model(self._path)
                if self._given_model is None
                else self._given_model
            )
            self._model = PeftModel.from_pretrained(base, str(run.left_model() / "adapter"))
        elif self._given_model is None:
            self._model = run.model
        else:
            self._given_model.load_state_dict(run.model.state_dict())

    # -- evaluation -------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, Any]:
        """Figures of the model as it is, on every row of `eval_dataset`, under TRL's names.

        Completions are drawn as in evaluations while training: at `args.temperature`, from the
        whole distribution. ignore_keys changes nothing. Raises DataError where there are no rows.
        """
        rows = self.eval_dataset if eval_dataset is None else rows_of(eval_dataset, "eval_dataset")
        if rows is None:
            raise DataError("there are no rows to evaluate on: give eval_dataset")
        args, rollout = self.args, self._settings["rollout"]
        data = {**self._settings["data"], "args": {**AS_IT_IS}}
        data["max_prompt_length"] = longest(self.processing_class, list(rows), args)
        run = calls.evaluate(
            model=self.run or (self._path if self._given_model is None else self._given_model),
            tokenizer=self.processing_class,
            dataset=rows,
            rewards=self._called(),
            reward_weights=args.reward_weights,
            name=f"{self._name}-eval",
            num_samples=args.num_generations_eval or args.num_generations,
            temperature=args.temperature,
            top_p=1.0,
            num_tasks=len(rows),
            max_completion_length=rollout["max_completion_length"],
            engine=rollout["engine"],
            seed=args.seed,
            dtype=self._settings["model"]["dtype"],
            data=data,
        )
        figures = next(iter(run.summary["details"].values()))
        found = evaluation(figures)
        found = {name.replace("eval_", f"{metric_key_prefix}_", 1): v for name, v in found.items()}
        logs = {**found, "epoch": self.state.epoch}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._send("on_log", logs=logs)
        self._send("on_evaluate", metrics=logs)
        return logs

    # -- what it has ------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The model: as given before `train`, with the trained weights afterwards."""
        if self._model is None:
            self._model = pretrained.load_model(self._path)
        return self._model

    @property
    def tokenizer(self) -> Any:
        """`processing_class` by its older name."""
        return self.processing_class

    @property
    def callback_handler(self) -> Handler:
        """transformers' list of the callbacks."""
        return self._handler

    def add_callback(self, callback: Any) -> None:
        """Add a callback, or make it of its class. Raises RecipeError for events not sent."""
        self._handler.add_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Remove a callback, by itself or by its class, and return it."""
        return self._handler.pop_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback, by itself or by its class."""
        self._handler.remove_callback(callback)

    def is_world_process_zero(self) -> bool:
        """True: the trainer is on the first rank."""
        return True

    def log_metrics(self, split: str, metrics: Mapping[str, Any]) -> None:
        """Print the metrics of a split, a line each."""
        print(f"***** {split} metrics *****")
        for name in sorted(metrics):
            print(f"  {name} = {metrics[name]}")

    # -- saving -----------------------------------------------------------------------------

    def save_model(self, output_dir: str | os.PathLike[str] | None = None) -> None:
        """Save model and tokenizer in a folder; by default in `args.output_dir`."""
        place = self._folder() if output_dir is None else Path(output_dir)
        place.mkdir(parents=True, exist_ok=True)
        with pretrained.without_bars():
            self.model.save_pretrained(place)
        self.processing_class.save_pretrained(place)

    def save_state(self) -> None:
        """Write `state` to trainer_state.json in `args.output_dir`."""
        place = self._folder()
        place.mkdir(parents=True, exist_ok=True)
        self.state.save_to_json(str(place / "trainer_state.json"))

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        """Refused: nothing is uploaded here."""
        raise RunError(
            "trainer.push_to_hub is not here, as nothing is uploaded; call "
            "trainer.model.push_to_hub(NAME) and trainer.processing_class.push_to_hub(NAME)"
        )

    def _send(self, event: str, **more: Any) -> None:
        send = getattr(self._handler, event)
        self.control = send(self.args, self.state, self.control, **more)

    def _folder(self) -> Path:
        if self.run is not None:
            return self.run.folder
        if self.args.output_dir:
            return Path(self.args.output_dir).expanduser()
        raise RunError("args.output_dir is None and nothing is trained yet; name a folder")

    def _all_rows(self) -> list[Any]:
        return [*self.train_dataset, *(self.eval_dataset or ())]
