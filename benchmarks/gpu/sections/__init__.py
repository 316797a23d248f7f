"""The sections of the GPU measurements, in the order in which they run.

A machine may go away at any moment: figures that nothing else can give come first.
"""

from __future__ import annotations

from importlib import import_module

from gpu.section import Section

SECTIONS = {
    "card": "gpu.sections.card",
    "learner": "gpu.sections.learner",
    "generation": "gpu.sections.generation",
    "step": "gpu.sections.step",
    "tests": "gpu.sections.tests",
    "parity": "gpu.sections.parity",
    "weights": "gpu.sections.weights",
    "profile": "gpu.sections.profile",
    "long": "gpu.sections.long",
    "recipes": "gpu.sections.recipes",
    "vllm": "gpu.sections.vllm",
}


def load(module: str) -> Section:
    """The section that a module holds. Raises ImportError where there is no such module."""
    section: Section = import_module(module).SECTION
    return section
