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
                assert int(track.at(made).keep[0, 0]) // block == number
                made += 1
    assert made == clip.shape[1]


def test_a_latent_frame_stands_for_four_but_the_first_may_be_short() -> None:
    masks: Any = np.arange(6)[:, None, None]
    whole, short = MaskTrack(Timeline()), MaskTrack(Timeline(trim=3))
    whole.add(masks)
    short.add(masks)
    assert [int(whole.at(i).keep[0, 0]) for i in range(9)] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert [int(short.at(i).keep[0, 0]) for i in range(9)] == [0, 1, 1, 1, 1, 2, 2, 2, 2]


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


# what moved

ARROW, BAR = (130, 215, 255), 14
"""The colour of arrows, and the height of the foot of a map of 240 rows that the bar is in."""


def _arrows(motion: tuple[float, float], height: int = 240, width: int = 416) -> NDArray[np.bool_]:
    """Where arrows are, over the bar, in the map of a grey frame all of which moved."""
    keep = np.zeros((-(-height // 16), -(-width // 16)), bool)
    field = np.broadcast_to(np.array(motion, np.float32), (*keep.shape, 2))
    drawn = draw_map(np.full((height, width, 3), 90, np.uint8), keep, 16, ~keep, field)
    return (drawn == ARROW).all(2)[: height - BAR * height // 240]


def test_a_track_gives_every_frame_what_moved_in_it() -> None:
    rng = np.random.default_rng(0)
    keep, moved = rng.random((2, 3, 2, 4)) < 0.5
    motion = rng.random((3, 2, 4, 2), np.float32)
    track = MaskTrack(Timeline())
    track.add(keep, moved, motion)
    track.add(keep)
    for frame in range(12):
        found = track.at(frame)
        for got, wanted in zip(found, (keep, moved, motion), strict=True):
            assert np.array_equal(got, wanted[frame // 4])  # type: ignore[arg-type]
    assert track.at(12)[1:] == (None, None)


def test_where_nothing_moved_the_map_is_as_it_was() -> None:
    source, keep = noise(0, 64, 48), _half()
    plain = draw_map(source, keep, 16)
    still = np.zeros((3, 4), bool), np.zeros((3, 4, 2), np.float32)
    assert np.array_equal(draw_map(source, keep, 16, *still), plain)
    # what was computed is shown as such
    every = np.ones((3, 4), bool)
    field = np.full((3, 4, 2), 9, np.float32)
    assert np.array_equal(draw_map(source, every, 16, every, field), draw_map(source, every, 16))


def test_moved_patches_have_a_tint_of_their_own() -> None:
    source, keep = noise(0, 64, 48), np.zeros((3, 4), bool)
    moved = _half()
    drawn = draw_map(source, keep, 16, moved).astype(int)[:40]
    plain = draw_map(source, keep, 16).astype(int)[:40]
    assert (drawn[:, 32:] == plain[:, 32:]).all()
    there = drawn[:, :32]
    assert (there[..., 2] > there[..., 0] + 20).all()
    # the picture is seen through it
    grey = (there - 0.2 * np.array([40, 110, 255])) / 0.8
    assert np.abs(grey - plain[:, :32]).max() < 2.1


@pytest.mark.parametrize("motion", [(12.0, 0.0), (-12.0, 0.0), (0.0, 9.0), (7.0, -7.0)])
@pytest.mark.parametrize("size", [(240, 416), (1080, 1920)])
def test_arrows_run_from_where_the_content_was_to_where_it_is(
    motion: tuple[float, float], size: tuple[int, int]
) -> None:
    """One patch that moved: its middle is the head, which is where most of the ink is."""
    height, width = size
    scale = height / 240
    keep = np.zeros((-(-height // 16), -(-width // 16)), bool)
    moved, field = keep.copy(), np.zeros((*keep.shape, 2), np.float32)
    moved[5, 9] = True
    field[5, 9] = np.array(motion) * scale
    drawn = draw_map(np.full((height, width, 3), 90, np.uint8), keep, 16, moved, field)
    ink = np.argwhere((drawn == ARROW).all(2)[: height - round(BAR * scale)])[:, ::-1] + 0.5
    head = np.array([9.5, 5.5]) * 16
    tail = head + field[5, 9]
    for end in (head, tail):
        assert np.abs(ink - end).max(1).min() <= 1 + scale
    along = (ink - head) @ field[5, 9] / (field[5, 9] @ field[5, 9])
    assert along.min() >= -0.5
    assert along.max() <= 1.5
    assert (along < 0.5).sum() > (along > 0.5).sum()


def test_what_hardly_moved_is_a_dot() -> None:
    for motion in ((0.0, 0.0), (0.3, 0.3)):
        # on one patch of every 2 x 2
        assert _arrows(motion).sum() == 13 * 7


@pytest.mark.parametrize("motion", [(1.0, 0.0), (0.0, -0.6), (-2.0, 2.0)])
def test_the_direction_of_a_short_step_can_be_seen(motion: tuple[float, float]) -> None:
    """It reaches further to where the content came from than to any other side."""
    moved = np.zeros((15, 26), bool)
    moved[4, 4] = True
    field = np.broadcast_to(np.array(motion, np.float32), (15, 26, 2))
    grey = np.full((240, 416, 3), 90, np.uint8)
    drawn = draw_map(grey, np.zeros_like(moved), 16, moved, field)
    ink = np.argwhere((drawn == ARROW).all(2)[:226])[:, ::-1] + 0.5 - 4.5 * 16
    along = ink @ np.array(motion) / np.hypot(*motion)
    across = ink @ np.array([motion[1], -motion[0]]) / np.hypot(*motion)
    assert along.max() >= 8
    assert max(-along.min(), np.abs(across).max()) <= 4.5


@pytest.mark.parametrize("size", [(240, 416), (480, 832), (1080, 1920)])
def test_arrows_can_be_told_apart(size: tuple[int, int]) -> None:
    """They cover little of the picture, and are no further apart than a twelfth of its height."""
    height, width = size
    ink = _arrows((0.02 * height, 0.01 * height), height, width)
    assert 0.01 < ink.mean() < 0.2
    apart = max(height // 12, 33)
    for y in range(0, len(ink) - apart, apart):
        for x in range(0, width - apart, apart):
            assert ink[y : y + apart, x : x + apart].any()


def test_a_patch_that_moved_alone_has_an_arrow_wherever_it_is() -> None:
    for place in np.ndindex(6, 6):
        moved = np.zeros((15, 26), bool)
        moved[place] = True
        field = np.full((15, 26, 2), 5, np.float32)
        drawn = draw_map(
            np.full((240, 416, 3), 90, np.uint8), np.zeros_like(moved), 16, moved, field
        )
        assert (drawn == ARROW).all(2)[:226].any(), place


def test_arrows_from_outside_of_the_picture_end_at_its_edge() -> None:
    for motion in ((-900.0, 0.0), (500.0, 700.0), (0.0, 1e4)):
        assert _arrows(motion).any()


def test_the_bar_shows_what_moved_behind_what_was_recomputed() -> None:
    keep = np.zeros((15, 26), bool)
    moved = keep.copy()
    keep[:3], moved[3:9] = True, True
    row = draw_map(np.zeros((240, 416, 3), np.uint8), keep, 16, moved)[233][5 : 5 + 416 // 3 - 2]
    computed, shifted = ((row == colour).all(1) for colour in ((255, 190, 60), ARROW))
    assert computed.mean() == pytest.approx(0.2, abs=0.02)
    assert shifted.mean() == pytest.approx(0.4, abs=0.02)
    assert shifted.argmax() == computed.sum()
