"""Which tokens of a clip are computed, and which frame stands for the others."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from tests import stock_pipelines as stock

from stillframe.detection.pixels import TOLERANCE, VisibleChange, clip_change
from stillframe.errors import InputError
from stillframe.hooks.pruning import Geometry, choose_providers, latent_frames, plan_mask
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock

WAN = Geometry(temporal=4, single=True, pixels=16, patch=2)


def test_change_is_that_of_a_stream_and_goes_both_ways() -> None:
    frames = latent_frames(stock.clip(), WAN)
    change = clip_change(frames, (16, 16), TOLERANCE)
    block = SourceBlock(
        torch.empty(1), torch.empty(1), torch.empty(1), Grid(4, 4, 6), frames.flatten(0, 1)[None]
    )
    stream = VisibleChange(TOLERANCE)(block)[0]  # from frame a of the clip, at a, to frame t + 1
    for a in range(4):
        for t in range(a, 4):
            torch.testing.assert_close(change[a, t + 1], stream[a, t])
    backwards = clip_change(frames.flip(0), (16, 16), TOLERANCE).flip(0, 1)
    torch.testing.assert_close(change, backwards)
    assert (change[4, 0] > 1).any()


def test_pixel_frames_of_latent_frames() -> None:
    for geometry, frames in ((WAN, 13), (Geometry(4, False, 16, 2), 12)):
        assert geometry.length(frames) == 3 + geometry.single
        listed = [geometry.pixel_frames(n) for n in range(geometry.length(frames))]
        assert [n for part in listed for n in range(frames)[part]] == list(range(frames))
        video = torch.arange(frames).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        assert latent_frames(video, geometry)[-1, :, 0, 0, 0].tolist() == [*range(frames)][-4:]


def test_few_frames_are_computed_and_none_stands_for_what_it_is_not_like() -> None:
    generator = torch.Generator().manual_seed(0)
    look = torch.randint(0, 3, (6, 2, 5), generator=generator).float()
    change = 2 * (look.unsqueeze(0) - look.unsqueeze(1)).abs()  # alike: as many as there are looks
    plan = choose_providers(change)
    assert (change.gather(0, plan.provider.unsqueeze(0)) <= 1).all()
    assert plan.keep.gather(0, plan.provider).all()
    for row in range(2):
        for column in range(5):
            kept = plan.keep[:, row, column]
            assert kept.sum() == len(look[:, row, column].unique())
            own = torch.arange(6)[kept]
            assert torch.equal(plan.provider[kept, row, column], own)


def test_no_cover_is_much_smaller() -> None:
    """Against all covers of a place: the greedy one is within one frame of the smallest."""
    generator = torch.Generator().manual_seed(1)
    level = torch.rand(6, 1, 20, generator=generator) * 4
    change = (level.unsqueeze(0) - level.unsqueeze(1)).abs()
    plan = choose_providers(change)
    for place in range(20):
        fits = change[:, :, 0, place] <= 1
        smallest = next(
            size
            for size in range(1, 7)
            if any(fits[list(c)].any(0).all() for c in combinations(range(6), size))
        )
        assert smallest <= plan.keep[:, 0, place].sum() <= smallest + 1


def test_a_later_frame_may_stand_for_an_earlier_one() -> None:
    level = torch.tensor([9.0, 0.0, 0.6, 1.2, 0.0]).view(-1, 1, 1)
    plan = choose_providers((level.unsqueeze(0) - level.unsqueeze(1)).abs())
    assert plan.keep.flatten().tolist() == [True, False, True, False, False]
    assert plan.provider.flatten().tolist() == [0, 2, 2, 2, 2]


def test_given_frames_stand_for_no_others() -> None:
    given = torch.tensor([True, False, False, False])
    plan = choose_providers(torch.zeros(4, 4, 2, 2), given)
    assert plan.keep[:, 0, 0].tolist() == [True, True, False, False]
    assert (plan.provider[1:] == 1).all()
    keep = torch.ones(4, 2, 2, dtype=torch.bool)
    keep[1] = False
    assert (plan_mask(keep, given=given).provider[1] == 2).all()
    with pytest.raises(InputError, match="no frame at 4 of 4 places"):
        plan_mask(given.view(-1, 1, 1).expand(-1, 2, 2), given=given)


def test_a_masks_providers() -> None:
    keep = torch.tensor([True, False, False, True]).view(-1, 1, 1)
    assert plan_mask(keep).provider.flatten().tolist() == [0, 0, 3, 3]
    change = torch.ones(4, 4, 1, 1)
    change[3, 1] = 0.5
    assert plan_mask(keep, change).provider.flatten().tolist()[1] == 3


@pytest.mark.parametrize("frames", [0, 2])
def test_rows_are_the_providers_among_the_computed(frames: int) -> None:
    level = torch.tensor([9.0, 0.0, 0.6, 1.2]).view(-1, 1, 1).expand(-1, 2, 3)
    plan = choose_providers((level.unsqueeze(0) - level.unsqueeze(1)).abs()).after(frames)
    tokens = torch.arange(plan.tokens)
    assert sorted([*plan.kept.tolist(), *plan.pruned.tolist()]) == tokens.tolist()
    assert torch.equal(
        plan.kept[plan.rows],
        plan.provider.flatten() * 6 + tokens % 6,
    )
