"""Run-length tokenisation: pixels of the right frames, patch by patch, however they are fed."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests import tiny
from tests.test_control import Run
from tests.test_engine import Recorder, edit, open_stream
from tests.tiny import clip
from torch import Tensor

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.autoencoders.timeline import Timeline
from stillframe.controls import Controls, Guard, Rate
from stillframe.controls.guard import Watch
from stillframe.detection.frames import PixelBlocks
from stillframe.engine.stream import BlockStats
from stillframe.methods.prune import InterFramePruning
from stillframe.methods.runlength import RunLengthTokenisation, tubelet_distance
from stillframe.tokens.grid import Grid
from stillframe.tokens.source import SourceBlock


def tubelets(video: Tensor, first: int) -> list[Tensor]:
    """Pixel frames of each latent frame, ``first`` for the first one; the last one's repeated."""
    pad = -(video.shape[1] - first) % 4
    video = torch.cat([video, video[:, -1:].expand(-1, pad, -1, -1, -1)], 1)
    return [video[:, :first], *video[:, first:].split(4, 1)]


def by_definition(video: Tensor, first: int, threshold: float) -> Tensor:
    """Keep masks (B, F-1, h, w) of all latent frames but the first, patch by patch."""
    parts, masks = tubelets(video, first), []
    for before, now in pairwise(parts):
        height, width = now.shape[-2] // 16, now.shape[-1] // 16
        mask = torch.zeros(len(video), height, width, dtype=torch.bool)
        for row in range(len(video)):
            for i in range(height):
                for j in range(width):
                    area = row, slice(None), slice(16 * i, 16 * i + 16), slice(16 * j, 16 * j + 16)
                    difference = now[:, -1][area] - before[:, 0][area]
                    mask[row, i, j] = difference.abs().mean() >= threshold
        masks.append(mask)
    return torch.stack(masks, 1)


@pytest.mark.parametrize(
    ("kind", "first", "count"), [("tiny", 4, 41), ("trimming", 1, 45), ("wan", 1, 30)]
)
def test_a_stream_drops_what_the_definition_calls_static(
    transformer: Any, kind: str, first: int, count: int
) -> None:
    """However the frames come, and whatever the first latent frame stands for."""
    vae: Any = {
        "tiny": tiny.autoencoder,
        "trimming": lambda: tiny.autoencoder(trim=3),
        "wan": tiny.wan_autoencoder,
    }[kind]()
    video = torch.cat([clip(count, seed=1), clip(count, seed=2)])
    method = RunLengthTokenisation(threshold=0.05)
    file = edit(transformer, vae, method, video, seed=[0, 1])
    wanted = by_definition(video, first, 0.05)
    wanted = torch.cat([wanted, wanted[:, -1:].expand(-1, 3, -1, -1) & False], 1)
    got = file.masks[:, 3:]
    assert 0.02 < got.float().mean() < 0.5
    assert torch.equal(got, wanted[:, 2 : 2 + got.shape[1]])
    assert file.masks[:, :3].all()
    cuts = sorted(random.Random(1).choices(range(count), k=5))
    for chunks in (video.split(1, 1), video.tensor_split(cuts, 1)):
        stream = edit(transformer, vae, method, chunks, seed=[0, 1])
        assert torch.equal(stream.masks, file.masks)
        assert torch.equal(stream.frames, file.frames)


def test_distances_are_means_over_the_pixels_of_a_token() -> None:
    pixels = torch.rand(2, 8, 3, 4, 6)
    tokens = torch.zeros(2, 1, 6, 8)
    source = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], Grid(1, 2, 3), pixels)
    got = tubelet_distance(source)
    assert got.shape == (2, 1, 2, 3)
    patch = (pixels[1, 7] - pixels[1, 0])[:, 2:4, 4:6]
    torch.testing.assert_close(got[1, 0, 1, 2], patch.abs().mean())
    # not a word about a later frame
    later = source._replace(grid=Grid(2, 2, 3), pixels=torch.cat([pixels, pixels[:, :4] + 1], 1))
    assert torch.equal(tubelet_distance(later)[:, :1], got)


@pytest.mark.parametrize("first", [9, 10, 12])
def test_blocks_of_pixels_have_the_frames_of_their_latents(first: int) -> None:
    video = torch.arange(50.0).view(1, -1, 1, 1, 1).expand(-1, -1, 3, 2, 2)
    for chunks in (video.split(1, 1), [video], video.split(7, 1)):
        blocks = PixelBlocks(Timeline(block_frames=3, trim=12 - first))
        for chunk in chunks:
            blocks.add(chunk)
        taken = [blocks.take()[0, :, 0, 0, 0].int().tolist() for _ in range(5)]
        short = 12 - first
        assert taken[0] == [0] * (4 + short) + list(range(first))
        assert taken[1] == list(range(first - 4, first + 12))
        assert taken[3] == list(range(first + 20, first + 36))
        start = first + 36
        end = [*range(start, 50), *[49] * (start + 12 - 50)]
        assert taken[4] == [*range(start - 4, start), *end]
        # an autoencoder that trims may need one block more than there are frames
        assert blocks.take()[0, -12:, 0, 0, 0].int().tolist() == [49] * 12


def test_latents_without_frames_are_refused_in_a_sentence(
    transformer: Any, autoencoder: Any
) -> None:
    stream = open_stream(transformer, open_autoencoder(autoencoder, 3), RunLengthTokenisation())
    with pytest.raises(ValueError, match="'runlength' looks at source frames: push them"):
        stream.edit_block(torch.zeros(1, 4, 3, 8, 8))
    tokens = torch.zeros(1, 1, 6, 8)
    source = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], Grid(1, 2, 3))
    with pytest.raises(ValueError, match="needs source frames"):
        RunLengthTokenisation().selector()(source)
    with pytest.raises(ValueError, match="threshold must not be negative, got -1"):
        RunLengthTokenisation(threshold=-1)


@pytest.mark.parametrize("ahead", [0, 1, 11])
def test_a_stream_can_change_to_it_and_back(transformer: Any, autoencoder: Any, ahead: int) -> None:
    """The block at the change is whole, as its frames may have come before; the next is judged."""
    blocks: list[BlockStats] = []
    vae = Recorder(autoencoder)
    stream = open_stream(transformer, vae, InterFramePruning(), on_block=blocks.append)
    video = clip(84)
    stream.push(video[:, : 24 + ahead])
    stream.update(method=RunLengthTokenisation(threshold=0.05))
    stream.push(video[:, 24 + ahead : 60])
    stream.update(method=InterFramePruning(recovery="none"))
    stream.push(video[:, 60:])
    assert blocks[2].kept_share == 1
    wanted = by_definition(video[:, :60], 4, 0.05)
    for number in (3, 4):
        got = blocks[number].keep[0]
        # of the latent frame before the first one, only what came after the change is known
        known = 1 if number == 3 and ahead > 8 else 0
        assert torch.equal(got[known:], wanted[0, 3 * number - 1 + known : 3 * number + 2])
        assert 0 < blocks[number].kept_share < 1
    assert 0 < blocks[5].kept_share < 1


@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_what_scores_above_one_is_what_is_kept(threshold: float) -> None:
    generator = torch.Generator().manual_seed(4)
    pixels = torch.rand(1, 8, 3, 64, 96, generator=generator)
    # patches differ by more and more, and the first by nothing
    pixels[:, 4:] = pixels[:, :4].mean(1, keepdim=True)
    pixels[:, :4] = pixels[:, 4:] + torch.linspace(0, 0.2, 96)
    pixels[..., :16] = 0.5
    tokens = torch.zeros(1, 1, 24, 8)
    source = SourceBlock(tokens, tokens[:, 0], tokens[:, 0], Grid(1, 4, 6), pixels)
    method = RunLengthTokenisation(threshold=threshold)
    score, keep = method.score()(source), method.selector()(source)
    assert torch.equal(score > 1, keep)
    assert keep.all() if threshold == 0 else 0 < keep.float().mean() < 1
    assert torch.equal(score.argsort(stable=True), tubelet_distance(source).argsort(stable=True))
    lenient = method.selector()(source._replace(leniency=2.0))
    assert torch.equal(lenient, score > 2) or threshold == 0


def test_a_rate_and_a_guard_take_it() -> None:
    def run(control: Controls) -> tuple[Any, list[BlockStats]]:
        made = Run(control, RunLengthTokenisation(threshold=0.05))
        made.stream.push(clip(84))
        return made.stream.control_state, made.blocks

    _, blocks = run(Controls(Rate(kept=0.25)))
    shares = [block.kept_share for block in blocks[2:]]
    assert sum(shares) / len(shares) == pytest.approx(0.25, abs=0.03)
    (strict, more), (loose, fewer) = (
        run(Controls(Guard(0.2, target=target))) for target in (1e-6, 1e3)
    )
    assert strict.find(Watch).factor < 1 < loose.find(Watch).factor
    assert sum(block.kept for block in more) > sum(block.kept for block in fewer)
