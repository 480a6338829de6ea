"""Dense optical flow: motion that is known, because pictures are sums of waves evaluated anywhere.

The kernels are compared with the reference, which is what runs here, in fused_kernels.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stillframe.detection.flow import OpticalFlow
from stillframe.kernels.flow import dense_flow

HEIGHT, WIDTH = 96, 128


def grid(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """(x, y) of every pixel, (H, W, 2)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).float()


def waves(at: Tensor, seed: int = 0, longest: float = 80) -> Tensor:
    """A texture at any places (..., 2), rounded: 60 waves of 8 pixels or more."""
    generator = torch.Generator().manual_seed(seed)
    length = 8 * (longest / 8) ** torch.rand(60, generator=generator)
    turn, phase = 2 * math.pi * torch.rand(2, 60, generator=generator)
    across = torch.stack([turn.cos(), turn.sin()]) * 2 * math.pi / length
    light = torch.zeros(at.shape[:-1])
    for k in range(60):
        light += (at @ across[:, k] + phase[k]).cos()
    return (128 + 10 * light).clamp(0, 255).round().byte()


def inside(places: Tensor, margin: int = 8) -> Tensor:
    """Which pixels show what is in the reference, and are not at its edge."""
    height, width = places.shape[:2]
    last = torch.tensor([width - 1, height - 1]) - margin
    return ((places >= margin) & (places <= last)).all(-1)


def assert_near(flow: Tensor, true: Tensor, where: Tensor, within: float = 0.05) -> None:
    error = (flow - true).norm(dim=-1)[where]
    assert len(error) > 1000
    assert error.median() < within
    assert error.quantile(0.99) < 5 * within


@pytest.mark.parametrize("by", [(0, 3), (-2, 5), (0.5, -0.25), (11.3, 5.6), (-21.75, 14)])
def test_a_shift_is_found(by: tuple[float, float]) -> None:
    here, move = grid(), torch.tensor(by)
    flow = dense_flow(waves(here + move)[None], waves(here))
    assert flow.shape == (1, HEIGHT, WIDTH, 2)
    assert flow.dtype == torch.float32
    assert_near(flow[0], move.expand(HEIGHT, WIDTH, 2), inside(here) & inside(here + move))


def test_what_was_searched_before_changes_nothing() -> None:
    """Patches that may have moved fill another part of every picture: sizes of a search change."""
    search, sizes = OpticalFlow("full"), [(240, 352), (240, 368), (64, 64), (240, 416)]
    for height, width in sizes:
        here = grid(height, width)
        frames = torch.stack([waves(here + 0.5 * t) for t in range(4)])
        flow = search(frames, frames[0])
        assert torch.equal(flow, OpticalFlow("full")(frames, frames[0]))
        assert_near(flow[3], torch.tensor([1.5, 1.5]).expand_as(here), inside(here), within=0.2)


def test_64_pixels_are_found_in_a_picture_of_832_by_480() -> None:
    here, move = grid(480, 832), torch.tensor([64.0, -20.5])
    flow = dense_flow(waves(here + move, longest=400)[None], waves(here, longest=400))
    assert_near(flow[0], move.expand(480, 832, 2), inside(here) & inside(here + move))


@pytest.mark.parametrize("scale", [0.94, 1.06])
def test_a_zoom_is_found(scale: float) -> None:
    here, center = grid(), torch.tensor([WIDTH / 2, HEIGHT / 2])
    there = center + scale * (here - center)
    flow = dense_flow(waves(there)[None], waves(here))
    # of a patch that has one displacement, half a stride from its middle
    assert_near(flow[0], there - here, inside(here) & inside(there), 0.06 * 2)


def test_two_layers_that_move_apart_are_found_up_to_their_seam() -> None:
    here = grid()
    left = here[..., 0] < WIDTH // 2
    move = torch.where(left[..., None], torch.tensor([3.5, 0.0]), torch.tensor([-4.0, 2.5]))
    # as if cut out of two pictures: what either hides is nowhere in the other
    apart = torch.where(left, waves(here + move), waves(here + move, seed=1))
    flow = dense_flow(apart[None], torch.where(left, waves(here), waves(here, seed=1)))[0]
    far = (here[..., 0] - WIDTH / 2).abs() > 6
    assert_near(flow, move, far & inside(here) & inside(here + move))


def test_frames_equal_to_the_reference_have_not_moved_at_all() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (HEIGHT, WIDTH), generator=generator).byte()
    for picture in (waves(grid()), noise):
        assert (dense_flow(picture.expand(2, -1, -1), picture) == 0).all()


@pytest.mark.parametrize("lights", [(0, 0), (128, 128), (90, 160), (0, 255)])
def test_flat_pictures_have_not_moved_at_all(lights: tuple[int, int]) -> None:
    now, before = (torch.full((HEIGHT, WIDTH), light, dtype=torch.uint8) for light in lights)
    assert (dense_flow(now[None], before) == 0).all()


def test_flow_between_unlike_pictures_is_finite_and_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    random = 255 * torch.randint(0, 2, (3, HEIGHT, WIDTH), generator=generator).byte()
    # little contrast makes long steps to where there is much
    faint = waves(grid()) // 16
    flow = dense_flow(torch.stack([*random[:2], faint]), random[2])
    assert flow.isfinite().all()
    # every level adds a patch at most, and is half as fine as the next
    assert flow.norm(dim=-1).amax() <= 8 * (1 + 2 + 4 + 8)


def test_frames_of_a_batch_do_not_know_each_other() -> None:
    here = grid(64, 80)
    frames = torch.stack([waves(here + by) for by in (1.5, -3.0, 0.0, 7.25)])
    reference = waves(here)
    together = dense_flow(frames, reference)
    assert torch.equal(together, dense_flow(frames, reference))
    for frame, flow in zip(frames, together, strict=True):
        assert torch.equal(dense_flow(frame[None], reference)[0], flow)


def test_flow_of_a_mirrored_picture_is_mirrored() -> None:
    here = grid()
    now, before = waves(here + torch.tensor([2.5, -1.25])), waves(here)
    flow = dense_flow(now[None], before)[0]
    turned = dense_flow(now.T[None].contiguous(), before.T.contiguous())[0]
    # starts beside a patch are tried in another order: equal errors may fall differently
    assert ((turned.transpose(0, 1).flip(-1) - flow).abs() < 0.01).float().mean() > 0.99


@pytest.mark.parametrize(
    ("frames", "reference", "message"),
    [
        (torch.zeros(1, 64, 64), torch.zeros(64, 64), r"uint8, not torch\.float32"),
        (torch.zeros(1, 64, 72).byte(), torch.zeros(64, 72).byte(), "of 16, not 72x64"),
        (torch.zeros(1, 48, 64).byte(), torch.zeros(48, 64).byte(), "not 64x48"),
        (torch.zeros(64, 64).byte(), torch.zeros(64, 64).byte(), r"not \(64, 64\)"),
        (torch.zeros(1, 64, 64).byte(), torch.zeros(64, 80).byte(), r"\(64, 80\)"),
    ],
)
def test_other_pictures_are_refused(frames: Tensor, reference: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dense_flow(frames, reference)
