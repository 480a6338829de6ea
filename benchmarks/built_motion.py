"""Built motion: what is computed of it, and how stale what is reused is. No model runs.

A row a case and motion: shares of the patches after the first block that are computed and that
moved, and staleness in grey levels.

Run as ``python -m benchmarks.built_motion [--frames 60] [--height 240] [--width 416]``.
"""

from __future__ import annotations

import argparse
import json

from benchmarks import say
from stillframe.evaluation.motion_cases import built_motion
from stillframe.evaluation.motion_following import following_row
from stillframe.methods.prune import MOTIONS


def main() -> None:
    """Print a row a case and motion, and JSON."""
    parser = argparse.ArgumentParser(description="What is computed of built motion.")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=416)
    options = parser.parse_args()
    rows = []
    for case in built_motion(options.frames, options.height, options.width):
        for motion in MOTIONS:
            row = following_row(case.frames, motion)
            told = "  ".join(f"{k} {'-' if v is None else f'{v:.3f}'}" for k, v in row.items())
            say(f"{case.name:<14}{motion:<8}{told}")
            rows.append({"case": case.name, "motion": motion, **row})
    say(json.dumps({"what": "built motion", **vars(options), "rows": rows}))


if __name__ == "__main__":
    main()
