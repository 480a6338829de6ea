"""The first of two passes over a file: encode it, and foretell what the second should compute.

Reads the same frames, in the same pieces, as the edit will; the transformer does not run. Knows
files and the autoencoder; what is looked for is the business of ``control.survey``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.controls import Controls, Rate, Survey
from stillframe.detection.frames import PixelBlocks
from stillframe.errors import InputError
from stillframe.methods import Method
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.grid import Grid, patchify
from stillframe.video import Source, VideoReader
from stillframe.video.fit import Fit

__all__ = ["check_two_pass", "foretold"]


def check_two_pass(source: Source, control: Controls | None) -> None:
    """Raise an error unless there can be a first pass.

    Raises:
        ValueError: there is no rate, or one of a latency.
        InputError: the source can be read only once.
    """
    rate = None if control is None else control.find(Rate)
    if rate is None or rate.latency is not None:
        raise ValueError("two passes need a target of frames a second, or of a share kept")
    if source.is_live:
        raise InputError(f"two passes need a file, and {source.name} can be read only once")


def foretold(
    pipe: CausalWanPipeline,
    source: Source,
    fit: Fit,
    method: Method,
    control: Controls,
    max_frames: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> Controls:
    """The control with what a first pass over the file found.

    Raises:
        KeyboardInterrupt: ``stop`` said so.
        ValueError: the control has no rate.
    """
    rate = control.find(Rate)
    if rate is None:
        raise ValueError("there is no rate that a first pass could serve")
    started = time.perf_counter()
    survey = Survey(method, control)
    patch = pipe.denoiser.patch
    for latents, pixels in _blocks(pipe, source, fit, max_frames, stop):
        _, _, frames, height, width = latents.shape
        grid = Grid(frames, height // patch, width // patch)
        tokens = patchify(latents.float(), patch)
        survey.add(tokens.unflatten(1, (grid.frames, grid.frame_tokens)), grid, pixels)
    forecast = replace(survey.forecast(), seconds=time.perf_counter() - started)
    return control.replaced(replace(rate, forecast=forecast))


@torch.inference_mode()
def _blocks(
    pipe: CausalWanPipeline,
    source: Source,
    fit: Fit,
    max_frames: int | None,
    stop: Callable[[], bool] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Source latents of a file, block by block, and the pixels that they stand for."""
    coder = open_autoencoder(pipe.vae, pipe.config.block_frames)
    shown = PixelBlocks(coder.timeline)
    with VideoReader(source) as reader:
        for frame in islice(reader, max_frames):
            if stop is not None and stop():
                raise KeyboardInterrupt
            pixels = torch.from_numpy(frame.pixels).to(pipe.compute_device)
            picture = fit.to_grid(pixels.unsqueeze(0)).unsqueeze(0)
            blocks = coder.encode(picture)
            shown.add(picture)
            yield from ((block, shown.take()) for block in blocks)
    yield from ((block, shown.take()) for block in coder.flush())
