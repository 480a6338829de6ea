"""Where an edit draws lines that its source has not."""

from __future__ import annotations

import torch
from torch import Tensor

from stillframe.engine.results import drawn_lines
from stillframe.tokens.grid import Grid, patchify

GRID, PATCH, CHANNELS = Grid(1, 6, 8), 2, 4
GAINS = torch.eye(CHANNELS)


def lines(result: Tensor, source: Tensor) -> Tensor:
    """Of latents (C, h*p, w*p) in grey levels, (h, w)."""
    return found(result[None], source[None])[0]


def found(result: Tensor, source: Tensor, gains: Tensor = GAINS) -> Tensor:
    """Of a batch of them, (B, h, w)."""
    tokens = [patchify(x.unsqueeze(2), PATCH) for x in (result, source)]
    return drawn_lines(tokens[0], tokens[1], GRID, gains)


def pictures() -> tuple[Tensor, Tensor]:
    """A flat one, and one with a line through the patches of the fourth column."""
    flat = torch.full((CHANNELS, GRID.height * PATCH, GRID.width * PATCH), 20.0)
    lined = flat.clone()
    lined[:, :, 3 * PATCH] += 60
    return flat, lined


def test_a_line_that_is_drawn_is_found_with_what_is_around() -> None:
    flat, lined = pictures()
    expected = torch.zeros(GRID.height, GRID.width, dtype=torch.bool)
    # the step into the line is of the patch before it, the step out of it of its own
    expected[:, 1:5] = True
    assert torch.equal(lines(lined, flat), expected)


def test_lines_of_the_source_are_none_of_the_edit() -> None:
    """Whether they stay as they are, brightened alike, or are wiped out."""
    flat, lined = pictures()
    for result, source in ((lined, lined), (lined + 50, lined), (flat, lined)):
        assert not lines(result, source).any()


def test_steps_count_by_what_they_are_in_grey_levels() -> None:
    flat, lined = pictures()
    faint = flat + (lined - flat) / 4
    assert not lines(faint, flat).any()
    assert found(faint[None], flat[None], 4 * GAINS).any()


def test_a_batch_is_looked_at_row_by_row() -> None:
    flat, lined = pictures()
    both = found(torch.stack([flat, lined]), torch.stack([flat, flat]))
    assert not both[0].any()
    assert torch.equal(both[1], lines(lined, flat))
