"""The command line: parse first, import torch only when a verb needs it.

An error that the toolkit raises on purpose is one sentence on stderr, with exit code 2. Any other
error is a bug and keeps its traceback. Ctrl-C gives exit code 130.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from grpo.errors import GrpoError, PluginError
from grpo.outside.code.foreign import said
from grpo.outside.terminal import streams

USAGE = 2
INTERRUPTED = 130
PIPE_CLOSED = 141
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # the disk, not a bug

OVERRIDES = "settings such as run.seed=7 or rollout.num_generations=16 (values are YAML)"
TEMPLATE = "chat, r1_zero and raw, one or several side by side"
BASELINE = "a second model to compare with; of a run, empty: what it started from"
TYPE = "compute type (auto: float32 on a CPU, bfloat16 or float16 on a GPU)"
DTYPES = ("auto", "float32", "bfloat16", "float16")
RECIPE = "path of a recipe, or the bare name of a shipped one"


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence, as all of ours are."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"grpo: error: {message} (see {self.prog} --help).\n")


class _Help(argparse.HelpFormatter):
    """argparse's, with room for the longest verb, which it indents more than it measures."""

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        super().add_arguments(actions)
        self._action_max_length += self._indent_increment


def parser() -> argparse.ArgumentParser:
    """The whole command line. Each verb stores in `verb` the function that runs it."""
    top = _Parser(
        prog="grpo",
        description="R1-Zero and R1 on small models: GRPO with verifiable rewards.",
        epilog="grpo VERB --help explains a verb.",
        formatter_class=_Help,
    )
    top.add_argument("--version", action=_Version)
    verbs = top.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)

    for name, (text, add_options) in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        verb.set_defaults(verb=_train if name == "train" else partial(_call, name))
        add_options(verb)
    return top


def _add_overrides(verb: argparse.ArgumentParser) -> None:
    """Without a default of its own, argparse says that the settings are required."""
    name = "section.key=value"
    verb.add_argument("overrides", metavar=name, nargs="*", default=[], help=OVERRIDES)


def _add_recipe(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    _add_overrides(verb)


def _add_train(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", metavar="RECIPE", nargs="?", help=RECIPE)
    _add_overrides(verb)
    verb.add_argument("--resume", metavar="RUN", help="folder of the run to continue")
    verb.add_argument(
        "--accept-changes",
        action="store_true",
        default=None,
        help="with --resume: go on although rows, plug-ins, models, ranks or device have changed",
    )


def _add_eval(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL|RUN", help="model folder, hub id, or a run's folder")
    _add_overrides(verb)
    verb.add_argument("--recipe", help=f"{RECIPE}; a run brings its own")
    _add_task_options(verb)


def _add_score(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("reward", metavar="REWARD", help="name, package.module:attr or file.py:attr")
    verb.add_argument("file", metavar="FILE.jsonl", help="rows of prompt, completion and columns")
    verb.add_argument("--workers", type=_count, default=1, metavar="N", help="rows scored at once")
    verb.add_argument(
        "--timeout", type=_seconds, default=600.0, metavar="S", help="seconds of one call (600)"
    )
    verb.add_argument(
        "--args", nargs="+", default=[], metavar="key=value", help="arguments of the reward"
    )


def _add_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", metavar="FILE", nargs="?", help="file, folder or pattern of rows")
    verb.add_argument("--recipe", help=f"{RECIPE}, whose tasks are looked at")
    verb.add_argument("--model", metavar="MODEL", help="whose tokens are counted")
    verb.add_argument("--heldout", metavar="FILE", help="rows that may not be among these")
    verb.add_argument("--prompt", metavar="COLUMN", help="the column with the prompt")
    verb.add_argument("--answer", metavar="COLUMN", help="the column with the answer (answer)")
    verb.add_argument(
        "--max-prompt-length", type=_count, metavar="N", help="count prompts of more tokens"
    )
    verb.add_argument("--json", action="store_true", default=None, help="print it as JSON")


def _add_check(verb: argparse.ArgumentParser) -> None:
    _add_recipe(verb)
    verb.add_argument(
        "--limit", type=_count, default=10_000, metavar="N", help="tasks of each split (10000)"
    )


def _add_dry_run(verb: argparse.ArgumentParser) -> None:
    _add_recipe(verb)
    verb.add_argument("--architecture", metavar="NAME", help="family of models it cannot tell")
    verb.add_argument("--out", metavar="FOLDER", help="new folder to keep the run in")


def _add_import_trl(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("config", metavar="CONFIG.yaml", help="what `trl grpo --config` reads")
    verb.add_argument("-o", "--out", metavar="RECIPE.yaml", help="new file (otherwise: stdout)")
    verb.add_argument(
        "--rows", type=_count, metavar="N", help="of the training split, which epochs need"
    )
    verb.add_argument(
        "--eval-rows", type=_count, metavar="N", help="of the test split, with eval_strategy"
    )


def _add_show(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", metavar="RUN", help="folder of the run")


def _add_chat(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("models", metavar="MODEL", nargs="+", help="model folder or hub id (1 or 2)")
    verb.add_argument(
        "--template",
        choices=["r1_zero", "chat", "raw"],
        default=None,
        help="how a question becomes a prompt (chat where the model has a template)",
    )
    verb.add_argument("--max-tokens", type=_count, default=256, metavar="N")
    verb.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")


def _add_serve(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="model folder or hub id")
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    verb.add_argument("--port", type=_count, default=8000, metavar="N", help="port (8000)")
    verb.add_argument("--dtype", choices=DTYPES, default="auto", help=TYPE)
    verb.add_argument(
        "--max-model-len", type=_count, default=0, metavar="N", help="longest request"
    )
    verb.add_argument(
        "--kv-cache-gib", type=float, default=0.0, metavar="X", help="memory for keys and values"
    )
    verb.add_argument("--threads", type=_count, default=0, metavar="N", help="CPU threads")
    verb.add_argument(
        "--no-token",
        action="store_true",
        help="let every user of this machine control the server (it asks for a token otherwise)",
    )
    verb.add_argument(
        "--vllm",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of vLLM's own, say --vllm=--tensor-parallel-size=2; may be repeated",
    )


def _add_task_options(verb: argparse.ArgumentParser) -> None:
    """What `grpo eval --tasks` takes; None is not given (docs/evaluation.md, `options.FORMS`)."""
    verb.add_argument("--tasks", type=_names, metavar="NAME,…", help="gsm8k, math500, aime24, …")
    verb.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[TASK=]FILE.jsonl",
        help="rows of your own, or those of a task from a file; may be repeated",
    )
    verb.add_argument("--rewards", type=_names, metavar="NAME,…", help="what judges, say my.py:f")
    verb.add_argument("--k", type=_count, metavar="N", help="completions per task")
    verb.add_argument("--limit", type=_count, metavar="N", help="first tasks only")
    verb.add_argument("--max-tokens", type=_count, metavar="N", help="longest completion")
    verb.add_argument("--template", type=_names, metavar="NAME,…", help=TEMPLATE)
    verb.add_argument("--temperature", type=float, metavar="X", help="(0.6, as R1)")
    verb.add_argument("--top-p", type=float, metavar="X", help="(0.95, as R1)")
    verb.add_argument("--engine", metavar="NAME", help="what samples (torch)")
    verb.add_argument(
        "--engine-args", nargs="+", default=[], metavar="key=value", help="arguments of the engine"
    )
    verb.add_argument("--dtype", choices=DTYPES, help=TYPE)
    verb.add_argument("--baseline", metavar="MODEL", nargs="?", const="", help=BASELINE)
    verb.add_argument("--against", metavar="TRAIN.jsonl", help="rows that tasks may have leaked to")
    verb.add_argument("--out", metavar="DIR", help="folder for every completion (runs/eval-MODEL)")
    verb.add_argument("--seed", type=int, metavar="N", help="of the sampling noise (0)")
    verb.add_argument("--threads", type=_count, metavar="N", help="CPU threads")


# verb -> what `grpo --help` says of it, and what adds its options
VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": ("run a recipe, or continue a run that was interrupted", _add_train),
    "eval": ("evaluate a model on built-in tasks, or on those of a recipe", _add_eval),
    "score": ("score the completions in a JSON-lines file with a reward", _add_score),
    "data": ("look at rows: columns, lengths, duplicates, contamination", _add_data),
    "check": ("try a recipe's verifiers on its own gold answers", _add_check),
    "doctor": ("print which sandbox confines model code on this machine", lambda _: None),
    "plan": ("print what a recipe will do, without doing it", _add_recipe),
    "dry-run": ("run a recipe in seconds with tiny random models, and check it", _add_dry_run),
    "import-trl": ("make a recipe of a configuration of `trl grpo`", _add_import_trl),
    "show": ("summarize a run", _add_show),
    "chat": ("talk to a model, or to two side by side", _add_chat),
    "serve": ("start a vLLM server that samples for training (engine=server)", _add_serve),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    with streams.guarded():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parse(argv)
        try:
            code = arguments.verb(arguments)
        except SystemExit as exit:  # of a plug-in: no verb leaves this way
            raise PluginError(f"code that is not ours {said(exit)}.") from exit
        sys.stdout.flush()
        return code
    except GrpoError as error:
        print(f"grpo: error: {error}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        # The reader (head, less) went away. Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"grpo: error: {error}; what was saved before is whole.", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt as interrupt:
        print(f"\ngrpo: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. Overrides may also follow options, where argparse does not look for them."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(late) < len(rest) or (late and not hasattr(arguments, "overrides")):
        top.error(
            f"unrecognized arguments: {' '.join(w for w in rest if w not in late) or late[0]}"
        )
    if late:
        arguments.overrides += late
    return arguments


def _train(arguments: argparse.Namespace) -> int:
    from grpo.commands import reading

    if arguments.resume is not None:
        folder = reading.folder_to_resume(arguments)
        from grpo.commands.train import resume

        resume(folder, accept_changes=bool(arguments.accept_changes))
        return 0
    recipe = reading.recipe_to_train(arguments)
    from grpo.commands.train import train

    train(recipe)
    return 0


def _call(verb: str, arguments: argparse.Namespace) -> int:
    """`main` of the verb's module. A recipe is read first: the module may import torch."""
    module = f"grpo.commands.{verb.replace('-', '')}"
    if verb not in ("check", "plan", "dry-run"):
        return import_module(module).main(arguments)
    recipe = import_module("grpo.commands.reading").recipe(arguments)
    return import_module(module).main(recipe, arguments)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError as error:  # argparse would name this function
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 1")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from error
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if "" in names:
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


class _Version(argparse.Action):
    """--version, which reads the package's metadata only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from grpo.outside.version import toolkit_version

        print(f"grpo-toolkit {toolkit_version()}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
