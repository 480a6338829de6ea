"""Files that controls are made from: pictures and videos of a region, and the scenes of a video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stillframe.controls import MaskVideo, Painting
from stillframe.errors import InputError
from stillframe.video.formats import check_pixels, unread_picture
from stillframe.video.places import Source
from stillframe.video.reading import VideoReader
from stillframe.video.scenes import find_scenes

__all__ = ["VideoControlFiles"]

# All that is named: of other formats, Pillow runs programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TGA", "PPM")
_WHITE = 128
_LUMA = np.array([299, 587, 114])


@dataclass(frozen=True)
class VideoControlFiles:
    """What controls read, see ``controls.base.ControlFiles``.

    Attributes:
        source: the video that is edited; None if its scenes cannot be looked for.
        frames: how many of it are; None for all.
    """

    source: Source | None = None
    frames: int | None = None

    def region(self, path: str) -> Painting | MaskVideo:
        """What is white in a picture or a video; what is transparent is black.

        Raises:
            InputError: it is neither, or cannot be read.
        """
        picture = _painting(path)
        if picture is not None:
            return picture
        try:
            with VideoReader(path) as reader:
                pictures = (frame.pixels @ _LUMA >= 1000 * _WHITE for frame in reader)
                return MaskVideo.pack(pictures, reader.fps)
        except InputError as error:
            raise InputError(
                f"{path} is neither x,y,width,height nor a readable image or video"
            ) from error

    def scenes(self) -> tuple[int, ...]:
        """Frames with which a scene begins, see `find_scenes`."""
        if self.source is None:
            raise InputError("scenes are looked for in files, and there is none")
        return find_scenes(self.source, self.frames)


def _painting(path: str) -> Painting | None:
    """The white parts of an image; None if it is something else."""
    try:
        with unread_picture(path, *_FORMATS) as image:
            check_pixels(path, *image.size)
            layers = np.asarray(image.convert("LA"))
    except (OSError, ValueError, SyntaxError):
        # Pillow tells of damage in all of these
        return None
    white = (layers[..., 0] >= _WHITE) & (layers[..., 1] >= _WHITE)
    return Painting(torch.from_numpy(white))
