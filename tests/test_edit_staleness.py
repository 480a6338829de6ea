"""A default edit shows nothing that its source no longer looks like, whatever the clip.

Staleness is worked out here from the files alone: the masks that were written, and the source. That
is possible where nothing is reused from elsewhere; where something is, see test_motion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.edit_fixtures import busy_frames, tiny_pipe_fixture  # noqa: F401
from tests.video_samples import Pixels, make_video

from stillframe.controls import GivenMasks
from stillframe.detection.pixels import TOLERANCE
from stillframe.jobs.edit import edit_file

WIDTH, HEIGHT, COUNT, PATCH = 64, 48, 72, 16


def _textured() -> Pixels:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(50, 200, (10, 12, 3))
    rows, columns = np.linspace(0, 8, HEIGHT + 32), np.linspace(0, 10, WIDTH + 32)
    low = np.ix_(rows.astype(int), columns.astype(int))
    high = np.ix_(rows.astype(int) + 1, columns.astype(int) + 1)
    weight = (rows % 1)[:, None, None] * (columns % 1)[None, :, None]
    return coarse[low] * (1 - weight) + coarse[high] * weight


def _shifted(picture: Pixels, by: float) -> Pixels:
    """What is seen of a larger picture that many pixels further to the right."""
    whole, part = int(by), by % 1
    left, right = (picture[16:-16, 16 + x : 16 + x + WIDTH] for x in (whole, whole + 1))
    return left * (1 - part) + right * part


def _frames(kind: str) -> list[Pixels]:
    picture = _textured()
    still = picture[16:-16, 16:-16]
    rng = np.random.default_rng(1)
    made = {
        "square": lambda t: busy_frames(t + 1)[t].astype(float),
        "slow pan": lambda t: _shifted(picture, 0.02 * t),
        "fade in": lambda t: still * min(max((t - 8) / 24, 0), 1),
        "fade out": lambda t: still * min(max((60 - t) / 24, 0), 1),
        "sunset": lambda t: still - 0.2 * t,
        "noise": lambda t: still + rng.normal(0, 4, still.shape),
        "cut": lambda t: still if t < 40 else still[:, ::-1],
    }[kind]
    frames: list[Any] = [made(t).round().clip(0, 255).astype(np.uint8) for t in range(COUNT)]
    return frames


def _stale(frames: list[Pixels], keep: Any) -> Any:
    """Root mean square difference between each reused patch's mean over four frames and the one
    that it was last computed from."""
    video = np.stack(frames).astype(float).reshape(-1, 4, HEIGHT, WIDTH, 3).mean(1)
    patches = video.reshape(-1, HEIGHT // PATCH, PATCH, WIDTH // PATCH, PATCH, 3)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(len(video), keep.shape[1], -1, 768)
    anchor, found = patches[0].copy(), []
    for now, mask in zip(patches, keep, strict=True):
        anchor[mask] = now[mask]
        found.append(np.sqrt(((now - anchor)[~mask] ** 2).mean(-1)))
    return np.concatenate(found)


@pytest.mark.parametrize(
    "kind", ["square", "slow pan", "fade in", "fade out", "sunset", "noise", "cut"]
)
def test_what_is_shown_looks_like_its_source(kind: str, tmp_path: Path, tiny_pipe: Any) -> None:
    frames = _frames(kind)
    clip = make_video(tmp_path / "in.mkv", frames, codec="ffv1", pixel_format="bgr0")
    masks = tmp_path / "masks"
    out, still = tmp_path / "out.mkv", "prune:motion=off"
    report = edit_file(tiny_pipe, clip, out, prompt="oil", masks_out=masks, method=still)
    given = GivenMasks.read(masks)
    keep = np.concatenate([given.block(i)[0].numpy() for i in range(COUNT // 12)])
    stale = _stale(frames, keep)
    assert stale.size, "nothing was reused"
    assert np.quantile(stale, 0.999) <= TOLERANCE * (1.5 if kind == "noise" else 1)
    assert stale.max() <= 1.5 * TOLERANCE
    assert report.staleness is not None
    assert report.staleness["max"] == pytest.approx(stale.max(), abs=0.3)
    assert report.tolerance == TOLERANCE
    followed = edit_file(tiny_pipe, clip, tmp_path / "followed.mkv", prompt="oil")
    assert followed.staleness is not None
    assert followed.staleness["max"] <= 1.5 * TOLERANCE
    assert followed.kept_share <= report.kept_share + 0.05
