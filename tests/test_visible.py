"""The pixel detector: what looks the same is kept, what looks different is computed.

Pictures are built; a mask is judged by what it lets be shown, worked out here frame by frame.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.detection.pixels import (
    TOLERANCE,
    Anchors,
    VisibleChange,
    VisibleMask,
    VisibleScore,
    appearance,
    changed,
    sensor_noise,
)
from stillframe.detection.staleness import QUANTILES, Staleness
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

S, T, PATCH = 3, 4, 16
HEIGHT, WIDTH = 4 * PATCH, 6 * PATCH
GRID = Grid(S, 4, 6)


class Judged(NamedTuple):
    """What came of a clip: masks (F, h, w), staleness (F, h, w), of all latent frames."""

    keep: Tensor
    stale: Tensor

    @property
    def share(self) -> float:
        """Computed after the first block."""
        return float(self.keep[S:].float().mean())


def picture(seed: int = 0) -> Tensor:
    """A textured picture, (3, H, W) in [0.2, 0.8]."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, HEIGHT // 8, WIDTH // 8, generator=generator)
    large = F.interpolate(small, (HEIGHT, WIDTH), mode="bicubic")[0]
    return (0.2 + 0.6 * large).clamp(0.2, 0.8)


def still(frames: int = 36, seed: int = 0) -> Tensor:
    """(T, 3, H, W)."""
    return picture(seed).expand(frames, -1, -1, -1).clone()


def blocks(video: Tensor) -> list[Tensor]:
    """``SourceBlock.pixels`` of every block of a video (T, 3, H, W) or (B, T, 3, H, W)."""
    video = video if video.ndim == 5 else video.unsqueeze(0)
    video = torch.cat([video[:, :1].expand(-1, T, -1, -1, -1), video], 1)
    size = S * T
    return [video[:, i : i + size + T] for i in range(0, video.shape[1] - T, size)]


def source(pixels: Tensor, anchors: Anchors) -> SourceBlock:
    tokens = torch.zeros(len(pixels), S, GRID.frame_tokens, 4)
    return SourceBlock(tokens, tokens[:, 0], tokens[:, 0], GRID, pixels, anchors.pixels)


def judge(video: Tensor, tolerance: float = TOLERANCE) -> Judged:
    """As the engine does it: the first block whole, anchors by what was computed."""
    select, anchors = VisibleMask(tolerance), Anchors()
    keeps, stale = [], []
    for number, pixels in enumerate(blocks(video)):
        keep = torch.ones(len(pixels), S, GRID.height, GRID.width, dtype=torch.bool)
        if number:
            keep = select(source(pixels, anchors))
        stale.append(anchors.advance(pixels, keep)[0])
        keeps.append(keep[0])
    return Judged(torch.cat(keeps), torch.cat(stale))


def shown_error(video: Tensor, keep: Tensor) -> Tensor:
    """Largest difference of a cell of 4x4 pixels between the source and what is shown, by latent
    frame, in grey levels: computed places show their source, others what they showed last."""
    levels, shown, found = 255 * video, 255 * video[0], []
    for t, mask in enumerate(keep):
        big = mask.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
        worst = torch.zeros(())
        for frame in levels[t * T : (t + 1) * T]:
            picture = torch.where(big, frame, shown)
            difference = F.avg_pool2d((frame - picture).unsqueeze(0), 4).abs().amax()
            worst = torch.maximum(worst, difference)
        shown = torch.where(big, levels[(t + 1) * T - 1], shown)
        found.append(worst)
    return torch.stack(found)


def test_a_still_picture_costs_nothing() -> None:
    assert judge(still()).share == 0


@pytest.mark.parametrize("contrast", [-0.2, 0.1, 0.2])
def test_a_small_ball_that_crosses_within_a_latent_frame_leaves_no_trace(contrast: float) -> None:
    video = still(48)
    for j, x in enumerate((6, 32, 58, 84)):  # frames 20 to 23, latent frame 5
        video[20 + j, :, 29:35, x - 3 : x + 3] += contrast
    found = judge(video)
    assert found.keep[5].any(), "nobody saw it"
    assert (shown_error(video, found.keep) <= 3 * TOLERANCE + 0.01).all()
    # gone again, and computed once more where its mean had been blended in; then nothing
    assert not found.keep[7:].any()
    assert not found.keep[:, 0][S:].any(), "rows that it never touched"


def test_a_small_object_comes_and_goes() -> None:
    video = still(72)
    video[26:50, :, 20:28, 40:48] += 0.15
    found = judge(video)
    here = found.keep[:, 1, 2]
    assert here[6]
    assert here[12]
    assert (shown_error(video, found.keep) <= 3 * TOLERANCE + 0.01).all()
    assert found.keep[S:].sum() <= 6


def test_a_thin_edge_that_moves_by_a_pixel_is_seen() -> None:
    video = still(36)
    video[:, :, :, 40:41] = 0.9
    video[16:, :, :, 40:41] = picture()[:, :, 40:41]
    video[16:, :, :, 41:42] = 0.9
    assert judge(video).keep[4, :, 2].all()


def test_a_slow_fade_is_within_tolerance_at_every_frame() -> None:
    """0.2 levels a frame over 3,000 frames: there and back again, as far as the range goes."""
    t = torch.arange(3000) * 0.2
    level = 30 + (t % 300 - 150).abs()
    video = (level / 255).view(-1, 1, 1, 1) + 0.1 * still(1)
    found = judge(video)
    assert found.stale.max() <= TOLERANCE
    assert (shown_error(video, found.keep) <= 3 * TOLERANCE + 0.01).all()
    assert 0.1 < found.share < 0.5


@pytest.mark.parametrize("frames", [1, 12, 24, 48])
@pytest.mark.parametrize("out", [False, True])
def test_fades_from_and_to_black_arrive(frames: int, out: bool) -> None:
    gain = ((torch.arange(96) - 16) / frames).clamp(0, 1)
    video = (1 - gain if out else gain).view(-1, 1, 1, 1) * still(96)
    found = judge(video)
    assert found.stale.max() <= TOLERANCE
    assert shown_error(video, found.keep)[-1] <= TOLERANCE
    assert not found.keep[-3:].any()


def test_a_lamp_that_is_switched_is_seen_everywhere_at_once() -> None:
    video = still(48)
    video[25:] *= 1.1
    found = judge(video)
    assert found.keep[6].all()
    assert not found.keep[8:].any()


def test_a_slow_zoom_is_followed() -> None:
    """1% a second at 24 frames a second."""
    frames = []
    for t in range(72):
        theta = torch.tensor([[[1 - 0.01 * t / 24, 0, 0], [0, 1 - 0.01 * t / 24, 0]]])
        grid = F.affine_grid(theta, [1, 3, HEIGHT, WIDTH], align_corners=False)
        frames.append(F.grid_sample(picture().unsqueeze(0), grid, align_corners=False)[0])
    video = torch.stack(frames)
    found = judge(video)
    assert found.stale.max() <= TOLERANCE
    assert 0 < found.share < 1


def test_a_subtitle_that_changes_is_computed_and_nothing_else() -> None:
    video = still(48)
    generator = torch.Generator().manual_seed(3)
    for first, last in ((0, 18), (18, 48)):
        text = (torch.rand(3, HEIGHT // 16, WIDTH // 8 - 4, generator=generator) < 0.5).float()
        big = text[:1].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :12]
        video[first:last, :, 50:62, 24 : 24 + big.shape[2]] = big
    found = judge(video)
    assert found.keep[4, 3].any()
    assert not found.keep[S:, :3].any()
    assert (shown_error(video, found.keep) <= 3 * TOLERANCE + 0.01).all()


def test_a_cut_to_a_similar_shot_is_computed_where_it_differs() -> None:
    video = still(48)
    video[24:] = picture().roll(1, 2)  # the same shot, a pixel further
    found = judge(video)
    differs = F.avg_pool2d((255 * (video[24] - video[0])).square().mean(0, True), PATCH).sqrt()[0]
    assert torch.equal(found.keep[6] | (differs <= TOLERANCE), torch.ones(4, 6, dtype=torch.bool))
    assert found.stale.max() <= TOLERANCE


@pytest.mark.parametrize(("levels", "most"), [(2.0, 0.02), (4.0, 0.05), (6.0, 0.10)])
def test_noise_of_a_sensor_is_not_motion(levels: float, most: float) -> None:
    generator = torch.Generator().manual_seed(1)
    video = still(120)
    noisy = video + torch.randn(video.shape, generator=generator) * levels / 255
    found = judge(noisy)
    assert found.share <= most
    # and what moves beneath it is still seen
    noisy[60:, :, 16:32, 32:48] += 0.12
    assert judge(noisy).keep[15, 1, 2]


def test_noise_is_measured_and_motion_is_not_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    video = 255 * still(S * T)
    for levels in (0.0, 1.0, 5.0):
        noisy = video + levels * torch.randn(video.shape, generator=generator)
        frames = noisy.unflatten(0, (S, T)).unsqueeze(0)
        assert float(sensor_noise(frames, (PATCH, PATCH))) == pytest.approx(levels**2, rel=0.15)
    moving = torch.stack([255 * picture().roll(t, 2) for t in range(S * T)])
    frames = moving.unflatten(0, (S, T)).unsqueeze(0)
    assert float(sensor_noise(frames, (PATCH, PATCH))) == 0
    # two frames of each latent frame are too few to tell
    assert float(sensor_noise(frames[:, :, :2], (PATCH, PATCH))) == 0


def test_noise_excuses_no_more_than_the_tolerance_allows() -> None:
    """A picture of nothing but noise that grows: what is shown stays within 1.5 tolerances."""
    generator = torch.Generator().manual_seed(2)
    video = still(120)
    growing = torch.linspace(0, 20, 120).view(-1, 1, 1, 1)
    video = video + growing * torch.randn(video.shape, generator=generator) / 255
    assert judge(video).stale.max() <= 1.5 * TOLERANCE


def test_a_lower_tolerance_computes_more() -> None:
    """On the left something moves; on the right the light wavers by 1.8 levels."""
    video = still(60)
    for t in range(60):
        video[t, :, :, :40] = picture().roll(t // 20, 2)[:, :, :40]
        video[t, :, :, 48:] += 1.8 / 255 * (t // 12 % 2)
    shares = [judge(video, tolerance).share for tolerance in (0.0, 1.0, 3.0, 20.0, 255.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1] > shares[2] > shares[-1] == 0
    for tolerance in (1.0, 3.0, 20.0):
        assert judge(video, tolerance).stale.max() <= tolerance


@pytest.mark.parametrize(("spared", "whole"), [(1, True), (2, False)])
def test_a_block_of_which_next_to_nothing_could_be_reused_is_whole(
    spared: int, whole: bool
) -> None:
    """Of 72 tokens 3 are less than a twentieth, 6 are more."""
    looks = torch.arange(1.0, S + 1).view(1, S, 1, 1).expand(1, S, GRID.frame_tokens, 4) * 50
    looks = looks.clone()
    looks[:, :, :spared] = 0
    before = torch.zeros(1, GRID.frame_tokens, 4)
    block = SourceBlock(looks, before, before, GRID, look=looks, look_anchor=before)
    alone = changed(VisibleChange(3.0)(block))[0]
    assert int((~alone).sum()) == S * spared
    keep = VisibleMask(3.0)(block)
    assert torch.equal(keep, torch.ones_like(keep) if whole else alone)


def test_a_batch_is_judged_video_by_video() -> None:
    generator = torch.Generator().manual_seed(5)
    videos = torch.stack([still(36, 1), still(36, 2)])
    videos[1] += torch.randn(videos[1].shape, generator=generator) * 4 / 255
    videos[0, 20:, :, :20] += 0.2
    select, anchors = VisibleMask(3.0), Anchors()
    together = []
    for number, pixels in enumerate(blocks(videos)):
        keep = torch.ones(2, S, 4, 6, dtype=torch.bool)
        keep = select(source(pixels, anchors)) if number else keep
        anchors.advance(pixels, keep)
        together.append(keep)
    for row in range(2):
        assert torch.equal(torch.cat(together, 1)[row], judge(videos[row]).keep)


def test_change_is_of_every_pair_and_the_rule_goes_frame_by_frame() -> None:
    """The matrix against pairs compared one at a time, and the rule against a loop."""
    generator = torch.Generator().manual_seed(4)
    video = still(24) + torch.randn(24, 1, HEIGHT, WIDTH, generator=generator).cumsum(0) * 2 / 255
    pixels, anchors = blocks(video), Anchors()
    anchors.advance(pixels[0], torch.ones(1, S, 4, 6, dtype=torch.bool))
    change = VisibleChange(3.0)(source(pixels[1], anchors))[0]
    frames = 255 * pixels[1][0].unflatten(0, (S + 1, T))
    assert anchors.pixels is not None
    held = [255 * anchors.pixels[0, 0], *frames[1:].mean(1)]
    noise = float(sensor_noise(frames[1:].unsqueeze(0), (PATCH, PATCH)))
    for a in range(S):
        for t in range(a, S):
            square = (frames[t + 1].mean(0) - held[a]).square().mean(0, True)
            rms = (F.avg_pool2d(square, PATCH)[0] - noise / 2).clamp(min=0).sqrt()
            assert (change[a, t] >= rms / 3.0 - 1e-4).all()
    keep, at = changed(change)
    for i in range(4):
        for j in range(6):
            anchor = 0
            for t in range(S):
                assert bool(keep[t, i, j]) == bool(change[anchor, t, i, j] > 1)
                assert at[t, i, j] == change[anchor, t, i, j]
                anchor = t + 1 if keep[t, i, j] else anchor


def test_a_score_says_at_which_tolerance_a_token_is_computed() -> None:
    video = torch.stack([picture().roll(t // 5, 2) for t in range(24)])
    pixels, anchors = blocks(video), Anchors()
    anchors.advance(pixels[0], torch.ones(1, S, 4, 6, dtype=torch.bool))
    block = source(pixels[1], anchors)
    score, change = VisibleScore(3.0)(block), VisibleChange(3.0)(block)
    for times in (0.5, 1.0, 2.0):
        assert (score[changed(change, times)[0]] >= times).all()
    assert (score >= 0).all()


def test_weighted_latents_stand_in_for_pixels() -> None:
    """Where only latents are at hand: the same rule on what the decoder makes of them."""
    looks = torch.zeros(1, S, GRID.frame_tokens, 8)
    looks[0, 1:, 7] = 4.0  # root mean square 4 levels
    looks[0, :, 9] = 2.0
    block = SourceBlock(
        looks, looks[:, 0], looks[:, 0], GRID, look=looks, look_anchor=torch.zeros(1, 24, 8)
    )
    keep = VisibleMask(3.0)(block).flatten(2)[0]
    assert keep.nonzero().tolist() == [[1, 7]]
    assert not VisibleMask(3.0)(block._replace(leniency=1.5)).any()
    with pytest.raises(ValueError, match="give either"):
        VisibleMask(3.0)(block._replace(look=None))


def test_appearances_are_means_of_cells() -> None:
    pixels = blocks(torch.rand(12, 3, HEIGHT, WIDTH))[0]
    look = appearance(pixels, source(pixels, Anchors()))
    assert look.shape == (1, S, 24, 48)
    mean = 255 * pixels[0, T : 2 * T].mean(0)
    patch = mean[:, 16:32, 32:48]
    cells = patch.unflatten(1, (4, 4)).unflatten(3, (4, 4)).mean((2, 4))
    torch.testing.assert_close(look[0, 0, 8], cells.flatten())


def test_staleness_counts_what_was_reused_alone() -> None:
    counts = Staleness()
    assert counts.told() is None
    stale = torch.tensor([[0.0, 1.0, 2.0, 50.0]])
    counts.add(stale, torch.tensor([[False, False, False, True]]))
    told = counts.told()
    assert told is not None
    assert told["max"] == 2.0
    assert told["p50"] == pytest.approx(1.05)
    assert told["p99"] == told["p99.9"] == 2.0
    counts.add(stale, torch.ones(1, 4, dtype=torch.bool))
    assert counts.told() == told


def test_staleness_is_counted_some_blocks_at_a_time_and_as_if_at_once() -> None:
    """Whenever it is asked, and whatever the blocks' shapes; waiting blocks stay few."""
    generator = torch.Generator().manual_seed(6)
    counts, values = Staleness(), torch.zeros(0)
    for number in range(100):
        shape = (1, 3 if number % 7 else 1, 5, 6)
        stale = 20 * torch.rand(shape, generator=generator) ** 3
        keep = torch.rand(shape, generator=generator) < 0.3
        counts.add(stale, keep)
        assert len(counts._waiting) < 32
        values = torch.cat([values, stale[~keep]])
        if number in (0, 40, 41, 99):
            told = counts.told()
            assert told is not None
            assert told["max"] == float(values.max())
            for name, share in QUANTILES.items():
                exact = values.sort().values[math.ceil(share * len(values)) - 1]
                assert told[name] == pytest.approx(float(exact), abs=0.051)
