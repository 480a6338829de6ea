"""Active cells against loops over cells and pixels."""

from __future__ import annotations

import itertools

import pytest
import torch

from stillframe.autoencoders.activity import Cells, active


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1), (2, 6, 1)])
def test_what_changed_is_active_with_one_cell_around_it(shape: tuple[int, ...]) -> None:
    changed = torch.rand(shape) < 0.15
    found = active(changed)
    assert found.shape == changed.shape
    assert found.dtype == torch.bool
    *outer, h, w = shape
    for place in itertools.product(*(range(n) for n in outer)):
        for y, x in itertools.product(range(h), range(w)):
            around = changed[place][max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            assert found[place][y, x] == around.any()


@pytest.mark.parametrize(("scale", "border"), [(1, 0), (1, 1), (4, 0), (2, 1)])
def test_pixels_of_cells_are_squares_of_a_finer_picture(scale: int, border: int) -> None:
    chosen = torch.rand(2, 3, 5) < 0.4
    cells = Cells(chosen)
    assert len(cells) == chosen.sum()
    finer = chosen.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    picture = torch.nn.functional.pad(finer, (border,) * 4)
    marked = torch.zeros(picture.numel(), dtype=torch.long)
    pixels = cells.pixels(scale, border)
    assert pixels.shape == (len(cells), scale, scale)
    marked.index_add_(0, pixels.flatten(), torch.ones_like(pixels.flatten()))
    assert torch.equal(marked.view(picture.shape), picture.long())


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 5, 7), (3, 1, 2)])
@pytest.mark.parametrize(("scale", "border"), [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_every_active_pixel_is_in_one_tile(
    shape: tuple[int, int, int], scale: int, border: int
) -> None:
    cells = Cells(torch.rand(shape) < 0.4)
    listed = cells.pixels(scale, border).flatten().tolist()
    across = shape[2] * scale + 2 * border
    tiles = cells.tiles(scale, border)
    found = []
    for corner, pixels, numbers in zip(
        tiles.corners.tolist(), tiles.pixels.T.tolist(), tiles.numbers.T.tolist(), strict=True
    ):
        square = [corner, corner + 1, corner + across, corner + across + 1]
        assert max(pixels) >= 0
        for place, pixel, number in zip(square, pixels, numbers, strict=True):
            assert pixel == (-1 if number < 0 else listed[number])
            assert pixel in (-1, place)
            found += [] if pixel < 0 else [pixel]
    assert sorted(found) == sorted(listed)


def test_patches_and_what_is_around_them_fill_tiles() -> None:
    patches = (torch.rand(1, 4, 5) < 0.3).repeat_interleave(2, 1).repeat_interleave(2, 2)
    chosen = active(patches)
    inside = chosen.clone()
    inside[:, [0, -1]] = inside[:, :, [0, -1]] = False  # squares there reach beyond the picture
    full = (Cells(chosen).tiles(1, 2).pixels >= 0).all(0).sum()
    assert 4 * full == inside.sum()
