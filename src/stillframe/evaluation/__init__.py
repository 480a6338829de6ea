"""Evidence: matrices of edits with metrics, the experiments behind the papers' tables, and reports.

`matrix` runs cells and remembers them, `experiments` asks, `runs` does what the commands do. Knows
models, files and metrics; neither terminals nor arguments.
"""

from __future__ import annotations

from stillframe.evaluation.runs import (
    BUNDLED_SCALE,
    PUBLISHED_SCALE,
    Plan,
    evaluate,
    reproduce,
)

__all__ = ["BUNDLED_SCALE", "PUBLISHED_SCALE", "Plan", "evaluate", "reproduce"]
