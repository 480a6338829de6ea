"""Flow, warp error and flicker against slow definitions and cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.metric_videos import noise, panned
from torch import Tensor
from torch.nn.functional import interpolate

from stillframe.metrics import find_metric
from stillframe.metrics.flow import estimator, visible, warp
from stillframe.metrics.measures import StaticFlicker
from stillframe.metrics.warp_error import pair_error

Plane = NDArray[np.float64]

# flow and warping


def shift(dx: float, dy: float, height: int = 20, width: int = 24) -> Tensor:
    return torch.tensor([float(dx), float(dy)])[:, None, None].expand(2, height, width)


def test_warping_by_whole_pixels_copies_and_by_half_ones_averages() -> None:
    picture = noise(3, 20, 24)
    assert torch.equal(warp(picture, shift(0, 0)), picture)
    assert torch.equal(warp(picture, shift(3, -2))[:, 2:, :-3], picture[:, :-2, 3:])
    assert torch.equal(warp(picture, shift(3, 0))[:, :, -3:], picture[:, :, -1:].expand(3, 20, 3))
    halves = warp(picture, shift(0.5, 0))[:, :, :-1]
    assert torch.allclose(halves, (picture[:, :, :-1] + picture[:, :, 1:]) / 2)
    one = torch.zeros(2, 20, 24)
    one[:, 5, 7] = torch.tensor([4.0, 2.0])  # x before y
    assert torch.equal(warp(picture, one)[:, 5, 7], picture[:, 7, 11])


def test_what_leaves_the_frame_is_not_visible() -> None:
    expected = torch.zeros(20, 24, dtype=torch.bool)
    expected[2:, :-3] = True
    assert torch.equal(visible(shift(3, -2), shift(-3, 2)), expected)


def test_flow_back_that_does_not_undo_the_flow_there_hides() -> None:
    backward = shift(0, 0).clone()
    backward[0, 4:9, 10:15] = 5.0
    backward[0, 12, 3] = 0.7  # 0.49 < 0.5 of tolerance
    hidden = ~visible(shift(0, 0), backward)
    expected = torch.zeros(20, 24, dtype=torch.bool)
    expected[4:9, 10:15] = True
    assert torch.equal(hidden, expected)


def test_motion_boundaries_are_hidden() -> None:
    forward = shift(0, 0).clone()
    forward[1, :, 12:] = 0.5  # too little to be lost, but a step
    hidden = ~visible(forward, -forward)
    expected = torch.zeros(20, 24, dtype=torch.bool)
    expected[:, 11] = True
    expected[-1, 12:] = True  # leave the frame
    assert torch.equal(hidden, expected)


def slow_visible(forward: Plane, backward: Plane) -> NDArray[np.bool_]:
    """The definition, pixel by pixel; flow as (2, H, W), x before y."""
    _, height, width = forward.shape
    seen = np.zeros((height, width), bool)
    for y, x in np.ndindex(height, width):
        u, v = forward[:, y, x]
        if not (0 <= x + u <= width - 1 and 0 <= y + v <= height - 1):
            continue
        left, top = math.floor(x + u), math.floor(y + v)
        back = np.zeros(2)
        for row, column in [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]:
            share = max(0, 1 - abs(x + u - column)) * max(0, 1 - abs(y + v - row))
            if share:
                back += share * backward[:, row, column]
        length = u**2 + v**2
        gap = (u + back[0]) ** 2 + (v + back[1]) ** 2
        right = forward[:, y, min(x + 1, width - 1)] - forward[:, y, x]
        down = forward[:, min(y + 1, height - 1), x] - forward[:, y, x]
        lost = gap > 0.01 * (length + back @ back) + 0.5
        seen[y, x] = not lost and not right @ right + down @ down > 0.01 * length + 0.002
    return seen


def test_visibility_is_the_slow_loop() -> None:
    coarse = 2 * noise(2, 2, 4, 5) - 1
    varied, change = interpolate(coarse, (40, 48), mode="bicubic", align_corners=False)
    forward = 4 + 3 * varied  # as steep as the bound on boundaries, here and there
    backward = warp(-forward, -forward) + change
    expected = slow_visible(*(f.double().numpy() for f in (forward, backward)))
    assert 0.2 < expected.mean() < 0.8
    assert (visible(forward, backward).numpy() == expected).all()


def test_warp_error_of_a_known_shift_is_exactly_nothing() -> None:
    source = noise(3, 20, 30)
    first, second = source[:, :, :24], source[:, :, 3:27]
    assert pair_error(first, second, shift(-3, 0), shift(3, 0)) == 0
    assert pair_error(first, second, shift(0, 0), shift(0, 0)) > 0.1


def test_warp_error_is_the_mean_square_of_what_is_visible_in_both() -> None:
    picture, backward = noise(3, 20, 24) * 0.5, shift(0, 0).clone()
    backward[0, 4:9, 10:15] = 5.0
    second = picture.clone()
    second[:, 4:9, 10:15] = 1.0  # hidden: does not count
    assert pair_error(picture, second, shift(0, 0), backward) == 0
    second[0, 0, 0] += 0.25
    counted = 3 * (20 * 24 - 25)
    expected = 0.25**2 / counted
    assert pair_error(picture, second, shift(0, 0), backward) == pytest.approx(expected, rel=1e-5)
    assert math.isnan(pair_error(picture, second, shift(0, 0), shift(9, 9)))


def test_warp_error_follows_the_source_and_not_the_edit() -> None:
    metric = find_metric("warp_error")()
    source = panned(4)
    follows = metric((1 - source) * 0.8, source)
    frozen = metric(source[:1].expand(4, -1, -1, -1), source)
    assert follows < 1e-4
    assert frozen > 20 * follows
    assert metric(source[:1].expand(4, -1, -1, -1), source[:1].expand(4, -1, -1, -1)) == 0


def test_a_remembered_source_is_never_taken_for_another() -> None:
    metric = find_metric("warp_error")()
    sources = [panned(4), panned(4, step=1)]
    edit = noise(4, 3, 64, 96, seed=4)
    find = estimator("dis")

    def slowly(source: Tensor) -> float:
        errors = []
        for t in range(3):
            motion = find(source[t], source[t + 1]), find(source[t + 1], source[t])
            errors.append(pair_error(edit[t], edit[t + 1], *motion))
        return sum(errors) / 3

    expected = [slowly(source) for source in sources]
    assert expected[0] != expected[1]
    for which in (0, 0, 1, 0, 1, 1):
        assert metric(edit, sources[which]) == pytest.approx(expected[which], rel=1e-9)
    reused = sources[0].clone()
    metric(edit, reused)
    reused.copy_(sources[1])
    assert metric(edit, reused) == pytest.approx(expected[1], rel=1e-9)


def test_optical_flow_finds_the_shift() -> None:
    first, second = panned(2)
    inner = estimator("dis")(first, second)[:, 16:-16, 16:-16]
    assert inner[0].median() == pytest.approx(-3, abs=0.1)
    assert inner[1].median() == pytest.approx(0, abs=0.1)
    with pytest.raises(ValueError, match=r"^unknown optical flow 'guess'; known: dis, raft$"):
        estimator("guess")


# flicker


def test_flicker_by_hand() -> None:
    source = torch.full((6, 3, 4, 6), 0.5)
    source[:, :, :, 3:] = noise(6, 1, 1, 1).expand(6, 3, 4, 3)  # moves; half of all pixels
    edit = torch.zeros(6, 3, 4, 6)
    edit[::2] = 0.2  # 51 levels of 255
    edit[:, :, :, 3:] = noise(6, 3, 4, 3, seed=3)
    frames = find_metric("flicker")().frames(edit, source)
    assert frames[:3].isnan().all()
    assert frames[3:].tolist() == pytest.approx([51] * 3, abs=1e-4)
    assert find_metric("flicker")()(edit, source) == pytest.approx(51, abs=1e-4)
    assert find_metric("flicker")()(source[:1].expand(6, -1, -1, -1), source) == 0
    moving = noise(6, 1, 1, 1).expand(6, 3, 4, 6)
    assert math.isnan(find_metric("flicker")()(edit, moving))


def test_flicker_of_a_frame_is_the_streaming_measure_of_the_four_up_to_it() -> None:
    source = (panned(8, 16, 24, step=0) + 0.004 * noise(8, 3, 16, 24)).clamp(0, 1)
    source[4:, :, :8] = noise(4, 3, 8, 24)  # fewer still pixels from there on
    edit = noise(8, 3, 16, 24, seed=5)
    score = find_metric("flicker")().measure(edit, source)
    whole, assembled = StaticFlicker(1), []
    pictures = [
        [(f * 255).round().byte().permute(1, 2, 0).numpy() for f in v] for v in (source, edit)
    ]
    for t in range(8):
        whole.add(pictures[0][t], pictures[1][t])
        window = StaticFlicker(1)
        for k in range(max(0, t - 3), t + 1):
            window.add(pictures[0][k], pictures[1][k])
        assembled.append(math.nan if window.levels[0] is None else window.levels[0])
    assert score.frames is not None
    assert score.frames.tolist() == pytest.approx(assembled, rel=1e-9, nan_ok=True)
    assert score.value == whole.levels[0]
    assert score.frames[3] != pytest.approx(score.value, rel=1e-9)
