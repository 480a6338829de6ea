"""Clips at their working size, and one edit of one of them, with its frames.

The clip is scaled once and kept as 8-bit frames; they are what every method gets and what metrics
call the source. Runs the same loop as files do (`loop.FileLoop`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.config import EditConfig
from stillframe.engine.stream import BlockStats
from stillframe.errors import InputError
from stillframe.evaluation.cells import Block, Conditions
from stillframe.evaluation.latents import frame_fit
from stillframe.evaluation.sources import Clip
from stillframe.jobs.loop import Comparison, EditRun, FileLoop, MapVideo
from stillframe.jobs.report import DENOISING_STAGES, RunReport
from stillframe.methods import Method
from stillframe.metrics.measures import WorstPatch
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import Frame, VideoWriter
from stillframe.video.fit import fit_to_grid
from stillframe.whole_file import open_whole

__all__ = [
    "Edit",
    "Prepared",
    "as_video",
    "denoising_seconds",
    "edit_frames",
    "keep_array",
    "prepare",
    "worst_patches",
    "write_video",
]

Pixels = NDArray[np.uint8]

# finer than any frame rate, so that times in files are exact to the tick
_TICKS = 90_000


class Prepared(NamedTuple):
    """A clip at its working size.

    Attributes:
        name: of the clip.
        frames: uint8 (T, H, W, 3).
        fps: frames a second.
    """

    name: str
    frames: Pixels
    fps: float


class Edit(NamedTuple):
    """What came of an edit.

    Attributes:
        frames: uint8 (T, H, W, 3), before video encoding.
        run: what it cost.
        full: what the dense edit beside it cost, if there was one.
        blocks: one by one.
    """

    frames: Pixels
    run: RunReport
    full: RunReport | None
    blocks: tuple[Block, ...]


def prepare(clip: Clip, pipe: CausalWanPipeline, conditions: Conditions) -> Prepared:
    """Read a clip and scale it.

    Raises:
        InputError: it cannot be read.
        ValueError: it would become too small.
    """
    scaled, fit = [], None
    for pixels in islice(clip.frames(), conditions.frames):
        fit = fit or fit_to_grid(
            pixels.shape[1],
            pixels.shape[0],
            multiple=pipe.frame_multiple,
            target_height=conditions.height,
            target_width=conditions.width,
            max_short_side=pipe.config.default_height,
        )
        scaled.append(fit.from_grid(fit.to_grid(torch.from_numpy(pixels)[None]))[0].numpy())
    if not scaled:
        raise InputError(f"{clip.path} has no frames")
    return Prepared(clip.name, np.stack(scaled), clip.fps)


def as_video(frames: Pixels) -> Tensor:
    """uint8 (T, H, W, 3) as metrics take it: float32 (T, 3, H, W), 0 to 1."""
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 255


def keep_array(path: Path, frames: Pixels) -> None:
    """Write frames as a NumPy file that is complete or not there.

    Raises:
        OutputError: it cannot be written.
    """
    with open_whole(path) as file:
        np.save(file, frames)


class _Recorder(VideoWriter):
    """A writer that also keeps the frames as they were before encoding."""

    def __init__(self, path: Path, clip: Prepared) -> None:
        self.frames: list[Pixels] = []
        _, height, width, _ = clip.frames.shape
        super().__init__(path, width, height, Fraction(1, _TICKS), clip.fps)

    def write(self, pixels: Pixels, pts: int, duration: int | None = None) -> None:
        """Keep and encode a frame."""
        self.frames.append(pixels.copy())
        super().write(pixels, pts)


def _writer(path: Path, clip: Prepared) -> VideoWriter:
    _, height, width, _ = clip.frames.shape
    return VideoWriter(path, width, height, Fraction(1, _TICKS), clip.fps)


def _timed(clip: Prepared) -> Iterator[Frame]:
    for index, pixels in enumerate(clip.frames):
        yield Frame(np.array(pixels), round(index * _TICKS / clip.fps))


def write_video(path: Path, clip: Prepared) -> None:
    """Encode a clip.

    Raises:
        OutputError: it cannot be written.
    """
    with _writer(path, clip) as writer:
        for frame in _timed(clip):
            writer.write(frame.pixels, frame.pts)


def worst_patches(
    pairs: Iterable[tuple[Pixels, Pixels]], pipe: CausalWanPipeline
) -> dict[str, float]:
    """How far edits are apart in their worst patches, in grey levels, see `WorstPatch`.

    Args:
        pairs: of edits, uint8 (T, H, W, 3) each; all of them count alike.
        pipe: the model, whose first block is left out.

    Returns:
        quantiles and ``max``; empty if no frame is later.
    """
    first, patches = pipe.timeline.first_frames, WorstPatch()
    for pair in pairs:
        for frames in zip(*(video[first:] for video in pair), strict=True):
            patches.add(*frames)
    return patches.levels or {}


def denoising_seconds(stats: BlockStats) -> float:
    """Seconds of a block's denoising and context passes."""
    return sum(stats.seconds.get(stage, 0.0) for stage in DENOISING_STAGES)


def edit_frames(
    pipe: CausalWanPipeline,
    clip: Prepared,
    embeds: Tensor,
    method: Method,
    target: Path,
    *,
    map_path: Path | None = None,
    seed: int = 0,
    paired: bool = False,
    stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> Edit:
    """Edit a prepared clip into a file.

    Args:
        clip, embeds: at its working size; the prompt's embeddings.
        method, seed: which tokens to compute; of the noise.
        target, map_path: videos to write: the edit and, if wanted, what was recomputed.
        paired: also run the dense edit, alternating block by block, for what it costs.
        stop: asked after every frame; true ends it, and no file is left.
        settings: other fields of `EditConfig`.

    Raises:
        KeyboardInterrupt: ``stop`` said so.
        OutputError: a file cannot be written.
        ValueError: the method or a setting does not fit the model.
    """
    blocks: list[Block] = []

    def note(stats: BlockStats) -> None:
        blocks.append(Block(stats.kept, stats.tokens, denoising_seconds(stats)))
        if maps is not None:
            maps.note(stats)

    with ExitStack() as stack:
        stack.enter_context(writer := _Recorder(target, clip))
        maps = MapVideo(pipe, stack.enter_context(_writer(map_path, clip))) if map_path else None
        config = EditConfig(method, seed=seed, **settings)
        runs = [EditRun(pipe, embeds, config, note)]
        if paired:
            runs.append(EditRun(pipe, embeds, replace(config, method="full")))
        comparison, fit = Comparison() if paired else None, frame_fit(pipe, clip.frames)
        loop = FileLoop(fit, pipe.compute_device, runs, writer, maps, comparison)
        loop.run(_timed(clip), stop)
        if loop.interrupted:
            raise KeyboardInterrupt
        loop.close()
    files = loop.clock.lap()
    run, *dense = [run.report(files, writer.frames_written, None) for run in runs]
    return Edit(np.stack(writer.frames), run, dense[0] if dense else None, tuple(blocks))
