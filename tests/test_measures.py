"""The measures against slow definitions over whole videos, and their ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from stillframe.metrics.measures import PeakSignalToNoise, StaticFlicker

Video = NDArray[np.uint8]


def _videos(count: int, frames: int = 9, seed: int = 0) -> list[Video]:
    """Videos (T, 6, 8, 3) of which the first one stands still on the right, but for faint noise."""
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, (frames, 6, 8, 3), dtype=np.uint8)
    source[:, :, 4:] = 100 + rng.integers(0, 2, (frames, 6, 4, 3))
    edited = [rng.integers(0, 256, source.shape, dtype=np.uint8) for _ in range(count - 1)]
    return [source, *edited]


@pytest.mark.parametrize("chunk", [1, 2, 9])
def test_psnr_is_that_of_the_whole_videos_however_they_come(chunk: int) -> None:
    a, b = _videos(2)
    meter = PeakSignalToNoise()
    for start in range(0, len(a), chunk):
        meter.add(a[start : start + chunk], b[start : start + chunk])
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    assert meter.db == pytest.approx(20 * math.log10(255) - 10 * math.log10(error), abs=1e-9)


def test_psnr_range() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    meter = PeakSignalToNoise()
    assert meter.db is None
    meter.add(black, black)
    assert meter.db == math.inf
    meter = PeakSignalToNoise()
    meter.add(black, black + 255)
    assert meter.db == 0
    with pytest.raises(ValueError, match=r"\(4, 4, 3\) and \(4, 4\)"):
        meter.add(black, black[:, :, 0])


def _flicker_by_definition(source: Video, edited: Video) -> tuple[float, float, float]:
    """Flicker, that of the source, and the share of still pixels: pixel by pixel, as documented."""
    grey = [v.astype(np.float64) @ [0.299, 0.587, 0.114] for v in (source, edited)]
    seen: list[tuple[float, float]] = []
    frames, height, width = grey[0].shape
    for t in range(1, frames):
        for y in range(height):
            for x in range(width):
                steps = [abs(grey[0][t - k, y, x] - grey[0][t - k - 1, y, x]) for k in range(3)]
                if t >= 3 and max(steps) <= 2:
                    own = abs(grey[1][t, y, x] - grey[1][t - 1, y, x])
                    seen.append((own, steps[0]))
    mean = np.mean(seen, axis=0)
    return float(mean[0]), float(mean[1]), len(seen) / ((frames - 1) * height * width)


def test_flicker_is_its_definition() -> None:
    source, first, second = _videos(3)
    meter = StaticFlicker(videos=2)
    for frames in zip(source, first, second, strict=True):
        meter.add(*frames)
    of_first, of_source, share = _flicker_by_definition(source, first)
    of_second, _, _ = _flicker_by_definition(source, second)
    assert meter.levels == pytest.approx((of_first, of_second), rel=1e-5)
    assert meter.source_level == pytest.approx(of_source, rel=1e-4)
    assert meter.still_share == share
    assert 0 < share < 0.6


def test_flicker_counts_still_regions_only_and_nothing_before_three_steps() -> None:
    still = np.full((6, 8, 3), 80, np.uint8)
    meter = StaticFlicker(videos=1)
    for t in range(3):
        meter.add(still, still + np.uint8(9 * (t % 2)))
    assert meter.levels == (None,)
    meter.add(still, still + np.uint8(9))
    assert meter.levels == pytest.approx((9.0,), rel=1e-5)
    meter.add(still + np.uint8(40), still + np.uint8(200))  # a cut: nothing is still
    assert meter.levels == pytest.approx((9.0,), rel=1e-5)
    assert meter.still_share == 0.25


def test_flicker_refuses_what_does_not_match() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="expected 2 edited videos, got 1"):
        StaticFlicker(videos=2).add(frame, frame)
    with pytest.raises(ValueError, match="cannot be compared"):
        StaticFlicker(videos=1).add(frame, frame[:2])
