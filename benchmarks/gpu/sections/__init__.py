"""The sections of the GPU measurements, in the order in which they run."""

from __future__ import annotations

from importlib import import_module

from gpu.section import Section

SECTIONS = {
    "card": "gpu.sections.card",
    "tests": "gpu.sections.tests",
    "parity": "gpu.sections.parity",
    "learner": "gpu.sections.learner",
    "generation": "gpu.sections.generation",
    "weights": "gpu.sections.weights",
    "step": "gpu.sections.step",
    "vllm": "gpu.sections.vllm",
    "recipes": "gpu.sections.recipes",
    "long": "gpu.sections.long",
    "profile": "gpu.sections.profile",
}


def load(module: str) -> Section:
    """The section that a module holds. Raises ImportError where there is no such module."""
    section: Section = import_module(module).SECTION
    return section
