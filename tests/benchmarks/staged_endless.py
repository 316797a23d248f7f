"""A section whose first step takes as long as the test wants."""

from gpu.section import Step
from staged import good, long, section

SECTION = section("endless", [Step(name="long", run=long), good("last")])
