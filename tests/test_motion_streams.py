"""Streams of a tiny model whose source moves: a stream is a file, and every promise holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from tests import tiny
from tests.test_engine import edit, embeds, open_stream
from tests.tiny import clip
from torch import Tensor

from stillframe.autoencoders.activity import active
from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.autoencoders.tiny_stream import TinyStream
from stillframe.backbones.wan import WanDenoiser
from stillframe.controls import (
    Box,
    Controls,
    Cuts,
    Gop,
    Guard,
    MaskHeader,
    MaskRecorder,
    Rate,
    Refresh,
    Region,
)
from stillframe.detection.motion import Motion
from stillframe.engine.stream import BlockStats, EditStream, StreamSettings
from stillframe.evaluation.motion_cases import built_motion
from stillframe.methods.prune import InterFramePruning
from stillframe.recovery import recoveries
from stillframe.tokens.grid import Grid

H, W = 64, 96
TOLERANCE = 3.0
MOVES = InterFramePruning()
STANDS = InterFramePruning(motion="off")


def pan(frames: int, name: str = "pan 1") -> Tensor:
    """Video (1, T, 3, H, W) in [0, 1]."""
    case = next(built_motion(frames, H, W, [name]))
    return torch.from_numpy(case.frames).permute(0, 3, 1, 2).unsqueeze(0).float() / 255


class Run(NamedTuple):
    """What came out of a stream."""

    frames: Tensor
    blocks: list[BlockStats]
    stream: EditStream

    @property
    def stalest(self) -> float:
        told = self.stream.staleness.told()
        return 0.0 if told is None else told["max"]


def run(video: Tensor, method: InterFramePruning = MOVES, controls: Controls | None = None) -> Run:
    denoiser, blocks = WanDenoiser(tiny.transformer()), list[BlockStats]()
    stream = EditStream(
        denoiser,
        open_autoencoder(tiny.autoencoder(), 3),
        denoiser.text(embeds()),
        method,
        StreamSettings((0.7,)),
        torch.Generator().manual_seed(0),
        blocks.append,
        controls,
    )
    parts = [stream.push(video), stream.flush()]
    return Run(torch.cat([x for x in parts if x is not None], 1), blocks, stream)


def assert_same(blocks: list[BlockStats], others: list[BlockStats]) -> None:
    """The same masks and the same motion, block by block; that to 1/100 of a pixel."""
    assert len(blocks) == len(others)
    for block, other in zip(blocks, others, strict=True):
        assert torch.equal(block.keep, other.keep)
        assert (block.moved is None) == (other.moved is None)
        if block.moved is not None and other.moved is not None:
            assert torch.equal(block.moved, other.moved)
            # pictures are sampled at other places of their ring
            torch.testing.assert_close(block.motion, other.motion, rtol=0, atol=0.01)


@pytest.mark.parametrize("recovery", recoveries())
def test_a_stream_that_moves_is_a_file_bit_for_bit(recovery: str) -> None:
    """However it is cut, with a last block that is cut short within a latent frame."""
    model, vae, video = tiny.transformer(), tiny.autoencoder(), pan(41)
    method = InterFramePruning(recovery=recovery)
    file = edit(model, vae, method, video)
    assert file.frames.shape == video.shape
    assert all(block.moved_share > 0.4 for block in file.blocks[1:])
    stream = edit(model, vae, method, video.split([1, 3, 7, 13, 17], 1))
    assert torch.equal(stream.frames, file.frames)
    assert_same(stream.blocks, file.blocks)


@pytest.mark.parametrize("count", [13, 15, 22, 26])
@pytest.mark.parametrize("trim", [0, 3])
def test_as_many_frames_come_out_however_a_pan_ends(count: int, trim: int) -> None:
    video = pan(count)
    out = edit(tiny.transformer(), tiny.autoencoder(trim=trim), MOVES, video)
    assert out.frames.shape == video.shape
    assert out.blocks[-1].moved_share > 0


def test_what_stands_still_is_as_without_motion_and_never_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def search(*_: Any) -> None:
        raise AssertionError("a still picture was searched for motion")

    monkeypatch.setattr("stillframe.detection.flow.OpticalFlow.__call__", search)
    video = clip(1, H, W).expand(-1, 48, -1, -1, -1)
    moves, stands = run(video), run(video, STANDS)
    assert torch.equal(moves.frames, stands.frames)
    assert_same(moves.blocks, stands.blocks)


def test_after_a_whole_block_motion_begins_anew() -> None:
    """What was known before it is of no account: from there it goes on as if begun there."""
    video = pan(72)
    through = run(video, controls=Controls(Gop(3)))
    assert [block.kept_share == 1 for block in through.blocks] == [True, False, False] * 2
    begun = run(video[:, 36:])
    assert_same(through.blocks[3:], begun.blocks)


def test_after_a_block_that_lasting_motion_makes_whole_it_goes_on() -> None:
    """That block shows nothing that moved, which is no reason to look away from the next ones."""
    shares = [block.kept_share for block in run(pan(16 * 12)).blocks]
    assert [number for number, share in enumerate(shares) if share == 1] == [0, 12]
    assert max(shares[13:]) < 0.6


def test_behind_a_cut_nothing_comes_from_before_it() -> None:
    old, new = pan(36), 1 - pan(36).flip(3)
    # latents of random weights are not normalised
    through = run(torch.cat([old, new], 1), controls=Controls(Cuts(minimum=0.12)))
    state = through.stream.control_state
    assert state is not None
    assert state.report()["cut_frames"] == [36]
    # the block that the cut is in and the one after it are whole, see `Cuts`
    assert [block.kept_share == 1 for block in through.blocks[3:]] == [True, True, False]
    assert_same(through.blocks[4:], run(new[:, 12:]).blocks)
    assert through.blocks[5].moved_share > 0.4


def test_motion_is_switched_while_a_stream_runs() -> None:
    """No block need be whole for that, and what is reused is within the tolerance throughout."""
    video, blocks = pan(108, "pan 0.1"), list[BlockStats]()
    stream = open_stream(
        tiny.transformer(), open_autoencoder(tiny.autoencoder(), 3), MOVES, on_block=blocks.append
    )
    wanted = ["full", "full", "off", "full", "global", "off", "off", "full", "full"]
    for motion, part in zip(wanted, video.split(12, 1), strict=True):
        stream.update(method=InterFramePruning(motion=motion))
        out = stream.push(part)
        assert out is not None
        assert out.shape == part.shape
    for motion, block in zip(wanted, blocks, strict=True):
        assert (block.moved is not None) <= (motion != "off")
    assert all(block.kept_share < 1 for block in blocks[1:])
    assert blocks[4].moved_share > 0 < blocks[8].moved_share
    told = stream.staleness.told()
    assert told is not None
    assert told["max"] <= TOLERANCE + 0.01


def test_two_videos_in_a_batch_move_by_themselves() -> None:
    model, vae = tiny.transformer(), tiny.autoencoder()
    videos = [pan(48), pan(48, "shake 3").flip(3)]
    prompt = embeds(2)
    both = edit(model, vae, MOVES, torch.cat(videos), prompt=prompt, seed=[7, 8])
    for row, video in enumerate(videos):
        one = edit(model, vae, MOVES, video, prompt=prompt[row : row + 1], seed=[7 + row])
        assert torch.equal(one.masks[0], both.masks[row])
        for block, mine in zip(both.blocks, one.blocks, strict=True):
            if mine.moved is not None and mine.motion is not None:
                assert block.moved is not None
                assert block.motion is not None
                assert torch.equal(block.moved[row], mine.moved[0])
                assert torch.equal(block.motion[row], mine.motion[0])
        torch.testing.assert_close(both.frames[row], one.frames[0], rtol=0, atol=1e-5)


def test_masks_of_a_video_that_moves_make_it_again() -> None:
    video, recorder = pan(60), MaskRecorder()
    first = run(video)
    for block in first.blocks:
        recorder.add(block.keep, block.motion)
    masks = recorder.masks(MaskHeader(3, 4, 6, 16, 4, 60, motion="full"))
    again = run(video, controls=Controls(masks))
    assert_same(again.blocks, first.blocks)
    assert torch.equal(again.frames, first.frames)


def test_given_masks_that_leave_out_everything_show_what_is_nearest() -> None:
    """Nothing is computed: what enters has nowhere to come from, and its staleness says so."""
    video, recorder = pan(48), MaskRecorder()
    for number in range(4):
        recorder.add(torch.full((1, 3, 4, 6), number == 0))
    masks = recorder.masks(MaskHeader(3, 4, 6, 16, 4, 48))
    out = run(video, controls=Controls(masks))
    assert [block.kept for block in out.blocks] == [72, 0, 0, 0]
    assert all(block.moved_share > 0.2 for block in out.blocks[1:])
    stands = run(video, STANDS, Controls(masks))
    assert out.frames.isfinite().all()
    assert out.stalest <= stands.stalest + 0.01


REGION = Box(0.5, 0.25, 0.25, 0.5)


@pytest.mark.parametrize("mode", ["always", "never", "only"])
def test_a_region_is_kept_where_things_move(mode: str) -> None:
    region = Region(REGION, mode)
    out = run(pan(48), controls=Controls(region))
    places = region.places(Grid(3, H // 16, W // 16))
    for block in out.blocks[1:]:
        inside = block.keep[0, :, places]
        if mode == "always":
            assert inside.all()
            assert block.moved is not None
            assert not block.moved[0, :, places].any()
        elif mode == "never":
            assert not inside.any()
        else:
            assert not block.keep[0, :, ~places].any()


def test_a_rate_is_held_where_things_move() -> None:
    out = run(pan(84, "shake 3"), controls=Controls(Rate(kept=0.3)))
    shares = [block.kept_share for block in out.blocks[1:]]
    assert sum(shares) / len(shares) == pytest.approx(0.3, abs=0.02)
    assert any(block.moved_share > 0.4 for block in out.blocks)


def test_a_capped_rate_computes_no_more_than_the_tolerance_asks_for() -> None:
    video = pan(60)
    free = run(video)
    capped = run(video, controls=Controls(Rate(kept=0.9, mode="capped")))
    assert_same(capped.blocks, free.blocks)


def test_all_controls_go_together_with_motion() -> None:
    """And a stream is a file under them."""
    video = torch.cat([pan(65), pan(40, "shake 3").flip(4)], 1)
    controls = Controls(
        Gop(4), Refresh(6), Cuts(), Region(REGION), Guard(0.05), Rate(kept=0.6, mode="capped")
    )
    whole = run(video, controls=controls)
    assert whole.frames.shape == video.shape
    denoiser, blocks = WanDenoiser(tiny.transformer()), list[BlockStats]()
    stream = EditStream(
        denoiser, open_autoencoder(tiny.autoencoder(), 3), denoiser.text(embeds()), MOVES,
        StreamSettings((0.7,)), torch.Generator().manual_seed(0), blocks.append, controls,
    )  # fmt: skip
    parts = [*(stream.push(part) for part in video.split(7, 1)), stream.flush()]
    assert torch.equal(torch.cat([x for x in parts if x is not None], 1), whole.frames)
    assert_same(blocks, whole.blocks)
    assert any(block.moved_share > 0 for block in blocks)


def test_the_less_moves_the_less_often_it_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, looked = Motion.begin, list[object]()

    def counted(self: Motion, *given: Any) -> None:
        looked.append(given)
        begin(self, *given)

    monkeypatch.setattr(Motion, "begin", counted)
    video = clip(1, H, W).repeat(1, 26 * 12, 1, 1, 1)
    random = torch.Generator().manual_seed(0)
    # a corner that flickers is like nothing before it
    video[..., :16, :16] = torch.rand(video[..., :16, :16].shape, generator=random)
    denoiser = WanDenoiser(tiny.transformer())
    vae, text = open_autoencoder(tiny.autoencoder(), 3), denoiser.text(embeds())
    stream = EditStream(denoiser, vae, text, MOVES, StreamSettings((0.7,)))
    numbers = []
    for number, block in enumerate(video.split(12, 1)):
        before = len(looked)
        stream.push(block)
        numbers += [number] * (len(looked) - before)
    assert numbers == [1, 9, 25]


@pytest.mark.parametrize("even", [True, False])
def test_nothing_that_is_shown_was_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, even: bool
) -> None:
    """Pictures that nobody asked the decoder for may be anything, but where new ones meet them."""
    decode, left_out = TinyStream.decode, list[float]()
    limits = (1000.0, 2000.0) if even else (-2.0, -1.0)
    for name, limit in zip(("_EVEN", "_UNEVEN"), limits, strict=True):
        monkeypatch.setattr(f"stillframe.engine.results.{name}", limit)

    def whole(self: TinyStream, latents: Tensor, changed: Tensor | None = None) -> Tensor:
        return decode(self, latents)

    def noisy(self: TinyStream, latents: Tensor, changed: Tensor | None = None) -> Tensor:
        frames = decode(self, latents)
        if changed is None:
            return frames
        seen = active(active(changed))
        left_out.append(float((~changed).float().mean()))
        spatial, times = self.timeline.spatial, self.timeline.temporal
        seen = seen.repeat_interleave(spatial, 2).repeat_interleave(spatial, 3)
        seen = seen.repeat_interleave(times, 1).unsqueeze(2)[:, : frames.shape[1]]
        return torch.where(seen, frames, torch.rand_like(frames))

    video = pan(72)
    monkeypatch.setattr(TinyStream, "decode", whole)
    expected = run(video)
    monkeypatch.setattr(TinyStream, "decode", noisy)
    shown = run(video)
    assert all(block.moved_share > 0.4 for block in shown.blocks[1:])
    assert even or min(left_out) > 0.1
    torch.testing.assert_close(shown.frames, expected.frames, rtol=0, atol=1e-6)
