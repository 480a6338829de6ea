"""What moved has the edit of where it came from, as far as that follows its source."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillframe.detection.motion import Settled
from stillframe.detection.traces import Moved
from stillframe.engine.results import Results
from stillframe.tokens.grid import Grid

GRID, CHANNELS, SIDE = Grid(1, 6, 6), 3, 2
WIDTH = GRID.width * SIDE
# the same grey levels of each channel, a hundred
GAINS = 100 * torch.eye(CHANNELS)
INNER = torch.arange(36).view(6, 6)[1:-1, 1:-1].flatten()
STEP = torch.tensor([0.4, -0.7])  # latent pixels


def tokens(pixels: Tensor) -> Tensor:
    """(1, N, P) of (12, 12, C) latent pixels."""
    return pixels.unflatten(0, (6, 2)).unflatten(2, (6, 2)).transpose(1, 2).reshape(1, 36, -1)


def carried(result: Tensor, source: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """Inner tokens of a latent frame to which everything came by a part of a latent pixel."""
    results = Results(GRID, SIDE, GAINS)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    here = torch.stack([x, y], -1).unflatten(0, (6, 16)).unflatten(2, (6, 16)).transpose(1, 2)
    places = (here.flatten(0, 1)[INNER] + 8 * STEP).unsqueeze(1).repeat(1, 4, 1, 1, 1)
    moved = torch.zeros(1, 6, 6, dtype=torch.bool)
    moved[:, 1:-1, 1:-1] = True
    settled = Settled(
        moved, torch.zeros_like(moved), torch.arange(36)[None], moved.new_zeros(1, 6, 6, 2).float(),
        moved.float(), (Moved(INNER, torch.zeros(16, 4, 16, 16, dtype=torch.int32), places),), 1,
    )  # fmt: skip
    own, keep = tokens(now), ~moved.view(1, 1, -1)
    filled, even = results.restore(own, (tokens(result), tokens(source)), own, keep, [settled])
    return filled[0, INNER], even[0][0]


def drawn(seed: int) -> Tensor:
    """Latent pixels as different from each other as they can be."""
    return torch.randn(WIDTH, WIDTH, CHANNELS, generator=torch.Generator().manual_seed(seed))


def ramp() -> Tensor:
    """What linear interpolation leaves as it is; a grey level from one latent pixel to the next."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    return torch.stack([x, y, x + y], -1) / 100


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_a_share_of_the_source_and_something_even_is_carried_exactly(slope: float) -> None:
    """Though the source is noise, which a part of a pixel's interpolation halves."""
    source, now = drawn(0), drawn(1)
    there = ramp() + (STEP @ torch.tensor([[1.0, 0, 1], [0, 1, 1]])) / 100
    filled, even = carried(slope * source + ramp(), source, now)
    expected = tokens(slope * now + there)[0, INNER]
    torch.testing.assert_close(filled, expected, atol=0.02, rtol=0)  # of a noise of 1
    assert even.min() == 1


def test_noise_of_the_source_does_not_come_back_where_the_result_is_smooth() -> None:
    source = drawn(0)
    flat = torch.full_like(source, 0.5)
    filled, _ = carried(flat, source, drawn(1))
    assert (filled - 0.5).abs().max() < 0.02


def test_where_the_source_is_even_light_that_changes_is_taken_over() -> None:
    """Nothing tells there how the edit follows, and what is slow comes through edits."""
    dark = torch.zeros(WIDTH, WIDTH, CHANNELS)
    filled, even = carried(ramp(), dark, dark + 0.03)
    there = ramp() + (STEP @ torch.tensor([[1.0, 0, 1], [0, 1, 1]])) / 100
    torch.testing.assert_close(filled, tokens(there + 0.03)[0, INNER])
    assert even.min() == 1


def test_what_the_result_has_beside_its_source_is_uneven() -> None:
    source = drawn(0)
    _, even = carried(source + drawn(2), source, drawn(1))
    assert even.max() == 0
