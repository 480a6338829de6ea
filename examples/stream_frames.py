"""Edit frames as they come: push some, get those that are done, change the edit in between.

    python examples/stream_frames.py

A stream gives the frames that a file would, bit for bit. `LiveSession` (docs/live.md) adds what a
camera needs: a process of its own, bounded latency, and frames dropped where there are too many.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stillframe import BlockStats, load_pipeline


def camera(frames: int = 34, height: int = 96, width: int = 160) -> Iterator[Tensor]:
    """Frames (3, H, W) uint8: a still picture before which a square moves."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randint(40, 200, (3, height // 16, width // 16), generator=generator)
    still = still.repeat_interleave(16, 1).repeat_interleave(16, 2).byte()
    for t in range(frames):
        picture = still.clone()
        picture[:, 32:64, 3 * t : 3 * t + 32] = 255
        yield picture


def main() -> None:
    """Edit a drawn camera's frames, and change the prompt on the way."""

    def tell(stats: BlockStats) -> None:
        milliseconds = 1000 * sum(stats.seconds.values())
        print(f"block {stats.block}: {stats.kept_share:.0%} computed, {milliseconds:.0f} ms")

    pipe = load_pipeline("tiny")
    stream = pipe.stream("oil painting", seed=0, on_block=tell)
    shown = 0
    for number, frame in enumerate(camera()):
        edited = stream.push(frame[None, None])  # (B, T, 3, H, W); None: it needs more frames
        if edited is not None:
            shown += edited.shape[1]  # these are to be shown, in [0, 1]
        if number == 20:
            stream.set_text(pipe.text("neon outlines"))  # from the next block on
    rest = stream.flush()
    shown += 0 if rest is None else rest.shape[1]
    print(f"{number + 1} frames in, {shown} frames out")


if __name__ == "__main__":
    main()
