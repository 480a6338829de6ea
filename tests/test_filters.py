"""The style filters: range, independence of frames, visible change, calm under noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training.filters import FILTERS, MOSAIC_BLOCK, apply_style

HEIGHT, WIDTH = 70, 94  # no multiples of a mosaic block


def scene(frames: int = 3) -> Tensor:
    """Soft coloured shapes (T, 3, H, W) with a bright corner, different in every frame."""
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(frames, 3, 3, 4, generator=generator)  # as flat as footage mostly is
    smooth = F.interpolate(small, (HEIGHT, WIDTH), mode="bicubic", align_corners=False)
    smooth[:, :, :20, :20] = 0.97
    smooth[:, 0, 30:50, 40:60] = 0.9  # hard edges, so that there are outlines
    return smooth.clamp(0, 1)


def luma(x: Tensor) -> Tensor:
    weights = torch.tensor([0.2126, 0.7152, 0.0722]).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


@pytest.mark.parametrize("name", FILTERS)
def test_keeps_shape_dtype_and_range(name: str) -> None:
    frames = scene()
    before = frames.clone()
    out = apply_style(name, frames)
    assert out.shape == frames.shape
    assert out.dtype == frames.dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(frames, before), "the filter wrote into its input"


@pytest.mark.parametrize("name", FILTERS)
def test_each_frame_is_alone(name: str) -> None:
    frames = scene()
    together = apply_style(name, frames)
    alone = torch.cat([apply_style(name, frame[None]) for frame in frames])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FILTERS)
def test_is_deterministic(name: str) -> None:
    frames = scene(1)
    assert torch.equal(apply_style(name, frames), apply_style(name, frames))


@pytest.mark.parametrize("name", FILTERS)
def test_far_change_is_not_felt(name: str) -> None:
    # what the engine prunes is an unchanged patch: its target may not depend on the far side
    frames = F.interpolate(scene(1), (64, 256), mode="bilinear", align_corners=False)
    changed = frames.clone()
    changed[..., 192:] = 1 - changed[..., 192:]
    near = apply_style(name, frames)[..., :144], apply_style(name, changed)[..., :144]
    torch.testing.assert_close(*near, rtol=0, atol=1e-6)
    assert not torch.equal(apply_style(name, frames), apply_style(name, changed))


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", FILTERS)
def test_constant_frames_stay_constant(name: str, level: float) -> None:
    out = apply_style(name, torch.full((1, 3, 40, 56), level))
    assert torch.isfinite(out).all()
    assert (out.amax((-1, -2)) - out.amin((-1, -2))).max() < 1e-3


@pytest.mark.parametrize("name", FILTERS)
def test_frames_smaller_than_the_windows(name: str) -> None:
    out = apply_style(name, torch.rand(1, 3, 9, 11))
    assert out.shape == (1, 3, 9, 11)
    assert torch.isfinite(out).all()


def test_photo_is_the_source() -> None:
    assert torch.equal(apply_style("photo", scene()), scene())


@pytest.mark.parametrize("name", [name for name in FILTERS if name != "photo"])
def test_is_a_visible_change(name: str) -> None:
    # a mean of 5/255 is twice the sensor noise below, and more than the eye needs side by side
    frames = scene()
    assert (apply_style(name, frames) - frames).abs().mean() > 5 / 255


def test_styles_differ_from_each_other() -> None:
    frames = scene(1)
    out = [apply_style(name, frames) for name in FILTERS]
    for i, first in enumerate(out):
        for second in out[:i]:
            assert (first - second).abs().mean() > 5 / 255


def noise_gain(name: str, frames: Tensor) -> float:
    """How far noise of 2/255 moves the target, over how far it moves the source (both rms)."""
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(5)) * 2 / 255
    noisy = (frames + noise).clamp(0, 1)
    change = apply_style(name, noisy) - apply_style(name, frames)
    return float(change.square().mean().sqrt() / (noisy - frames).square().mean().sqrt())


@pytest.mark.parametrize("level", [0.1, 0.5, 0.85])
@pytest.mark.parametrize("name", FILTERS)
def test_noise_on_flat_areas(name: str, level: float) -> None:
    # no line may come out of noise alone. The steepest tone curve, noir's, has a slope of
    # 1.5/0.92, and luma keeps 0.75 of independent noise in three channels: 1.23 together
    bound = 0.05 if name in {"neon", "blueprint"} else 1.25
    assert noise_gain(name, torch.full((2, 3, 64, 64), level)) <= bound


@pytest.mark.parametrize("name", FILTERS)
def test_noise_on_a_scene(name: str) -> None:
    # where a gradient lies between the thresholds of a line, the line's strength follows it; even
    # this scene, which is ramps throughout, may pass on no more than half as much again
    assert noise_gain(name, scene()) <= 1.5


def test_mosaic_blocks_are_constant_and_aligned() -> None:
    out = apply_style("mosaic", scene())
    assert MOSAIC_BLOCK == 8
    for top in range(0, HEIGHT, MOSAIC_BLOCK):
        for left in range(0, WIDTH, MOSAIC_BLOCK):
            block = out[..., top : top + MOSAIC_BLOCK, left : left + MOSAIC_BLOCK]
            assert torch.equal(block, block[..., :1, :1].expand_as(block))
    assert not torch.equal(out[..., 0, 31], out[..., 0, 32])


@pytest.mark.parametrize("name", ["noir", "pencil"])
def test_grey_styles_have_no_colour(name: str) -> None:
    out = apply_style(name, scene())
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 1], out[:, 2])


def test_grades_go_where_their_names_say() -> None:
    frames = scene()
    red, _, blue = apply_style("golden-hour", frames).mean((0, 2, 3)) - frames.mean((0, 2, 3))
    assert red > blue
    night = apply_style("night", frames)
    assert luma(night).mean() < 0.6 * luma(frames).mean()
    assert night[:, 2].mean() > night[:, 0].mean()
    brown = apply_style("sepia", frames).mean((0, 2, 3))
    assert brown[0] > brown[1] > brown[2]


@pytest.mark.parametrize("name", ["sepia", "noir"])
def test_tone_rises_with_the_source(name: str) -> None:
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(1, 3, 16, 64)
    tone = luma(apply_style(name, ramp))
    assert (tone.diff(dim=-1) >= -1e-6).all()


@pytest.mark.parametrize(("name", "sign"), [("blueprint", 1), ("neon", 1), ("cartoon", -1)])
def test_outlines_lie_on_the_edge(name: str, sign: int) -> None:
    # two greys side by side: lines are brighter (or darker) than both sides, and a few pixels wide
    frames = torch.full((1, 3, 48, 64), 0.35)
    frames[..., 32:] = 0.8
    row = sign * luma(apply_style(name, frames))[0, 0, 24]
    sides = torch.maximum(row[8], row[56])
    line = (row > sides + 0.5 * (row.max() - sides)).nonzero().flatten()
    assert row.max() > sides + 0.2
    assert 2 <= len(line) <= 6
    assert abs(line.float().mean().item() - 31.5) <= 1.5


def test_unknown_style_and_wrong_shape() -> None:
    with pytest.raises(ValueError, match="blueprint"):
        apply_style("crayon", scene())
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        apply_style("sepia", torch.zeros(3, 8, 8))
