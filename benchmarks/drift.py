"""What the guard's sample cannot see: how far a whole block after reused ones is off a dense edit.

Every block of a guarded stream is computed twice: as it is, and whole, in a copy of the stream made
before it. Reuse less the copy is what a sample estimates; the copy less a dense edit of the same
noise is the drift. A row says both, the true error, and how near their squares add up to its
square. `Guard.drift` is the 95th of 100 clips of it, for the model and the prompt at hand.

Run as ``python -m benchmarks.drift CLIP... [--height 128] [--frames 72] [--prompt TEXT]``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.rates import noted_masks, noted_results, true_error, within
from benchmarks.rates_bench import Bench, Run, say, write_rows
from stillframe.control import Control, Guard
from stillframe.engine import EditStream
from stillframe.grid import patchify
from stillframe.methods import find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.restore import predecessor_rows, restore


class _Taken:
    """Stands for the decoder of a copy; only takes what it is given."""

    def __init__(self, stream: EditStream) -> None:
        self.spatial, self.temporal = stream._autoencoder.spatial, stream._autoencoder.temporal
        self.tokens = torch.empty(0)
        self._patch = stream._denoiser.patch

    def decode(self, grid: Tensor) -> Tensor:
        self.tokens = patchify(grid.float(), self._patch)
        return grid


def whole_from_here(stream: EditStream, latents: Tensor) -> Tensor:
    """The next block's result, (1, S*N, P), if it were whole; the stream stays as it is."""
    shared: list[Any] = [stream._denoiser, stream._text, stream._autoencoder]
    shared += [stream.controlled, stream._on_block]
    fork = copy.copy(stream)
    fork._state = copy.deepcopy(stream._state, {id(part): part for part in shared})
    generator = stream._generator
    assert isinstance(generator, torch.Generator)
    fork._generator = torch.Generator().set_state(generator.get_state())
    fork.controlled = fork._on_block = None
    taken = _Taken(stream)
    fork._autoencoder, fork._whole = taken, True  # type: ignore[assignment]
    fork.edit_block(latents)
    return taken.tokens


def _square(pairs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Mean square of a - b over the tokens (1, S*N) of a mask, all blocks together."""
    sums = sum(float((a - b).square().mean(2)[mask].sum()) for a, b, mask in pairs)
    return sums / max(sum(int(mask.sum()) for _, _, mask in pairs), 1)


def measure(bench: Bench, frames: Tensor, share: float) -> dict[str, Any] | None:
    """A clip's row; None if nothing was reused."""
    latents = bench.latents(frames)
    dense = noted_results(bench.run(find_method("full")()), latents)
    run: Run = bench.run(InterFramePruning(), Control(guard=Guard(share)))
    asked = noted_masks(run)
    whole = [torch.empty(0)]
    noted_results(run, latents[:1])
    for block in latents[1:]:
        whole.append(whole_from_here(run.stream, block))
        run.stream.edit_block(block)
    told = run.controlled.told()["guard"]
    if told["error"] is None:
        return None
    seen, drifted = [], []
    for number, keep in enumerate(asked, 1):
        wanted = keep.flatten(2)
        reused = ~wanted.flatten(1)
        previous = run.results[number - 1][:, -wanted.shape[2] :]
        shown = restore(run.results[number], previous, predecessor_rows(wanted))
        seen.append((shown, whole[number], reused))
        drifted.append((whole[number], dense[number], reused))
    true, _ = true_error(run, asked, dense)
    return {
        "estimated": told["error"],
        "low": told["low"],
        "high": told["high"],
        "seen": _square(seen) ** 0.5,
        "drift": _square(drifted) ** 0.5,
        "together": (_square(seen) + _square(drifted)) ** 0.5,
        "true": true,
        "covered": within(told["low"], true, told["high"]),
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
    parser.add_argument("--out", type=Path, default=Path("drift"))
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
        numbers = "  ".join(f"{key} {x:.4f}" for key, x in row.items() if key != "covered")
        say(f"{name:<24} {numbers}  {'covered' if row['covered'] else 'not covered'}")
    write_rows(options.out, "drift", rows)
    drifts = np.array([row["drift"] for row in rows])
    told = {"clips": len(rows), "covered": sum(row["covered"] for row in rows)}
    told |= {f"drift_{q}": float(np.quantile(drifts, q / 100)) for q in (50, 90, 95)}
    say(json.dumps({"what": "drift", "height": bench.height, **told}))


if __name__ == "__main__":
    main()
