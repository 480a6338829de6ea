"""A model made ready: what compiles is compiled, and graphs are captured, before a video comes.

A made clip is edited by a stream like those to come, which then find everything there. Compiled
kernels stay on disk for other processes; graphs serve this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.config import EditConfig
from stillframe.kernels.compiling import Ahead
from stillframe.kernels.graphs import Graphs
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video.fit import USUAL_SIZE, fit_to_grid

__all__ = ["Warmed", "warm"]

#: Blocks after the window is full: a whole one, and some of which part is computed.
_MORE = 4


class Warmed(NamedTuple):
    """What was made ready.

    Attributes:
        width, height: of the frames, on the model's grid.
        seconds: that it took.
        first_seconds: of them, those of the first block.
        graphs: captured.
        lengths: how many lengths of a block's tokens have graphs of the transformer.
    """

    width: int
    height: int
    seconds: float
    first_seconds: float
    graphs: int
    lengths: int


@torch.inference_mode()
def warm(
    pipe: CausalWanPipeline,
    config: EditConfig | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Warmed:
    """Make a model ready for streams of a size and configuration.

    Args:
        pipe: the model.
        config: how streams will edit; controls do not matter.
        height, width: of the edited frames in pixels, as for `edit_file`, of sources of 16:9.
        on_progress: called with how many kernels that are compiled ahead, blocks and lengths are
            done, and how many there are if that is known yet.

    Raises:
        ValueError: a size is too small.
    """
    started, captures = time.perf_counter(), Graphs.captures
    fit = fit_to_grid(
        *USUAL_SIZE,
        multiple=pipe.frame_multiple,
        target_height=height,
        target_width=width,
        max_short_side=pipe.config.default_height,
    )
    size = fit.padded_height, fit.padded_width
    config = replace(config or EditConfig(), control=None).seeded
    shape = 1, pipe.config.text_length, pipe.transformer.config.text_dim
    embeds = torch.zeros(shape, device=pipe.compute_device, dtype=pipe.denoiser.dtype)
    told, first = on_progress or (lambda _done, _of: None), 0.0
    kernels = 0
    for kernels, _ in () if Ahead.latest is None else Ahead.latest.progress():
        told(kernels, None)
    stream, timeline = pipe.stream(prompt_embeds=embeds, config=config), pipe.timeline
    blocks = -(-(pipe.config.window_frames + pipe.config.sink_frames) // timeline.block_frames)
    for number in range(blocks + _MORE):
        if number == blocks:  # a whole one, as after another prompt
            stream.set_text(pipe.text(None, embeds))
        count = timeline.taken_by(number)
        stream.push(_clip(number, count, size).to(pipe.compute_device))
        first = first or time.perf_counter() - started
        told(kernels + number + 1, None)
    done = kernels + blocks + _MORE
    # a method that computes everything needs one length
    lengths = stream.lengths if stream.method.prunes else stream.lengths[-1:]
    for length in stream.warm(lengths):
        told(done + lengths.index(length) + 1, done + len(lengths))
    if pipe.compute_device.type == "cuda":
        torch.cuda.synchronize()
    seconds, graphs = time.perf_counter() - started, Graphs.captures - captures
    height, width = size
    return Warmed(width, height, seconds, first, graphs, len(lengths) if graphs else 0)


def _clip(number: int, count: int, size: tuple[int, int]) -> Tensor:
    """Frames (1, count, 3, H, W) in [0, 1] of a block: a texture of which a part moves."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    still = F.interpolate(coarse, (height, width), mode="bilinear")[0]
    frames = still.repeat(count, 1, 1, 1)
    rows, columns = height // 3, width // 3
    for t in range(count):
        shift = 3 * (number * count + t)
        frames[t, :, :rows, :columns] = still.roll(shift, 2)[:, :rows, :columns]
    return frames.unsqueeze(0)
