"""The map: which mask belongs to which frame, and what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests import tiny
from tests.video_samples import noise

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.autoencoders.timeline import Timeline
from stillframe.video.overlay import MaskTrack, draw_map


def _autoencoders() -> list[Any]:
    return [tiny.autoencoder(), tiny.autoencoder(trim=3), tiny.wan_autoencoder()]


@pytest.mark.parametrize("vae", _autoencoders(), ids=["whole", "trimmed", "wan"])
@pytest.mark.parametrize("block", [1, 3])
def test_masks_belong_to_the_frames_that_their_block_decodes_to(vae: Any, block: int) -> None:
    stream = open_autoencoder(vae, block)
    track = MaskTrack(stream.timeline)
    clip = tiny.clip(26, 16, 16)
    made = 0
    with torch.no_grad():
        blocks = stream.encode(clip)
        blocks += stream.flush()
        for number, latents in enumerate(blocks):
            numbers = np.arange(number * block, (number + 1) * block)
            track.add(np.broadcast_to(numbers[:, None, None], (block, 2, 2)))
            for _ in range(stream.decode(latents).shape[1]):
                assert int(track.at(made)[0, 0]) // block == number
                made += 1
    assert made == clip.shape[1]


def test_a_latent_frame_stands_for_four_but_the_first_may_be_short() -> None:
    masks: Any = np.arange(6)[:, None, None]
    whole, short = MaskTrack(Timeline()), MaskTrack(Timeline(trim=3))
    whole.add(masks)
    short.add(masks)
    assert [int(whole.at(i)[0, 0]) for i in range(9)] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert [int(short.at(i)[0, 0]) for i in range(9)] == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_masks_are_let_go_and_cannot_be_invented() -> None:
    track = MaskTrack(Timeline())
    track.add(np.ones((3, 2, 2), bool))
    track.at(8)
    with pytest.raises(IndexError, match="latent frame 1 of frame 4"):
        track.at(4)
    with pytest.raises(IndexError, match="latent frame 3 of frame 12"):
        track.at(12)


def _half(height: int = 3, width: int = 4) -> NDArray[np.bool_]:
    """The left half is kept."""
    keep = np.zeros((height, width), bool)
    keep[:, : width // 2] = True
    return keep


@pytest.mark.parametrize(("width", "height"), [(64, 48), (62, 46), (50, 34)])
def test_kept_patches_keep_their_colour_and_pruned_ones_lose_it(width: int, height: int) -> None:
    source = noise(0, width, height)
    drawn = draw_map(source, _half(), patch=16)
    assert drawn.shape == source.shape
    assert drawn.dtype == np.uint8
    picture, original = drawn[: height - 8].astype(int), source[: height - 8].astype(int)
    pruned, was = picture[:, 32:], original[:, 32:]
    assert (pruned == pruned[..., :1]).all()
    assert (pruned.mean(2) <= was.mean(2) * 0.5).all()
    kept = picture[:, :31]
    # a tint moves every colour by the same rule: it can be undone
    assert np.abs((kept - 0.15 * np.array([255, 150, 30])) / 0.85 - original[:, :31]).max() < 1.3


def test_the_outline_runs_inside_the_kept_region_along_its_border_only() -> None:
    grey = np.full((48, 64, 3), 90, np.uint8)
    drawn = draw_map(grey, _half(), patch=16)[:36]
    plain = draw_map(grey, np.ones((3, 4), bool), patch=16)[:36]
    outlined = (drawn != plain).any(2)[:, :32]
    assert outlined[:, 31].all()
    assert not outlined[:, :31].any()


@pytest.mark.parametrize("kept_rows", range(5))
def test_the_bar_is_as_long_as_the_kept_share(kept_rows: int) -> None:
    keep = np.zeros((4, 8), bool)
    keep[:kept_rows] = True
    with_bar = draw_map(
        np.zeros((240, 416, 3), np.uint8), np.repeat(np.repeat(keep, 4, 0), 4, 1), 16
    )
    row = with_bar[233]  # the middle of the bar
    lit = (row == (255, 190, 60)).all(1)[5 : 5 + 416 // 3 - 2]
    assert lit.mean() == pytest.approx(kept_rows / 4, abs=0.02)


def test_a_mask_must_cover_the_frame() -> None:
    with pytest.raises(ValueError, match="4x3 patches of 16 pixels do not cover a frame of 66x48"):
        draw_map(noise(0, 66, 48), _half(), patch=16)
