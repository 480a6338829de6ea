"""Every recovery against the same model unpruned, on any clips: speed, likeness, flicker.

Prints a table, then one JSON line. Times are wall times of this machine, so read the ratios; a full
and a pruned run alternate block by block, so both see the same load.

Run as ``python -m benchmarks.recoveries CLIP... [--conditioning sdedit] [--frames 48]``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from stillframe.edit import edit_file
from stillframe.load import load_pipeline
from stillframe.methods.prune import InterFramePruning

_COLUMNS = ("kept_share", "speedup_denoise", "speedup_total", "psnr_vs_full_db", "flicker")


def measure(pipe: Any, clip: Path, recovery: str, options: argparse.Namespace) -> dict[str, Any]:
    """One comparison; the edited file is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        report = edit_file(
            pipe,
            clip,
            Path(folder) / "out.mp4",
            prompt=options.prompt,
            method=InterFramePruning(recovery=recovery),
            max_frames=options.frames,
            compare=True,
            conditioning=options.conditioning,
        )
    row = {name: getattr(report, name) for name in _COLUMNS}
    assert report.full is not None
    return {"clip": clip.stem, "recovery": recovery, **row, "flicker_full": report.full.flicker}


def show(row: dict[str, Any]) -> None:
    """Print one row of the table."""
    numbers = "".join(f"{row[name]:>16.3f}" for name in (*_COLUMNS, "flicker_full"))
    print(f"{row['clip']:<22}{row['recovery']:<9}{numbers}", flush=True)  # noqa: T201


def main() -> None:
    """Run the matrix and print it."""
    parser = argparse.ArgumentParser(description="Compare recoveries with the unpruned model.")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompt", default="oil painting")
    parser.add_argument("--conditioning", choices=("source", "sdedit"), default="source")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--recoveries", nargs="+", default=["none", "noisy", "clean", "aligned"])
    options = parser.parse_args()
    pipe = load_pipeline(options.model)
    header = "".join(f"{name:>16}" for name in (*_COLUMNS, "flicker_full"))
    print(f"{'clip':<22}{'recovery':<9}{header}", flush=True)  # noqa: T201
    rows = []
    for clip in options.clips:
        for recovery in options.recoveries:
            rows.append(measure(pipe, clip, recovery, options))
            show(rows[-1])
    for recovery in options.recoveries:
        mine = [row for row in rows if row["recovery"] == recovery]
        averages = {name: mean(row[name] for row in mine) for name in (*_COLUMNS, "flicker_full")}
        show({"clip": "mean", "recovery": recovery, **averages})
    print(json.dumps(rows))  # noqa: T201


if __name__ == "__main__":
    main()
