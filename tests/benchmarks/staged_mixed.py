"""A section in which steps fail in every way."""

from gpu.section import Step
from staged import bad, crash, good, partly, section

SECTION = section(
    "mixed",
    [
        good("first"),
        Step(name="bad", run=bad),
        good("second"),
        Step(name="crash", run=crash),
        Step(name="card", run=bad, needs=("card",)),
        Step(name="partly", run=partly),
        good("last"),
    ],
)
