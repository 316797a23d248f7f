"""Rewards and settings that are wrong, and what the answer has to say; see `bad_calls`."""

from __future__ import annotations

from tests.grpo.commands.api.bad_calls import SEVERAL, reward, train

ZEROS = "return [0.0] * len(completions)"
SLOW = "[{'name': bad, 'timeout': 1}]"
CLASS = "class Bad:\n    def __init__(self, k):\n        self.k = k"

REWARDS: dict[str, tuple[str, str]] = {
    "number": (train(rewards="3"), r"rewards\[0\] = 3 is of type int; valid: a function, the"),
    "none": (train(rewards="[]"), r"rewards = \[\]: give at least one reward"),
    "None": (train(rewards="[None]"), r"rewards\[0\] = None is of type NoneType"),
    "called already": (train(rewards="[short(['a'])]"), r"rewards\[0\] = \[0.0\] is of type list"),
    "set": (train(rewards="{short}"), "is of type set"),
    "name with a typo": (train(rewards="['acuracy']"), "Did you mean 'accuracy'"),
    "file that is not there": (train(rewards="['no.py:f']"), "there is no file 'no.py'"),
    "dict of functions": (
        train(rewards="{'short': short}"),
        "a dict without 'name'; write it as {'name': my_function",
    ),
    "dict with a typo": (
        train(rewards="[{'name': short, 'wieght': 1.0}]"),
        "unknown key 'wieght' in rewards.0. Did you mean 'weight'",
    ),
    "object of another program": (train(rewards="['object:x']"), "a Python object of the program"),
    "class": (train(CLASS, rewards="[Bad]"), r"is the class Bad, not an object of it .*Bad\(…\)"),
    "model that writes": (
        train(SEVERAL, rewards="[model]"),
        "a LlamaForCausalLM, which generates text; a reward model gives one number",
    ),
    "weights too many": (train(reward_weights="[1, 2]"), "one number for each reward, 1 here"),
    "one weight": (train(reward_weights="2.0"), "reward_weights = 2.0: give a list with one"),
    "weight NaN": (train(reward_weights="[float('nan')]"), "weight = nan .* a finite number"),
    "weights alone": (
        "grpo.train('parity-r1-zero', reward_weights=[1.0])",
        r"reward_weights goes with rewards=\[…\]",
    ),
    "by place": (reward(ZEROS, "completions, /"), "takes 'completions' by its place only"),
    "missing column": (reward(ZEROS, "completions, solution"), "no column 'solution'.*Columns: an"),
    "too few": (reward("return [0.0] * 3"), "reward 'bad' returned 3 values for "),
    "one number": (reward("return 0.5"), r"returned float \(0.5\), not a list with one number"),
    "nothing": (reward("pass"), r"returned NoneType \(None\), not a list"),
    "NaN": (
        reward("return [float('nan')] * len(completions)"),
        "returned nan for completion 0; return None wh",
    ),
    "texts": (
        reward("return ['1'] * len(completions)"),
        "returned '1' for completion 0, not a number",
    ),
    "text": (reward("return 'good'"), r"returned str \('good'\), not a list"),
    "lists": (
        reward("return [[0.0]] * len(completions)"),
        "returned list for completion 0, not a number",
    ),
    "matrix": (
        reward("import torch\nreturn torch.zeros(len(completions), 1)"),
        "returned Tensor .* of 2 dimensions, not a list",
    ),
    "generator": (reward("for _ in completions:\n    yield 0.0"), "returned generator .* no order"),
    "asynchronous generator": (reward("yield 0.0", kind="async def"), "returned async_generator"),
    "dict": (reward("return {0: 0.0, 1: 0.0}"), "returned dict .* no order that is the compl"),
    "None for all": (reward("return [None] * len(completions)"), "scored no held-out completion"),
    "huge": (reward("return [1e300] * len(completions)"), r"a reward is at most 1e\+18 in size"),
    "raises": (reward("return 1 / 0"), "raised ZeroDivisionError: division by zero at "),
    "raises later": (
        reward("await asyncio.sleep(0)\nraise ValueError('no')", kind="async def"),
        "raised ValueError: no at ",
    ),
    "exits": (reward("sys.exit(3)"), r"called sys.exit\(3\) at .*, and only you may end a run"),
    "interrupts": (reward("raise KeyboardInterrupt"), "raised KeyboardInterrupt at "),
    "sleeps": (reward("time.sleep(60)", rewards=SLOW), "did not return within 1 s, when it was at"),
    "computes for ever": (reward("while True: pass", rewards=SLOW), "did not return within 1 s"),
    "waits for ever": (
        reward("await asyncio.sleep(60)", kind="async def", rewards=SLOW),
        "did not return within 1 s, when it was at",
    ),
    "trains": (reward("grpo.train(**GOOD)"), "another call of grpo is running in this process"),
    "changes its arguments": (
        reward("completions.clear()\nreturn [0.0] * 77"),
        "returned 77 values for ",
    ),
}
SETTINGS: dict[str, tuple[str, str]] = {
    "typo": (train(learning_rat="1e-5"), "no setting 'learning_rat'. Did you mean 'learning_rate'"),
    "several of a name": (train(steps="3"), r"several settings: write agreement={'steps': 3} or"),
    "section with a typo": (train(lerner="{}"), "no setting 'lerner'. Did you mean 'learner'"),
    "of another section": (
        "grpo.train(**{**GOOD, 'eval': {'max_steps': 1}})",
        "unknown key 'max_steps' in eval",
    ),
    "number for a section": (train(eval="3"), "eval = 3: it should be a mapping"),
    "number for run": (train(run="3"), "run = 3: it should be a dict of settings"),
    "text": (train(learning_rate="'fast'"), "learning_rate = 'fast' .* it should be a number"),
    "None": (train(learning_rate="None"), "learning_rate = None .* it should be a number"),
    "NaN": (train(learning_rate="float('nan')"), "learning_rate = nan .* a finite number"),
    "true": (train(max_steps="True"), "max_steps = True .* a whole number"),
    "negative": (train(max_steps="-1"), "max_steps = -1 .* greater than or equal to 1"),
    "function": (train(learning_rate="lambda: 1"), "learning_rate = .* it should be a number"),
    "tensor": (
        train("import torch", learning_rate="torch.tensor(1e-5)"),
        "is of type Tensor, and a setting is a number",
    ),
    "itself": (train("d = {}; d['d'] = d", engine_args="d"), "nested more than 20 deep"),
    "two spellings": (
        train(learner="{'max_steps': 2}"),
        "learner.max_steps is given twice, as 1 by 'max_steps' and as 2 by 'learner'",
    ),
    "two dotted": (
        "grpo.train(**GOOD | {'learner.max_steps': 2})",
        "max_steps is given twice, as 1 by 'max_steps' and as 2 by 'learner.max_steps'",
    ),
    "batch of TRL": (
        train(per_device_train_batch_size="4"),
        "'per_device_train_batch_size' is a name of TRL's; here: prompts_per_step=",
    ),
    "folder of TRL": (train(output_dir="'out'"), "name of TRL's; here: dir="),
    "rewards of TRL": (train(reward_funcs="[short]"), "name of TRL's; here: rewards="),
    "rows of TRL": (train(train_dataset="ROWS"), "name of TRL's; here: dataset="),
    "penalty": (train(repetition_penalty="1.1"), "the learner would compute other probabilities"),
    "callbacks": (train(callbacks="[3]"), "callbacks.0 = 3"),
    "folder of a wrong type": (train(dir="3"), "dir = 3 is of type int, not a path"),
    "folder is a file": (train(dir="'script.py'"), "script.py' is a file; name a folder"),
    "folder below a file": (train(dir="'script.py/x'"), "cannot be made: Not a directory"),
    "folder of something else": (
        train("os.makedirs('out'); os.mkdir('out/mine')", dir="'out'", overwrite="True"),
        "holds something that is no run, and is left as it is; name another dir",
    ),
}
