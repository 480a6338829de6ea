"""A long file in pieces: where to part it, which frames each is edited from, and one file again.

A piece begins with a block of the whole file's edit, some blocks before the frames that are taken
from it, and has the noise that its blocks have there. Those blocks are run in and dropped: context
and the autoencoder's memory are then of the same frames. What piles up over a whole file, as what
is reused from long ago, is not the same; at a cut where an edit forgets what came before, it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline
from stillframe.config import EditConfig
from stillframe.controls import Cuts, GivenCuts, GivenMasks, MaskVideo, Region
from stillframe.controls.cuts import CutDetector
from stillframe.errors import InputError
from stillframe.video import Source, VideoReader, VideoWriter

__all__ = ["Piece", "check_split", "find_cuts", "find_pieces", "join_pieces", "run_in"]

# of a picture in which cuts are looked for; grey levels that stand for a latent's deviation
_SMALL = 27, 48
_DEVIATION = 64.0
# of a piece's length, by which it may be longer or shorter for the sake of a cut
_LEEWAY = 0.25


class Piece(NamedTuple):
    """A part of a file.

    Attributes:
        number: from 0.
        block: of the whole file's edit, with which its own begins.
        frames: that are edited.
        drop: of them, those that are run in.
        keep: of them, those that follow and are in the joined file.
    """

    number: int
    block: int
    frames: int
    drop: int
    keep: int


def check_split(config: EditConfig, two_pass: bool) -> None:
    """Refuse what belongs to a file as a whole.

    Raises:
        ValueError: the edit has given masks, a region that moves, given cuts or two passes.
    """
    control = config.control
    region = None if control is None else control.find(Region)
    whole = {
        "two passes": two_pass,
        "given masks": control is not None and control.find(GivenMasks) is not None,
        "cuts by TransNet V2": control is not None and control.find(GivenCuts) is not None,
        "a region that is a video": region is not None and isinstance(region.shape, MaskVideo),
    }
    for what, asked in whole.items():
        if asked:
            raise ValueError(f"{what} belong to a whole file, which cannot be split then")


def run_in(timeline: Timeline, window_frames: int) -> int:
    """Frames that a piece is run in by: as many as attention sees."""
    return window_frames * timeline.temporal


def find_cuts(
    source: Source, frames: int | None = None, stop: Callable[[], bool] | None = None
) -> tuple[list[int], int]:
    """Frames of a file, from 0, with which scenes begin, and how many frames there are.

    Looks at small pictures with the detector that finds cuts in latents (``controls/cuts.py``).

    Args:
        source: the file.
        frames: look at so many only.
        stop: asked after every frame.

    Raises:
        InputError: it cannot be read.
        KeyboardInterrupt: ``stop`` said so.
    """
    find = CutDetector(Cuts())
    cuts: list[int] = []
    count = 0
    with VideoReader(source) as reader, torch.inference_mode():
        for frame in islice(reader, frames):
            if find(_small(frame.pixels)).begun:
                cuts.append(count)
            count += 1
            if stop is not None and stop():
                raise KeyboardInterrupt
    return cuts, count


def _small(pixels: NDArray[np.uint8]) -> Tensor:
    """A picture as cuts are looked for, (1, 1, N, 3)."""
    picture = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float()
    return (F.adaptive_avg_pool2d(picture, _SMALL) / _DEVIATION).flatten(2).transpose(1, 2)[None]


def find_pieces(
    cuts: Sequence[int], total: int, length: int, timeline: Timeline, lead: int
) -> list[Piece]:
    """Where to part a file: at the cut nearest to where a piece should end, or right there.

    Args:
        cuts: frames with which scenes begin, rising.
        total: frames of the file.
        length: frames that a piece should have.
        timeline: of the edit.
        lead: frames that a piece is run in by, at least.
    """
    count = max(1, round(total / max(length, 1)))
    even = total / count
    ends = []
    for number in range(1, count):
        wanted = number * even
        near = [cut for cut in cuts if abs(cut - wanted) <= _LEEWAY * even]
        ends.append(min(near, key=lambda cut: abs(cut - wanted)) if near else round(wanted))
    starts = [0, *ends]
    return [
        _piece(number, start, end, total, timeline, lead)
        for number, (start, end) in enumerate(zip(starts, [*ends, total], strict=True))
    ]


def _piece(number: int, start: int, end: int, total: int, timeline: Timeline, lead: int) -> Piece:
    """Frames from one to another, with whole blocks of the file's edit around them."""
    step = timeline.later_frames
    block = max(0, start - lead) // step
    # a block's frames look at each other, so the last one has to be there whole
    blocks = math.ceil((end + timeline.missing_frames) / step)
    read = min(total, blocks * step - timeline.pad)
    begin = block * step
    return Piece(number, block, max(read, end) - begin, start - begin, end - start)


def join_pieces(
    source: Source,
    parts: Sequence[tuple[Piece, str]],
    target: str,
    crf: int,
    stop: Callable[[], bool] | None = None,
) -> int:
    """One file of the pieces, with the times and the sound of their source; returns its frames.

    Args:
        source: that they were made from.
        parts: pieces with their files, in order.
        target: the file to make.
        crf: its quality.
        stop: asked after every frame.

    Raises:
        InputError: a piece has fewer frames than it should, or the source others than it had.
        OutputError: the file cannot be made; nothing is left behind.
        KeyboardInterrupt: ``stop`` said so; nothing is left behind.
    """
    total = sum(piece.keep for piece, _ in parts)
    pictures = _pictures(parts)
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(source, max_frames=total))
        first = next(pictures)
        writer = stack.enter_context(_open_writer(target, reader, first, crf))
        for frame in reader:
            writer.write(first, frame.pts, frame.duration)
            if stop is not None and stop():
                raise KeyboardInterrupt
            if writer.frames_written < total:
                first = next(pictures)
        if writer.frames_written != total:
            raise InputError(
                f"{source.name} has {writer.frames_written} frames, and had {total} when it was "
                f"split"
            )
        writer.close()
    return total


def _pictures(parts: Sequence[tuple[Piece, str]]) -> Iterator[NDArray[np.uint8]]:
    for piece, path in parts:
        count = 0
        with VideoReader(path) as reader:
            for frame in islice(reader, piece.drop, piece.drop + piece.keep):
                count += 1
                yield frame.pixels
        if count != piece.keep:
            name = Path(path).name
            raise InputError(f"piece {name} has {count} frames to take, and needs {piece.keep}")


def _open_writer(
    target: str, reader: VideoReader, picture: NDArray[np.uint8], crf: int
) -> VideoWriter:
    height, width, _ = picture.shape
    with warnings.catch_warnings():
        # what cannot be kept is in `losses`
        warnings.simplefilter("ignore", UserWarning)
        return VideoWriter(
            target,
            width,
            height,
            reader.time_base,
            reader.fps,
            crf=crf,
            sample_aspect_ratio=reader.sample_aspect_ratio,
            audio_from=reader,
        )
