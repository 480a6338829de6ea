"""Every recovery against the same model unpruned, on any clips: speed, worst patches, staleness,
flicker.

Prints a table, then one JSON line. ``computed`` leaves the first block out, which is always whole.
``worst`` is the 99th percentile of the patches' differences from the unpruned edit, in grey levels,
``seed`` the same of two unpruned edits with other seeds, ``ratio`` one over the other, ``tail`` the
99.9th percentile over the 99th. ``stale`` is the 99.9th percentile of what was reused against its
source. Flicker is of still regions: edit, unpruned edit, source. Times are wall times of this
machine, so read the ratios; a full and a pruned run alternate block by block, so both see the same
load.

Run as ``python -m benchmarks.recoveries CLIP... [--conditioning sdedit] [--frames 48]``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import say
from stillframe.jobs.edit import edit_file
from stillframe.loading.load import load_pipeline
from stillframe.methods.prune import InterFramePruning

_COLUMNS = ("computed", "denoise", "total", "worst", "seed", "ratio", "tail", "stale")
_FLICKER = ("flicker", "full", "source")


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
    worst, seed, stale = report.worst_patch, report.worst_patch_seed, report.staleness
    assert report.full is not None
    assert worst is not None
    assert seed is not None
    later = report.kept_share_blocks[1:]
    return {
        "clip": clip.stem,
        "recovery": recovery,
        "computed": mean(later) if later else 1.0,
        "denoise": report.speedup_denoise,
        "total": report.speedup_total,
        "worst": worst["p99"],
        "seed": seed["p99"],
        "ratio": worst["p99"] / max(seed["p99"], 0.5),
        "tail": worst["p99.9"] / max(worst["p99"], 0.05),
        "stale": 0.0 if stale is None else stale["p99.9"],
        "flicker": report.flicker,
        "full": report.full.flicker,
        "source": report.flicker_source,
        "psnr": report.psnr_vs_full_db,
    }


def show(row: dict[str, Any]) -> None:
    """Print one row of the table."""
    numbers = "".join(f"{row[name]:>9.2f}" for name in (*_COLUMNS, *_FLICKER))
    say(f"{row['clip']:<22}{row['recovery']:<8}{numbers}")


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
    header = "".join(f"{name:>9}" for name in (*_COLUMNS, *_FLICKER))
    say(f"{'clip':<22}{'recovery':<8}{header}")
    rows = []
    for clip in options.clips:
        for recovery in options.recoveries:
            rows.append(measure(pipe, clip, recovery, options))
            show(rows[-1])
    for recovery in options.recoveries:
        mine = [row for row in rows if row["recovery"] == recovery]
        averages = {name: mean(row[name] for row in mine) for name in (*_COLUMNS, *_FLICKER)}
        show({"clip": "mean", "recovery": recovery, **averages})
    say(json.dumps(rows))


if __name__ == "__main__":
    main()
