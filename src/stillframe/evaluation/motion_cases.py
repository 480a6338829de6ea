"""Built motion: a texture under a camera that moves by known amounts, pixel for pixel.

The texture is a sum of plane waves, so that a picture of it at any place, in fractions of a pixel,
is exact, and where each pixel lay in another frame is known. It goes on for ever: new picture keeps
coming in at the edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CASES", "BuiltMotion", "built_motion", "texture"]

Matrix = NDArray[np.float64]

_WAVES = 60
_WAVELENGTHS = 12.0, 90.0  # pixels
_MEAN, _LEVELS = 128.0, 28.0  # grey levels: mean, and root mean square from there
_LOGO = 40, 22, 62, 42  # left, top, width and height of the still part, in pixels


class BuiltMotion(NamedTuple):
    """A video whose motion is known.

    Attributes:
        name: of the case.
        frames: uint8 (T, H, W, 3).
        cameras: (T, 3, 3) maps of pixels (x, y, 1) of each frame to places of the texture.
        still: bool (H, W), the pixels that do not move with it.
    """

    name: str
    frames: NDArray[np.uint8]
    cameras: Matrix
    still: NDArray[np.bool_]

    def displacement(self, frame: int, to: int) -> NDArray[np.float64]:
        """From the pixels of a frame to where they lay in another one, (H, W, 2) pixels (x, y)."""
        height, width = self.still.shape
        pixels = _pixels(height, width)
        there = np.linalg.solve(self.cameras[to], self.cameras[frame])
        moved = pixels @ there.T - pixels
        return np.where(self.still[..., None], 0.0, moved[..., :2])


def _pixels(height: int, width: int) -> Matrix:
    """(H, W, 3) places (x, y, 1)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    return np.stack([x, y, np.ones_like(x)], -1)


def _pan(speed: float) -> Callable[[int], tuple[float, float, float, float]]:
    return lambda t: (speed * t, 0.0, 1.0, 0.0)


def _shake(t: int) -> tuple[float, float, float, float]:
    """Two periods that do not meet, as of a hand."""
    return 3 * math.sin(2 * math.pi * t / 13), 3 * math.sin(2 * math.pi * t / 8.5 + 1), 1.0, 0.0


#: The cases: shift (x, y) in pixels, scale and angle in degrees of each frame.
CASES: dict[str, Callable[[int], tuple[float, float, float, float]]] = {
    **{f"pan {speed:g}": _pan(speed) for speed in (16.0, 8.0, 4.0, 1.0, 0.5, 0.1)},
    "zoom .2%": lambda t: (0.0, 0.0, 1.002**-t, 0.0),
    "rotation .1": lambda t: (0.0, 0.0, 1.0, 0.1 * t),
    "shake 3": _shake,
    "logo": _pan(1.0),
}


def built_motion(
    count: int = 60, height: int = 240, width: int = 416, names: Sequence[str] = tuple(CASES)
) -> Iterator[BuiltMotion]:
    """The cases, one after the other.

    Args:
        count: frames.
        height, width: in pixels.
        names: which of `CASES`.

    Raises:
        ValueError: there is no such case.
    """
    for name in names:
        if name not in CASES:
            raise ValueError(f"there is no motion {name!r}; there are {', '.join(CASES)}")
        cameras = np.stack([_camera(height, width, *CASES[name](t)) for t in range(count)])
        still = np.zeros((height, width), dtype=bool)
        frames = _pictures(height, width, cameras, seed=0)
        if name == "logo":
            left, top, wide, tall = _LOGO
            still[top : top + tall, left : left + wide] = True
            frames[:, still] = _pictures(height, width, np.eye(3)[None], seed=1)[0, still]
        yield BuiltMotion(name, frames, cameras, still)


def _camera(height: int, width: int, x: float, y: float, scale: float, angle: float) -> Matrix:
    """Scaled and turned about the middle of the picture, then shifted."""
    turn = scale * np.exp(1j * math.radians(angle))
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    camera = np.eye(3)
    camera[:2, :2], camera[:2, 2] = linear, middle - linear @ middle + (x, y)
    return camera


def _waves(seed: int) -> tuple[Matrix, NDArray[np.complex128]]:
    """Wave vectors (2, N) in radians a pixel, and amplitudes with phases (3, N)."""
    random = np.random.default_rng(seed)
    low, high = _WAVELENGTHS
    lengths = low * (high / low) ** random.uniform(size=_WAVES)
    angles = random.uniform(0, 2 * np.pi, _WAVES)
    vectors = np.stack([np.cos(angles), np.sin(angles)]) * 2 * np.pi / lengths
    # longer waves are stronger, as in pictures, and the colours have most in common
    sizes = lengths * np.exp(1j * random.uniform(0, 2 * np.pi, (3, _WAVES)))
    sizes = 0.7 * sizes[:1] + 0.3 * sizes
    return vectors, sizes * _LEVELS * 2**0.5 / np.linalg.norm(sizes, axis=1, keepdims=True)


def texture(places: Matrix, seed: int = 0) -> Matrix:
    """Grey levels (..., 3) of the texture at places (..., 2), which need not be of a grid."""
    vectors, sizes = _waves(seed)
    return _MEAN + (np.exp(1j * (places @ vectors)) @ sizes.T).real


def _pictures(height: int, width: int, cameras: Matrix, seed: int) -> NDArray[np.uint8]:
    """The texture as each camera sees it, uint8 (T, H, W, 3)."""
    (across, down), sizes = _waves(seed)
    x, y = (np.arange(size, dtype=np.float64) for size in (width, height))
    found = []
    for (xx, xy, x0), (yx, yy, y0), _ in cameras:
        # a wave in x times one in y: the sum over waves is one matrix product
        along_x = np.exp(1j * np.outer(x, xx * across + yx * down))
        along_y = np.exp(1j * (np.outer(y, xy * across + yy * down) + x0 * across + y0 * down))
        colours = [((along_y * size) @ along_x.T).real for size in sizes]
        found.append((_MEAN + np.stack(colours, -1)).round().clip(0, 255).astype(np.uint8))
    return np.stack(found)
