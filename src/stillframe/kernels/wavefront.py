"""Steps of latent frames, overlapped on a GPU where one need not wait for the other.

Each latent frame takes the same steps, one after the other, and each step overwrites what it wrote
for the latent frame before. So a latent frame may begin when the one before is a few steps ahead.
Where few cells are active, a step takes as long as one program does, and several fit beside
each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["Step", "run_in_turn"]

#: A kernel or a few.
Step = Callable[[], None]

_STREAMS: dict[tuple[int, int], torch.cuda.Stream] = {}


def _stream(index: int) -> torch.cuda.Stream:
    """One of a device's streams for latent frames."""
    key = torch.cuda.current_device(), index
    if key not in _STREAMS:
        _STREAMS[key] = torch.cuda.Stream()
    return _STREAMS[key]


def run_in_turn(frames: Sequence[Sequence[Step]], reach: int, overlap: bool = True) -> None:
    """Run steps.

    Args:
        frames: a sequence of steps a latent frame, all of one length.
        reach: steps of a latent frame after which nothing reads what one of them wrote.
        overlap: of latent frames, where there is a GPU.
    """
    if not (overlap and len(frames) > 1 and torch.cuda.is_available()):
        for steps in frames:
            for step in steps:
                step()
        return
    caller = torch.cuda.current_stream()
    ready: list[torch.cuda.Event] = []
    start = caller.record_event()
    for k, steps in enumerate(frames):
        # the last one is the caller's own
        stream = caller if k == len(frames) - 1 else _stream(k)
        stream.wait_event(start)
        done: list[torch.cuda.Event] = []
        with torch.cuda.stream(stream):
            for i, step in enumerate(steps):
                if ready:
                    stream.wait_event(ready[min(i + reach, len(steps) - 1)])
                step()
                done.append(stream.record_event())
        ready = done
