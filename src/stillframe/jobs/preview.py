"""A look at an edit before all of it is made: a few moments of a file, as a sheet of pictures.

A row a moment: the source, the edit with everything computed, the edit as it will be, and what was
recomputed. Each is the last frame of the first blocks of an edit that begins shortly before, so
that there is something to reuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline
from stillframe.config import EditConfig
from stillframe.engine.stream import BlockStats
from stillframe.errors import InputError
from stillframe.jobs.job import fit_of
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import Source, VideoReader, check_file
from stillframe.video.fit import Fit
from stillframe.video.overlay import MaskTrack, draw_map
from stillframe.video.sheet import write_sheet

__all__ = ["Moment", "check_preview", "preview_file"]

Pixels = NDArray[np.uint8]

#: Blocks that are edited for a moment: the first one is always whole.
_BLOCKS = 3


class Moment(NamedTuple):
    """One row of the sheet.

    Attributes:
        frame: which frame of the source it shows.
        seconds: when that is shown.
        kept_share: patches computed / all patches of its latent frame, 0 to 1.
        pictures: source, edit with everything computed, edit, map; uint8 (H, W, 3).
    """

    frame: int
    seconds: float
    kept_share: float
    pictures: tuple[Pixels, Pixels, Pixels, Pixels]


def preview_file(
    pipe: CausalWanPipeline,
    source: str | PathLike[str] | Source,
    target: str | PathLike[str],
    *,
    prompt: str,
    moments: int = 4,
    config: EditConfig | None = None,
    height: int | None = None,
    width: int | None = None,
    max_frames: int | None = None,
    on_moment: Callable[[Moment], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Moment]:
    """Edit a file at a few moments, evenly spread, and write a sheet of them.

    Args:
        pipe: the model.
        source: the file.
        target: the sheet, a PNG file.
        prompt: what it should look like.
        moments: how many; fewer where the file is too short for them.
        config: how to edit, without controls, which take their time from the whole file.
        height, width: as in `edit_file`.
        max_frames: look at no more than the first so many frames.
        on_moment: called after each moment.
        stop: asked before each moment; true ends the sheet with what there is.

    Raises:
        InputError: it is no file, it cannot be read, or how long it is is not known.
        OutputError: the sheet cannot be written, or is no PNG file.
        ValueError: an argument is out of range.
    """
    if moments < 1:
        raise ValueError(f"a preview shows at least 1 moment, got {moments}")
    source = Source.of(source)
    check_preview(source, target)
    config = EditConfig.of(config, {}).seeded
    if config.control:
        raise ValueError("a preview cannot show what controls do, which go by the whole file")
    shown = list[Moment]()
    with VideoReader(source) as reader:
        fit = fit_of(pipe, reader, height, width)
        embeds = pipe.encode_prompt(prompt)
        for window in _windows(reader, moments, max_frames, pipe.timeline):
            if stop is not None and stop():
                break
            shown.append(_looked_at(pipe, embeds, config, fit, window))
            if on_moment is not None:
                on_moment(shown[-1])
    if shown:
        write_sheet([moment.pictures for moment in shown], Path(target))
    return shown


def check_preview(source: Source, target: str | PathLike[str]) -> None:
    """Refuse a preview that cannot be made, before any work is done.

    Raises:
        InputError: it is of a stream.
        OutputError: the sheet cannot be written.
        ValueError: it would be no PNG file.
    """
    if source.is_live:
        raise InputError(f"{source.text} cannot be looked at in advance: a preview is of a file")
    if check_file(target).suffix.lower() != ".png":
        raise ValueError(f"a preview is a PNG file, and {target} is none: name it .png")


class _Window(NamedTuple):
    """Frames of the source up to a moment: number and seconds are the last one's."""

    frame: int
    seconds: float
    frames: list[Pixels]


def _windows(
    reader: VideoReader, moments: int, max_frames: int | None, timeline: Timeline
) -> Iterator[_Window]:
    """The frames that lead to each moment; nothing else of the file is kept in memory."""
    known = [count for count in (reader.frames_estimate, max_frames) if count is not None]
    if reader.frames_estimate is None:
        raise InputError("the file does not say how long it is: a preview needs to know")
    run = _BLOCKS * timeline.later_frames - timeline.pad
    total = max(min(known), 1)
    first = min(run, total)
    spread = ((2 * i + 1) / (2 * moments) for i in range(moments))
    ends = sorted({first + round(share * (total - first)) for share in spread})
    recent: list[Pixels] = []
    for number, frame in enumerate(reader, 1):
        recent = [*recent, frame.pixels][-run:]
        while ends and number == ends[0]:
            ends.pop(0)
            yield _Window(number - 1, float(frame.pts * reader.time_base), recent)
        if not ends:
            return
    # files may hold less than they say
    if recent and ends:
        yield _Window(number - 1, float(frame.pts * reader.time_base), recent)


def _looked_at(
    pipe: CausalWanPipeline, embeds: Tensor, config: EditConfig, fit: Fit, window: _Window
) -> Moment:
    """One moment, edited whole and as configured."""
    pixels = torch.from_numpy(np.stack(window.frames)).to(pipe.compute_device)
    video = fit.to_grid(pixels).unsqueeze(0)
    track = MaskTrack(pipe.timeline)

    def note(stats: BlockStats) -> None:
        track.add(*stats.patches())

    full, _ = _last(pipe, embeds, replace(config, method="full"), fit, video, None)
    edited, last = _last(pipe, embeds, config, fit, video, note)
    shown = _pixels(fit, video[:, -1:])
    patches = [track.at(frame) for frame in range(last + 1)][-1]
    drawn = draw_map(shown, patches.keep, pipe.frame_multiple, patches.moved, patches.motion)
    kept = float(patches.keep.mean())
    return Moment(window.frame, window.seconds, kept, (shown, full, edited, drawn))


def _last(
    pipe: CausalWanPipeline,
    embeds: Tensor,
    config: EditConfig,
    fit: Fit,
    video: Tensor,
    on_block: Callable[[BlockStats], None] | None,
) -> tuple[Pixels, int]:
    """The last frame of an edit, and its number."""
    stream = pipe.stream(prompt_embeds=embeds, config=config, on_block=on_block)
    parts = [part for part in (stream.push(video), stream.flush()) if part is not None]
    return _pixels(fit, parts[-1][:, -1:]), sum(part.shape[1] for part in parts) - 1


def _pixels(fit: Fit, frame: Tensor) -> Pixels:
    """uint8 (H, W, 3) of one frame (1, 1, 3, H, W)."""
    return np.asarray(fit.from_grid(frame[0]).cpu().numpy())[0]
