"""A region that changes from frame to frame: a mask video, packed.

One of its pictures goes with each frame of the source, by its number; where the two have different
frame rates, by its time, as if both rates were constant. One that ends goes on with its last
picture. Knows bits and numbers of frames, neither files nor patches.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.autoencoders.timeline import Timeline

__all__ = ["MaskVideo"]

# rates that differ by less are meant to be the same: 29.97 and 30
_SAME_RATE = 0.005
# a frame's time is a rounded number, and must not fall just before the picture that goes with it
_EARLY = 1e-6
_TIMELINE = Timeline()


@dataclass(frozen=True, eq=False)
class MaskVideo:
    """Pictures of a region, one after the other; made by `pack`.

    Attributes:
        pictures: zlib streams of the bits of each, eight a byte.
        height, width: of every picture, any; stretched over the video.
        fps: pictures a second, None to go by number.
        clock: of the stream that it is for.
    """

    pictures: tuple[bytes, ...]
    height: int
    width: int
    fps: float | None = None
    clock: Timeline = _TIMELINE

    @classmethod
    def pack(cls, pictures: Iterable[NDArray[np.bool_]], fps: float | None = None) -> MaskVideo:
        """Take pictures (H, W), true = inside, all of one size; keeps them compressed.

        Raises:
            ValueError: there is none, or they differ in size.
        """
        packed: list[bytes] = []
        size: tuple[int, ...] = ()
        last: bytes | None = None
        for picture in pictures:
            if picture.ndim != 2 or not picture.size or (size and picture.shape != size):
                raise ValueError(
                    f"pictures of a mask video are (H, W), got {picture.shape} after {size}"
                )
            size = picture.shape
            bits = np.packbits(picture).tobytes()
            # what does not change is the same object, however long it lasts
            packed.append(packed[-1] if bits == last else zlib.compress(bits, 1))
            last = bits
        if not packed:
            raise ValueError("a mask video has 1 or more pictures, got 0")
        return cls(tuple(packed), size[0], size[1], fps)

    def fitted(self, clock: Timeline) -> MaskVideo:
        """The same for a stream of such frames."""
        return replace(self, clock=clock)

    def number(self, frame: int) -> int:
        """Which picture goes with a frame of the source."""
        rate = self.clock.fps
        same = self.fps is None or rate is None or abs(self.fps / rate - 1) < _SAME_RATE
        at = frame if same else int(frame * self.fps / rate + _EARLY)  # type: ignore[operator]
        return min(at, len(self.pictures) - 1)

    def numbers(self, latent: int) -> list[int]:
        """Pictures that concern a latent frame, in order, at least one."""
        frames = self.clock.output_frames(latent) or range(1)
        return sorted({self.number(frame) for frame in frames})

    def picture(self, number: int) -> Tensor:
        """A picture, (H, W) bool."""
        bits = np.frombuffer(zlib.decompress(self.pictures[number]), np.uint8)
        inside = np.unpackbits(bits, count=self.height * self.width).astype(np.bool_)
        return torch.from_numpy(inside.reshape(self.height, self.width))
