"""A section that takes as long as the test wants."""

from gpu.section import Step
from staged import good, long, section

SECTION = section("long", [good("first"), Step(name="long", run=long), good("last")])
