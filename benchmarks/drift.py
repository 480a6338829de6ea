"""What the guard's sample cannot see: how far a whole block after reused ones is off a dense edit.

Every block of a guarded stream is computed twice: as it is, and whole, in a copy of the stream made
before it. Reuse less the copy is what a sample estimates; the copy less a dense edit of the same
noise is the drift. A row says both, the true error, and how near their squares add up to its
square. `Guard.drift` is the 95th of 100 clips of it, for the model and the prompt at hand. Patches
are reused at their own place alone: of those that moved a guard says nothing.

Run as ``python -m benchmarks.drift CLIP... [--height 128] [--frames 72] [--prompt TEXT]``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import say
from benchmarks.rates import noted_masks, noted_results, reused, true_error, within
from benchmarks.rates_bench import Bench, Run, write_rows
from stillframe.controls import Controls, Guard
from stillframe.engine.stream import EditStream
from stillframe.methods import find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.tokens.grid import patchify

#: Lowest, median and highest ratio over clips.
_RATIOS = (
    ("width", "high", "true"),
    ("bias", "true", "estimated"),
    ("lean", "seen", "estimated"),
    ("sum", "together", "true"),
)


class _Taken:
    """Stands for the decoder of a copy; only takes what it is given."""

    changed_alone = False

    def __init__(self, stream: EditStream) -> None:
        self.timeline = stream._autoencoder.timeline
        self.tokens = torch.empty(0)
        self._patch = stream._backbone.patch

    def decode(self, grid: Tensor, changed: Tensor | None = None) -> Tensor:
        self.tokens = patchify(grid.float(), self._patch)
        return grid


def whole_from_here(stream: EditStream, latents: Tensor, pixels: Tensor) -> Tensor:
    """The next block's result, (1, S*N, P), if it were whole; the stream stays as it is."""
    shared: list[Any] = [stream._backbone, stream._text, stream._autoencoder]
    shared += [stream.control_state, stream._on_block, stream.staleness]
    fork = copy.copy(stream)
    fork._state = copy.deepcopy(stream._state, {id(part): part for part in shared})
    generator = stream._generator
    assert isinstance(generator, torch.Generator)
    fork._generator = torch.Generator().set_state(generator.get_state())
    fork.control_state = fork._on_block = None
    taken = _Taken(stream)
    fork._autoencoder, fork._whole = taken, True  # type: ignore[assignment]
    fork.edit_block(latents, pixels)
    return taken.tokens


def _square(pairs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Mean square of a - b over the tokens (1, S*N) of a mask, all blocks together."""
    sums = sum(float((a - b).square().mean(2)[mask].sum()) for a, b, mask in pairs)
    return sums / max(sum(int(mask.sum()) for _, _, mask in pairs), 1)


def measure(bench: Bench, frames: Tensor, share: float) -> dict[str, Any] | None:
    """A clip's row; None if nothing was reused."""
    latents = bench.latents(frames)
    pixels = bench.pixels(frames)
    dense = noted_results(bench.run(find_method("full")()), latents, pixels)
    guard = Guard(share)
    alone = replace(guard, drift=0.0, lean=1.0)
    run: Run = bench.run(InterFramePruning(motion="off"), Controls(alone))
    asked = noted_masks(run)
    whole = [torch.empty(0)]
    noted_results(run, latents[:1], pixels[:1])
    for block, seen_as in zip(latents[1:], pixels[1:], strict=True):
        whole.append(whole_from_here(run.stream, block, seen_as))
        run.stream.edit_block(block, seen_as)
    told = run.control_state.report()["guard"]
    if told["error"] is None:
        return None
    seen, drifted = [], []
    for number, (shown, wanted) in enumerate(reused(run, asked), 1):
        seen.append((shown, whole[number], ~wanted))
        drifted.append((whole[number], dense[number], ~wanted))
    true, _ = true_error(run, asked, dense)
    low, high = told["low"], math.hypot(guard.lean * told["high"], guard.drift)
    return {
        "estimated": told["error"],
        "low": low,
        "high": high,
        "seen": _square(seen) ** 0.5,
        "drift": _square(drifted) ** 0.5,
        "together": (_square(seen) + _square(drifted)) ** 0.5,
        "true": true,
        "covered": within(low, true, high),
        "covered_by_sample": within(low, true, told["high"]),
        "kept": run.kept,
    }


def main() -> None:
    """Measure clips."""
    parser = argparse.ArgumentParser(description="What the guard's sample cannot see.")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--prompt", default="oil painting")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--frames", type=int, default=72, help="of each clip, at most")
    parser.add_argument("--steps", type=int, default=None, help="denoising passes")
    parser.add_argument("--share", type=float, default=0.02, help="that the guard draws")
    parser.add_argument("--out", type=Path, default=Path("runs/drift"))
    parser.set_defaults(random_13b=False)
    options = parser.parse_args()
    bench = Bench(options)
    rows = []
    for name, frames in bench.clips.items():
        row = measure(bench, frames, options.share)
        if row is None:
            say(f"{name:<24} has nothing reused")
            continue
        rows.append({"clip": name, **row})
        numbers = "  ".join(f"{key} {x:.4f}" for key, x in row.items() if "covered" not in key)
        say(f"{name:<24} {numbers}  {'covered' if row['covered'] else 'not covered'}")
    write_rows(options.out, "drift", rows)
    drifts = np.array([row["drift"] for row in rows])
    told: dict[str, Any] = {"clips": len(rows)}
    told |= {key: sum(row[key] for row in rows) for key in ("covered", "covered_by_sample")}
    for name, above, below in _RATIOS:
        ratios = [row[above] / row[below] for row in rows]
        told[name] = [min(ratios), median(ratios), max(ratios)]
    told |= {f"drift_{q}": float(np.quantile(drifts, q / 100)) for q in (50, 90, 95)}
    say(json.dumps({"what": "drift", "height": bench.height, **told}))


if __name__ == "__main__":
    main()
