"""The tiny autoencoder that computes what changed, against itself dense and against a slow one."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from tests.incremental import Products, SlowAutoencoder
from torch import Tensor, nn

from stillframe.autoencoders import tiny_program
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.autoencoders.tiny_incremental import IncrementalDecoder, IncrementalEncoder
from stillframe.autoencoders.tiny_stream import TinyStream

BUNDLED = {
    "patch_size": 8,
    "spatial_stages": 0,
    "encoder_channels": 8,
    "decoder_channels": (12, 10, 8, 6),
    "refine_channels": 5,
    "frames_to_trim": 0,
}
PUBLISHED = {"encoder_channels": 6, "decoder_channels": (12, 8, 6, 4)}
BETWEEN = {
    "patch_size": 2,
    "spatial_stages": 2,
    "encoder_channels": 4,
    "decoder_channels": (8, 6, 4, 4),
    "refine_channels": 3,
    "latents_mean": [0.1, -0.2, 0.3],
    "latents_std": [0.5, 0.4, 1.5],
    "frames_to_trim": 0,
}
WAN22 = {**PUBLISHED, "patch_size": 2}
KINDS: dict[str, dict[str, Any]] = {
    "bundled": BUNDLED,
    "published": PUBLISHED,
    "between": BETWEEN,
    "trimming": {**BETWEEN, "frames_to_trim": 3},
}


@pytest.fixture(autouse=True)
def _partial_whatever_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    for coder in (IncrementalEncoder, IncrementalDecoder):
        monkeypatch.setattr(coder, "dense_from", (2.0, 2.0))
    monkeypatch.setattr(tiny_program, "WIDE", 0)


kinds = pytest.mark.parametrize("kind", KINDS)


def autoencoder(kind: str) -> TinyVideoAutoencoder:
    torch.manual_seed(0)
    known = {**KINDS, "wan 2.2": WAN22}
    vae = TinyVideoAutoencoder(latent_channels=3, **known[kind])
    for module in vae.modules():
        # the usual initialisation would let the picture fade in favour of the biases
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return vae.eval().requires_grad_(False)


def source(stream: TinyStream, batch: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Frames and latents of a block."""
    factor, count = stream.timeline.spatial, stream.timeline.block_frames
    frames = torch.rand(batch, 4 * count, 3, h * factor, w * factor)
    return frames, torch.randn(batch, 3, count, h, w)


def cells(share: float, *shape: int) -> Tensor:
    return torch.rand(shape) < share


def equal(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    scale = max(1.0, expected.std().item())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
@pytest.mark.parametrize(("batch", "count"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("wide", [0, 1000], ids=["by tiles", "by rows"])
@kinds
def test_what_is_active_is_as_slow_layers_have_it(
    kind: str, wide: int, batch: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense and partial blocks in any order, some with nothing active, or everything."""
    monkeypatch.setattr(tiny_program, "WIDE", wide)
    stream = TinyStream(autoencoder(kind), count)
    for block in slow_blocks(kind, batch, count):
        equal(stream.encode_block(block.frames, block.asked), block.encoded)
        equal(stream.decode(block.latents, block.asked), block.pictures)


class Block(NamedTuple):
    """What goes into a block, where it is active, and what slow layers make of it."""

    frames: Tensor
    latents: Tensor
    asked: Tensor | None
    encoded: Tensor
    pictures: Tensor


@cache
def slow_blocks(kind: str, batch: int, count: int) -> list[Block]:
    """The same for all ways of computing the parts, which are not asked how."""
    h, w = 5, 7
    vae = autoencoder(kind)
    stream, slow = TinyStream(vae, count), SlowAutoencoder(vae)
    found: list[Block] = []
    for share in [None, 0.05, 0.2, None, None, 0.05, 0.0, 0.1, 0.9, 0.03, 1.0, 0.05]:
        frames, latents = source(stream, batch, h, w)
        asked = None if share is None else cells(share, batch, count, h, w)
        pictures = slow.decode(latents, asked)
        if not found:
            pictures = pictures[:, stream.timeline.trim :]
        found.append(Block(frames, latents, asked, slow.encode(frames, asked), pictures))
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", [*KINDS, "wan 2.2"])
def test_everything_active_is_dense_whatever_was_before(kind: str) -> None:
    vae = autoencoder(kind)
    stream, whole = TinyStream(vae, 3), TinyStream(vae, 3)
    everything = cells(2.0, 2, 3, 4, 6)
    some = cells(0.1, 2, 3, 4, 6)
    # what was left out is forgotten after as many latent frames as memory blocks look back
    order = [None, everything, some, some, *[everything] * 4, everything, None, some, everything]
    for number, asked in enumerate(order):
        frames, latents = source(stream, 2, 4, 6)
        encoded, decoded = stream.encode_block(frames, asked), stream.decode(latents, asked)
        expected = whole.encode_block(frames), whole.decode(latents)
        if number < 2 or 8 <= number < 10:
            equal(encoded, expected[0])
            equal(decoded, expected[1])


@torch.no_grad()
@kinds
def test_with_nothing_active_nothing_is_computed_and_all_stays(kind: str) -> None:
    stream = TinyStream(autoencoder(kind), 2)
    frames, latents = source(stream, 2, 4, 6)
    stream.encode_block(frames)
    stream.decode(latents)
    for before in (cells(0.1, 2, 2, 4, 6), None):
        frames, latents = source(stream, 2, 4, 6)
        encoded, decoded = stream.encode_block(frames, before), stream.decode(latents, before)
        for _ in range(3):
            frames, latents = source(stream, 2, 4, 6)
            nothing = cells(0.0, 2, 2, 4, 6)
            with Products() as products:
                again = stream.encode_block(frames, nothing)
                shown = stream.decode(latents, nothing)
            assert products.count == 0
            assert torch.equal(again, encoded[:, :, -1:].expand_as(again))
            assert torch.equal(shown, decoded[:, -4:].repeat(1, 2, 1, 1, 1))
            shown += 5  # whoever gets it may write to it
            again += 5


@torch.no_grad()
@kinds
def test_videos_of_a_batch_have_their_own_cells(kind: str) -> None:
    vae = autoencoder(kind)
    both, each = TinyStream(vae, 2), [TinyStream(vae, 2) for _ in range(2)]
    for number in range(4):
        frames, latents = source(both, 2, 4, 6)
        asked = cells(0.1, 2, 2, 4, 6) if number else None
        rows = [None if asked is None else asked[i : i + 1] for i in range(2)]
        encoded, decoded = both.encode_block(frames, asked), both.decode(latents, asked)
        for i, (stream, row) in enumerate(zip(each, rows, strict=True)):
            equal(stream.encode_block(frames[i : i + 1], row), encoded[i : i + 1])
            equal(stream.decode(latents[i : i + 1], row), decoded[i : i + 1])


@torch.no_grad()
def test_a_copy_that_is_reset_is_fresh_and_leaves_the_other_alone() -> None:
    vae = autoencoder("bundled")
    stream, fresh, undisturbed = (TinyStream(vae, 2) for _ in range(3))
    other: TinyStream | None = None
    for number in range(4):
        frames, latents = source(stream, 1, 4, 6)
        asked = cells(0.1, 1, 2, 4, 6) if number else None
        if number == 2:
            other = copy.copy(stream)
            other.reset()
        got = stream.encode_block(frames, asked), stream.decode(latents, asked)
        equal(got[0], undisturbed.encode_block(frames, asked))
        equal(got[1], undisturbed.decode(latents, asked))
        if other is not None:
            first = None if number == 2 else asked
            equal(other.encode_block(frames, asked), fresh.encode_block(frames, first))
            equal(other.decode(latents, asked), fresh.decode(latents, first))


@torch.no_grad()
def test_above_a_share_everything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    vae = autoencoder("between")
    stream, whole = TinyStream(vae, 2), TinyStream(vae, 2)
    for number in range(3):
        frames, latents = source(stream, 1, 9, 9)
        asked = torch.zeros(1, 2, 9, 9, dtype=torch.bool)
        asked[..., 1:8, 1 + (number == 2) : 8] = True  # grown by one all of it, or nearly
        equal(stream.encode_block(frames, asked), whole.encode_block(frames))
        equal(stream.decode(latents, asked), whole.decode(latents))


@torch.no_grad()
def test_who_never_asks_for_parts_keeps_no_layers() -> None:
    stream = TinyStream(autoencoder("bundled"), 2)
    for _ in range(3):
        frames, latents = source(stream, 1, 4, 6)
        stream.encode_block(frames)
        stream.decode(latents)
    assert not any(coder._layers or coder._maps for coder in coders(stream))
    for asked in (cells(0.1, 1, 2, 4, 6), None):
        stream.encode_block(frames, asked)
        stream.decode(latents, asked)
    assert all(coder._layers for coder in coders(stream))


def coders(stream: TinyStream) -> list[Any]:
    return [stream._encoder, stream._decoder]


def drift(blocks: int) -> tuple[Tensor, Tensor]:
    """Errors of encoding and decoding within what changed, block by block.

    A patch of texture goes round on a still ground, once in ten blocks; what changed is where it is
    and where it was.
    """
    vae = autoencoder("between")
    stream, whole = TinyStream(vae, 1), TinyStream(vae, 1)
    h, w, side = 8, 12, 3
    ground, texture = source(stream, 1, h, w), source(stream, 1, side, side)
    factor, before = stream.timeline.spatial, torch.zeros(1, 1, h, w, dtype=torch.bool)
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number in range(blocks):
        top, left = abs(number % 10 - 5), number % 10 - number % 10 // 9 * 9
        frames, latents = (x.clone() for x in ground)
        here = torch.zeros_like(before)
        here[..., top : top + side, left : left + side] = True
        latents[..., top : top + side, left : left + side] = texture[1]
        finer = [slice(x * factor, (x + side) * factor) for x in (top, left)]
        frames[..., finer[0], finer[1]] = texture[0]
        asked, before = here | before, here
        pairs = (
            (stream.encode_block(frames, asked), whole.encode_block(frames)),
            (stream.decode(latents, asked), whole.decode(latents)),
        )
        for errors, (got, expected) in zip(found, pairs, strict=True):
            difference = (got - expected).abs()
            scale = difference.shape[-1] // w
            inside = asked.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
            errors.append(difference[inside.expand_as(difference)].mean())
    return torch.stack(found[0]), torch.stack(found[1])


def steady(blocks: int) -> None:
    """After a few rounds every round is like the one before, and none worse than the second."""
    for errors in drift(blocks):
        rounds = errors.view(-1, 10)
        assert 0 < rounds[-1].mean() <= 1.02 * rounds[1].mean()
        torch.testing.assert_close(rounds[-1], rounds[blocks // 20], rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_errors_do_not_grow_over_a_hundred_blocks() -> None:
    steady(100)


@torch.no_grad()
@pytest.mark.slow
def test_errors_do_not_grow_over_a_thousand_blocks() -> None:
    steady(1000)
