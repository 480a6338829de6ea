"""Scene cuts: found where they are, and nothing of the old scene goes on behind one."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from tests.test_control import Run, columns, scene
from torch import Tensor

from stillframe.controls import Controls, Cuts, Gop, Refresh
from stillframe.controls.cuts import CutDetector
from stillframe.methods import find_method
from stillframe.methods.prune import InterFramePruning

CUTS = Controls(Cuts())


def found(control: Controls, latents: Tensor) -> list[int]:
    """Latent frames with which scenes begin, as a detector of its own sees them."""
    cuts = control.find(Cuts)
    assert cuts is not None
    detector, frames = CutDetector(cuts), []
    for number, block in enumerate(latents.split(3, 2)):
        tokens = block.permute(0, 2, 3, 4, 1).flatten(2, 3)
        frames += [3 * number + j for j in detector(tokens).begun]
    return frames


def concatenation(seed: int, shots: int, drift: float) -> tuple[Tensor, list[int]]:
    """Scenes of 4 to 14 frames one after the other, and the frames with which they begin."""
    lengths = [random.Random(seed + i).randint(4, 14) for i in range(shots)]
    video = torch.cat([scene(100 * seed + i, n, drift) for i, n in enumerate(lengths)], 2)
    return video[:, :, : video.shape[2] // 3 * 3], [sum(lengths[:i]) for i in range(1, shots)]


@pytest.mark.parametrize("drift", [0.0, 0.02, 0.3])
def test_cuts_are_found_where_they_are_and_nowhere_else(drift: float) -> None:
    video, begun = concatenation(1, 12, drift)
    assert found(CUTS, video) == [t for t in begun if t < video.shape[2]]


def test_motion_that_leaves_a_part_alone_is_no_cut() -> None:
    """However strong it is and however suddenly it begins, as long as half of the scene is calm."""
    half = scene(0, 30)
    moving = half[:, :, 12:, :, half.shape[4] // 2 :]
    moving.copy_(torch.randn(moving.shape))
    assert found(CUTS, half) == []
    assert found(CUTS, scene(0, 30, drift=0.0)) == []


def test_a_mixed_frame_and_the_scene_after_it_are_one_cut() -> None:
    old, new = scene(1, 7), scene(2, 11)
    video = torch.cat([old, (old[:, :, -1:] + new[:, :, :1]) / 2, new[:, :, 1:]], 2)
    assert found(CUTS, video) == [7]


def test_a_scene_in_constant_motion_is_no_series_of_cuts() -> None:
    """The first frames after a cut set the scene's own pace."""
    restless = torch.randn(1, 4, 30, 8, 12)
    video = torch.cat([scene(0, 9), restless], 2)
    assert found(CUTS, video) == [9]


def test_a_batch_cuts_where_any_of_its_videos_does() -> None:
    one, two = scene(0, 12), torch.cat([scene(1, 5), scene(2, 7)], 2)
    assert found(CUTS, torch.cat([one, two])) == [5]
    run = Run(CUTS, batch=2)
    run.stream._generator = None
    run.feed(torch.cat([one, two]))
    # the block with the end of a scene in it must not be what the next one begins from
    assert run.shares == [1, 1, 1, 0]


@pytest.mark.parametrize("at", [6, 7, 8])
@pytest.mark.parametrize("recovery", ["aligned", "clean", "none"])
def test_nothing_of_the_old_scene_survives_a_cut(at: int, recovery: str) -> None:
    """Two streams that differ in all before the cut are equal from the first block on that holds
    nothing else; without the control they are not."""
    method = InterFramePruning(recovery=recovery)
    new = scene(9, 24 - at, drift=0.05)
    clean = -(-at // 3) * 3
    ends = {}
    for control in (CUTS, None):
        runs = [Run(control, method) for _ in range(2)]
        for run, old in zip(runs, (1, 2), strict=True):
            run.feed(torch.cat([scene(old, at), new], 2))
        ends[control] = [torch.cat(run.coder.result, 2)[:, :, clean:] for run in runs]
        shares = [run.shares[clean // 3 + 1 :] for run in runs]
        assert control is None or (shares[0] == shares[1] and max(shares[0]) < 1)
    assert torch.equal(*ends[CUTS])
    assert not torch.equal(*ends[None])


def test_a_stream_behind_a_cut_is_a_new_stream() -> None:
    """But for the noise, whose generator goes on; with one prepared to be there, it is equal."""
    new = scene(9, 12, drift=0.05)
    cut, fresh = Run(CUTS, InterFramePruning()), Run(None, InterFramePruning())
    cut.feed(torch.cat([scene(1, 6), new], 2))
    generator = fresh.stream._generator
    assert isinstance(generator, torch.Generator)
    for _ in range(2):
        torch.randn(new[:, :, :3].shape, generator=generator)
    assert torch.equal(torch.cat(cut.coder.result, 2)[:, :, 6:], fresh.feed(new))


def test_controls_of_regular_distance_go_on_behind_a_cut() -> None:
    control = Controls(Gop(3), Refresh(4), Cuts())
    run = Run(control)
    run.feed(torch.cat([scene(1, 6), scene(2, 24)], 2))
    assert [t for t, share in enumerate(run.shares) if share == 1] == [0, 2, 5, 8]
    done = columns(run)
    assert all(bool(a.any()) for a in done)
    assert all(bool(done[t : t + 4].any(0).all()) for t in range(len(done) - 3))
    assert run.stream.control_state is not None
    report = run.stream.control_state.report()
    assert report["cut_frames"] == [24]
    assert report["whole_blocks"] == 3


def test_cuts_reach_a_stream_in_which_nothing_is_pruned() -> None:
    """The edit that a pruned one is compared to forgets what that forgets."""
    asked = Controls(Gop(2), Refresh(4), Cuts())
    full = find_method("full")()
    new = scene(9, 9)
    ends = []
    for old in (1, 2):
        run = Run(asked.unpruned, full)
        ends.append(run.feed(torch.cat([scene(old, 6), new], 2))[:, :, 6:])
    assert torch.equal(*ends)


def test_distances_of_a_block_do_not_depend_on_blocks() -> None:
    """One frame a block or three: the same cuts."""
    video, begun = concatenation(3, 6, 0.02)
    detector, frames = CutDetector(Cuts()), []
    for t in range(video.shape[2]):
        tokens = video[:, :, t : t + 1].permute(0, 2, 3, 4, 1).flatten(2, 3)
        frames += [t for _ in detector(tokens).begun]
    assert frames == found(CUTS, video) == [t for t in begun if t < video.shape[2]]
    assert all(b - a > 3 for a, b in pairwise(begun))
