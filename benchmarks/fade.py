"""A slow fade against everything that keeps a picture from going stale.

A still, textured picture gets brighter by 0.2 grey levels a frame, and darker again where it would
leave the range, for 3,000 frames: no two frames in a row differ by what a detector calls a change.
It is edited by the bundled model densely and, with the same noise, pruned: without the long-term
bound and without refresh, with either, with both. The edit is one of almost no strength (SDEdit,
sigma 0.02), which shows the source again: what is measured is how old the picture is, and not what
a style makes of its brightness. Pictures are never rounded to 8 bits.

Printed are grey levels between the pruned result and the dense one: of the mean brightness, which
is what a fade moves and noise does not, over all frames of the fade, in its last block, and in the
last block of what follows it if the picture then stands still for 2 R blocks; and of all pixels of
the fade's last block, next to those between two dense results with different noise. How far the
source has gone on since the stalest place was recomputed is printed in latent standard deviations:
that is what the long-term bound bounds.

Run as ``python -m benchmarks.fade [--frames 3000] [--refresh 4 16] [--size 64]``. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import say
from stillframe.controls import Controls, Refresh
from stillframe.loading.load import load_pipeline
from stillframe.methods import Method, find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["Outcome", "fade", "measure"]

_LOW, _HIGH = 40.0, 200.0
_BLOCK = 12


class Outcome(NamedTuple):
    """Grey levels from the dense result.

    Attributes:
        kept: share of tokens computed.
        worst: largest difference in brightness of any frame of the fade.
        end: difference in brightness, mean over the last block of the fade.
        settled: the same for the last block of all, after the picture has stood still.
        pixels: mean absolute difference of all pixels in the last block of the fade.
        stale: latent standard deviations by which the source has gone on since the stalest place
            was recomputed, mean over its numbers, at the end of the fade.
    """

    kept: float
    worst: float
    end: float
    settled: float
    pixels: float
    stale: float


def fade(frames: int, still: int, size: int, step: float = 0.2) -> Iterator[Tensor]:
    """Blocks (1, 12, 3, size, size) of the fade and of as many still frames as asked for after it.

    Args:
        frames, still: how many; multiples of 12.
        size: pixels a side.
        step: grey levels a frame.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, size // 8, size // 8, generator=generator)
    texture = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic") - 0.5
    number = torch.arange(frames + still).clamp(max=frames - 1)
    span = _HIGH - _LOW
    level = _LOW + span - ((number * step) % (2 * span) - span).abs()
    video = level.view(-1, 1, 1, 1) / 255 + 0.2 * texture
    yield from video.unsqueeze(0).split(_BLOCK, 1)


class _Run:
    """One way of editing the fade, block by block."""

    def __init__(
        self, pipe: CausalWanPipeline, method: Method, refresh: int | None, seed: int = 0
    ) -> None:
        self.kept: list[float] = []
        control = None if refresh is None else Controls(Refresh(refresh))
        self.stream = pipe.stream(
            "oil painting",
            method=method,
            control=control,
            generator=torch.Generator().manual_seed(seed),
            on_block=lambda stats: self.kept.append(stats.kept_share),
            sigmas=[0.02],
            conditioning="sdedit",
        )

    def __call__(self, frames: Tensor) -> Tensor:
        edited = self.stream.push(frames)
        assert edited is not None
        return edited

    @property
    def reference(self) -> Tensor:
        """Source that each place was last recomputed from, and the source now: (2, N, P)."""
        state: Any = self.stream._state
        return torch.stack([state.reference[0], state.source[0]])


def measure(
    pipe: CausalWanPipeline, ways: dict[str, tuple[Method, int | None]], frames: int, still: int,
    size: int,
) -> dict[str, Outcome]:  # fmt: skip
    """Every way against the dense edit, in lockstep.

    Args:
        pipe: the model, of blocks of 12 frames.
        ways: methods, and blocks of a refresh.
        frames, still, size: see `fade`.
    """
    full = find_method("full")()
    runs = {name: _Run(pipe, method, refresh) for name, (method, refresh) in ways.items()}
    dense, other = _Run(pipe, full, None), _Run(pipe, full, None, seed=1)
    notes: dict[str, list[tuple[float, float]]] = {name: [] for name in (*runs, _OTHER)}
    stale: dict[str, float] = dict.fromkeys(notes, 0.0)
    last = frames // _BLOCK - 1
    for number, block in enumerate(fade(frames, still, size)):
        truth = dense(block)
        for name, run in {**runs, _OTHER: other}.items():
            result = run(block)
            light = (result.mean((0, 2, 3, 4)) - truth.mean((0, 2, 3, 4))).abs() * 255
            pixels = (result - truth).abs().mean() * 255
            notes[name].append((float(light.max()), float(pixels)))
            if number == last:
                then, now = run.reference
                stale[name] = float((now - then).abs().mean(1).max())
    return {
        name: Outcome(
            sum(run.kept) / len(run.kept),
            max(light for light, _ in notes[name][: last + 1]),
            notes[name][last][0],
            notes[name][-1][0],
            notes[name][last][1],
            stale[name],
        )
        for name, run in {**runs, _OTHER: other}.items()
    }


_OTHER = "dense, other noise"


def main() -> None:
    """Print a row a way."""
    parser = argparse.ArgumentParser(description="A slow fade.")
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--refresh", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    bound, free = InterFramePruning(detector="latent"), InterFramePruning(tau2=1e9)
    ways: dict[str, tuple[Method, int | None]] = {"default": (InterFramePruning(), None)}
    ways |= {"neither": (free, None), "bound": (bound, None)}
    for blocks in options.refresh:
        ways[f"refresh {blocks}"] = (free, blocks)
        ways[f"bound, refresh {blocks}"] = (bound, blocks)
    still = 2 * _BLOCK * max(options.refresh)
    frames = options.frames // _BLOCK * _BLOCK
    found = measure(load_pipeline("tiny"), ways, frames, still, options.size)
    say(f"{'':24}{''.join(f'{name:>10}' for name in Outcome._fields)}")
    for name, outcome in found.items():
        say(f"{name:24}{''.join(f'{value:10.3f}' for value in outcome)}")
    say(json.dumps({name: outcome._asdict() for name, outcome in found.items()}))


if __name__ == "__main__":
    main()
