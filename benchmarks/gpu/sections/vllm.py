"""The vLLM engine's own tests on the card, each recorded as those of the section `tests`."""

from __future__ import annotations

from collections.abc import Mapping

from gpu import marked
from gpu.section import Result, Section, Setup, Step
from gpu.tested import steps_of, table_of
from gpu.vllm_environment import ENVIRONMENT

CHOSEN = "vllm and not ray"


def _files() -> list[str]:
    return marked.files(mark="vllm", under="tests/rollout")


def _steps(setup: Setup) -> list[Step]:
    # tiny: not the many minutes that all of them take on a CPU
    files = ["tests/rollout/vllm/test_vllm_compat.py"] if setup.tiny else _files()
    session = marked.Session(
        files,
        setup.folder / "tests-vllm.jsonl",
        on_cpu=setup.device == "cpu",
        chosen=CHOSEN,
        again=setup.again,
        environment=ENVIRONMENT,
    )
    return steps_of(session, files, needs=("vllm",))


def _table(results: Mapping[str, Result]) -> str:
    return table_of(results, _files())


SECTION = Section(
    name="vllm",
    title="Tests of the vLLM engine on the card",
    minutes=5.5,
    steps=_steps,
    table=_table,
)
