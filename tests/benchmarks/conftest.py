"""The benchmarks' own imports (`gpu`, `record`), and this folder's helpers."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "benchmarks"), str(HERE)]
