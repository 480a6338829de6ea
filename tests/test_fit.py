"""Fitting frames to a model's grid: identity where possible, sizes, edges, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillframe.video.fit import Fit, fit_to_grid


def frames(height: int, width: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    shape = (count, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (50, 70), (16, 16), (240, 416)])
def test_without_scaling_every_byte_comes_back(height: int, width: int) -> None:
    fit = fit_to_grid(width, height)
    source = frames(height, width)
    assert torch.equal(fit.from_grid(fit.to_grid(source)), source)


def test_all_256_levels_survive() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    fit = fit_to_grid(16, 16)
    assert torch.equal(fit.from_grid(fit.to_grid(levels)), levels)


def test_an_odd_size_is_cut_not_resampled() -> None:
    fit = fit_to_grid(65, 49)
    source = frames(49, 65)
    assert (fit.width, fit.height, fit.is_scaled) == (64, 48, False)
    assert torch.equal(fit.from_grid(fit.to_grid(source)), source[:, :48, :64])


def test_padding_repeats_the_edge_to_the_right_and_below() -> None:
    fit = fit_to_grid(50, 34, multiple=32)
    grid = fit.to_grid(frames(34, 50))
    assert grid.shape == (2, 3, 64, 64)
    assert torch.equal(grid[:, :, :, 50:], grid[:, :, :, 49:50].expand(-1, -1, -1, 14))
    assert torch.equal(grid[:, :, 34:], grid[:, :, 33:34].expand(-1, -1, 30, -1))
    assert grid.min() >= 0
    assert grid.max() <= 1


def test_scaling_down_averages_instead_of_picking() -> None:
    """A fine chequerboard becomes its mean, where plain sampling would keep black or white."""
    board = (torch.arange(128)[:, None] + torch.arange(128)) % 2 * 255
    source = board.to(torch.uint8)[None, :, :, None].expand(1, -1, -1, 3)
    grid = fit_to_grid(128, 128, target_height=32).to_grid(source)
    assert (grid[..., 4:-4, 4:-4] - 0.5).abs().max() < 0.05


def test_scaling_keeps_a_ramp_and_stays_in_range() -> None:
    ramp = torch.linspace(0, 255, 200).round().to(torch.uint8)
    source = ramp[None, None, :, None].expand(1, 100, -1, 3)
    fit = fit_to_grid(200, 100, target_width=90)
    grid = fit.to_grid(source)
    expected = (torch.arange(90) + 0.5) / 90
    assert (grid[0, 0, 5, 2:88] - expected[2:88]).abs().max() < 0.01
    assert grid.min() >= 0
    assert grid.max() <= 1


@pytest.mark.parametrize(
    ("size", "wishes", "working"),
    [
        ((832, 480), {}, (832, 480)),
        ((832, 480), {"target_height": 240}, (416, 240)),
        ((832, 480), {"target_width": 416}, (416, 240)),
        ((640, 272), {"target_height": 544}, (1280, 544)),
        ((640, 272), {"target_height": 100, "target_width": 100}, (100, 100)),
        ((1920, 1080), {"max_short_side": 480}, (854, 480)),
        ((1080, 1920), {"max_short_side": 481}, (480, 854)),
        ((416, 240), {"max_short_side": 480}, (416, 240)),
        ((1920, 1080), {"max_short_side": 480, "target_height": 720}, (1280, 720)),
        ((853, 481), {}, (852, 480)),
    ],
)
@pytest.mark.parametrize("multiple", [16, 32])
def test_working_sizes(
    size: tuple[int, int], wishes: dict[str, int], working: tuple[int, int], multiple: int
) -> None:
    fit = fit_to_grid(*size, multiple=multiple, **wishes)
    assert (fit.width, fit.height) == working
    for padded, side in ((fit.padded_width, fit.width), (fit.padded_height, fit.height)):
        assert padded % multiple == 0
        assert 0 <= padded - side < multiple
    assert fit_to_grid(fit.width, fit.height, multiple=multiple)[2:] == fit[2:]


def test_from_grid_clamps_and_rounds_in_any_precision() -> None:
    fit = Fit(16, 16, 16, 16, 16, 16)
    values = torch.full((1, 3, 16, 16), 0.5)
    values[..., 0, 0], values[..., 0, 1] = -3.0, 7.0
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        got = fit.from_grid(values.to(dtype))
        assert got.dtype == torch.uint8
        assert got[0, 0, :3, 0].tolist() == [0, 255, 128]


def test_wrong_shapes_and_sizes_are_named() -> None:
    fit = fit_to_grid(64, 48)
    with pytest.raises(ValueError, match=r"\(2, 64, 48, 3\), not uint8 \(T, 48, 64, 3\)"):
        fit.to_grid(frames(64, 48))
    with pytest.raises(ValueError, match="float32"):
        fit.to_grid(frames(48, 64).float())
    with pytest.raises(ValueError, match=r"\(2, 48, 64, 3\), not \(T, 3, 48, 64\)"):
        fit.from_grid(frames(48, 64).float())
    with pytest.raises(ValueError, match="100x20 would become 50x10"):
        fit_to_grid(100, 20, target_width=50)
    for wishes in ({"target_height": 0}, {"multiple": 0}, {"max_short_side": -1}):
        with pytest.raises(ValueError, match="positive"):
            fit_to_grid(64, 48, **wishes)
