"""Videos that are not in a container: numbered pictures, folders of them, animated WebP.

Pictures are opened one at a time, each as the file that it is. Stands in for a `Demuxer`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from stillframe.errors import InputError
from stillframe.video.companions import Companions
from stillframe.video.damage import Damage
from stillframe.video.formats import check_pixels, limit_decoder, picture_options, unread_picture
from stillframe.video.places import Source, split_pattern
from stillframe.video.tracks import Tracks

__all__ = ["StillStream", "Stills", "is_animated_webp"]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".tga", ".exr"})
# Formats whose header tells Pillow the size, which FFmpeg finds by decoding.
_SIZED = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "TGA")
# What FFmpeg and Pillow tell of damage with.
_UNREADABLE = (
    av.FFmpegError,
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    IndexError,
    StopIteration,
)
_FPS = 25
_MILLISECOND = Fraction(1, 1000)
# What browsers show a picture for that says 0.
_UNSAID_MS = 100
_WEBP_HEAD_BYTES = 21
_WEBP_ANIMATION_FLAG = 2


class StillStream(NamedTuple):
    """What a stream of an open container would tell.

    Attributes:
        time_base: seconds per tick.
        average_rate: pictures a second.
        frames: how many there are.
    """

    time_base: Fraction
    average_rate: Fraction
    frames: int
    guessed_rate: None = None
    sample_aspect_ratio: None = None
    codec_context: None = None


class Stills:
    """Pictures in order, and what a `Demuxer` says beside them.

    Numbered pictures and those of a folder are 25 a second; numbers may begin anywhere and have
    gaps, which take no time. Names with numbers are in order of these.

    Args:
        source: a folder, a pattern as frames/%04d.png, or an animated WebP file.
        damage: where losses are noted.

    Raises:
        InputError: there are no such pictures, or they are of several kinds.
    """

    def __init__(self, source: Source, damage: Damage) -> None:
        self._damage = damage
        self._name = source.name
        self._most = source.max_pixels
        self._paths: list[Path] = []
        self.fell_silent = False
        self.start = Fraction(0)
        self.companions = Companions()
        self.tracks = Tracks([], self.start)
        if source.kind == "images":
            self._paths = _find(source.text)
            self._times = list(range(len(self._paths) + 1))
            self.video = StillStream(Fraction(1, _FPS), Fraction(_FPS), len(self._paths))
        else:
            self._webp = Path(source.text)
            shown = _webp_durations(self._webp)
            self._times = list(accumulate(shown, initial=0))
            rate = Fraction(1000 * len(shown), max(1, self._times[-1]))
            self.video = StillStream(_MILLISECOND, rate, len(shown))
        self.duration = self._times[-1] * self.video.time_base
        self.picture_end = float(self.duration)

    @property
    def why_empty(self) -> str:
        """A sentence for pictures none of which can be read, without a full stop."""
        return f"{self._name} has {self.video.frames} pictures and not one that can be read"

    def pictures(self) -> Iterator[av.VideoFrame]:
        """Decoded pictures; those that cannot be read are counted and skipped."""
        with ExitStack() as stack:
            # one that stays open goes on from where it is
            webp = None if self._paths else self._open_webp(stack)
            if webp is not None:
                check_pixels(self._name, *webp.size, self._most)
            for index in range(self.video.frames):
                try:
                    picture = self._decode(index) if webp is None else _seek(webp, index)
                except InputError:
                    raise
                except _UNREADABLE:
                    self._damage.undecoded.add(float(self._times[index] * self.video.time_base))
                    continue
                picture.pts, picture.time_base = self._times[index], self.video.time_base
                picture.duration = self._times[index + 1] - self._times[index]
                yield picture

    def _open_webp(self, stack: ExitStack) -> Image.Image:
        try:
            return stack.enter_context(unread_picture(self._webp, "WEBP"))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{self._name} is an animated WebP that cannot be read") from error

    def _decode(self, index: int) -> av.VideoFrame:
        """The picture in a file, handed over open: to FFmpeg, names may mean something."""
        path, options = self._paths[index], picture_options(self._most)
        with path.open("rb") as file, suppress(OSError), unread_picture(file, *_SIZED) as image:
            check_pixels(str(path), *image.size, self._most)
        with path.open("rb") as file, av.open(file, "r", options=options) as container:
            limit_decoder(container.streams.video[0].codec_context, self._most)
            return next(iter(container.decode(video=0)))

    def finish_tracks(self, end: float) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing stays open."""


def _seek(image: Image.Image, index: int) -> av.VideoFrame:
    image.seek(index)
    return av.VideoFrame.from_ndarray(np.asarray(image.convert("RGBA")), format="rgba")


def is_animated_webp(path: Path) -> bool:
    """Whether a file is a WebP that moves, which FFmpeg does not read. Source: RFC 9649, 2.7."""
    try:
        with path.open("rb") as file:
            head = file.read(_WEBP_HEAD_BYTES)
    except OSError:
        return False
    is_extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X"
    return is_extended and bool(head[20] & _WEBP_ANIMATION_FLAG)


def _webp_durations(path: Path) -> list[int]:
    """Milliseconds for which each picture of an animated WebP is shown. Source: RFC 9649, 2.7.1."""
    shown = []
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            body = file.read(16) if head[:4] == b"ANMF" else b""
            if len(body) == 16:
                shown.append(int.from_bytes(body[12:15], "little") or _UNSAID_MS)
            file.seek(size + size % 2 - len(body), os.SEEK_CUR)
    if not shown:
        raise InputError(f"{path} is an animated WebP with 0 pictures")
    return shown


def _find(text: str) -> list[Path]:
    pattern = split_pattern(text)
    folder = Path(text) if pattern is None else pattern.folder
    try:
        names = sorted(os.listdir(folder), key=_natural)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    if pattern is not None:
        found = [name for name in names if pattern.matches(name)]
        if not found:
            raise InputError(f"{text} stands for 0 pictures: no name in {folder} is of that kind")
        return [folder / name for name in found]
    found = [n for n in names if Path(n).suffix.lower() in _SUFFIXES and not n.startswith(".")]
    kinds = sorted({Path(name).suffix.lower() for name in found})
    if not found:
        raise InputError(f"{text} is a folder without pictures, not a video file")
    if len(kinds) > 1:
        raise InputError(
            f"{text} is a folder with pictures of {len(kinds)} kinds, {', '.join(kinds)}; name one "
            f"as {Path(text) / ('%04d' + kinds[0])}"
        )
    return [folder / name for name in found]


def _natural(name: str) -> list[Any]:
    """A key that sorts 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if index % 2 else (0, part) for index, part in enumerate(parts)]
