"""Streams through autoencoders: chunking never shows, and as many frames come out as went in."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests import tiny
from tests.incremental import Products
from torch import Tensor, nn

from stillframe.autoencoders import tiny_incremental, tiny_stream
from stillframe.autoencoders.streaming import (
    StreamingAutoencoder,
    TinyStream,
    WanStream,
    open_autoencoder,
)
from stillframe.errors import ModelError

MODELS: dict[str, Callable[[], nn.Module]] = {
    "tiny": tiny.autoencoder,
    "trimming": lambda: tiny.autoencoder(trim=3),
    "wan": tiny.wan_autoencoder,
}
HEIGHT, WIDTH = 16, 24

kinds = pytest.mark.parametrize("kind", MODELS)


def roundtrip(stream: StreamingAutoencoder, chunks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """All latents and all decoded frames of a stream fed with ``chunks``, then flushed."""
    latents, frames = [], []
    with torch.no_grad():
        for chunk in chunks:
            for block in stream.encode(chunk):
                latents.append(block)
                frames.append(stream.decode(block))
        for block in stream.flush():
            latents.append(block)
            frames.append(stream.decode(block))
    assert all(x.shape[2] == stream.timeline.block_frames for x in latents)
    return torch.cat(latents, 2), torch.cat(frames, 1)


def chunkings(video: Tensor) -> list[list[Tensor]]:
    """One frame at a time, and at random."""
    count, rng = video.shape[1], random.Random(video.shape[1])
    cuts = sorted(rng.choices(range(count + 1), k=4))
    return [list(video.split(1, 1)), list(video.tensor_split(cuts, 1))]


@pytest.mark.parametrize("block_frames", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 11, 12, 13, 25])
@kinds
def test_chunking_never_shows_and_no_frame_is_lost(
    kind: str, count: int, block_frames: int
) -> None:
    model = MODELS[kind]()
    video = torch.rand(2, count, 3, HEIGHT, WIDTH)
    stream = open_autoencoder(model, block_frames)
    latents, frames = roundtrip(stream, [video])
    assert frames.shape == video.shape
    assert 0 <= frames.min() < frames.max() <= 1
    for chunks in chunkings(video):
        stream.reset()
        for got, expected in zip(roundtrip(stream, chunks), (latents, frames), strict=True):
            assert torch.equal(got, expected)


@torch.no_grad()
@pytest.mark.parametrize("block_frames", [1, 2, 3])
def test_the_tiny_stream_is_the_module_at_once(block_frames: int) -> None:
    vae = tiny.autoencoder(trim=3)
    video = torch.rand(2, 24, 3, HEIGHT, WIDTH)
    stream = TinyStream(vae, block_frames)
    blocks = stream.encode(video)
    latents = torch.cat(blocks, 2)
    torch.testing.assert_close(latents, vae.encode(video), rtol=0, atol=1e-4)
    frames = torch.cat([stream.decode(block) for block in blocks], 1)
    torch.testing.assert_close(frames, vae.decode(latents), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tiny", "trimming"])
def test_where_nothing_changes_nothing_is_coded_and_nothing_shows(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Still, then moving, then still: as an autoencoder without a memory of its answers has it."""
    still = torch.rand(1, 1, 3, HEIGHT, WIDTH).expand(-1, 144, -1, -1, -1)
    video = torch.cat([still, torch.rand(1, 12, 3, HEIGHT, WIDTH), still], 1)
    model: Any = MODELS[kind]()
    with Products() as fewer:
        got = roundtrip(open_autoencoder(model, 3), [video])
    with monkeypatch.context() as patch, Products() as all_of_them:
        patch.setattr(tiny_incremental, "_same", lambda *_: False)
        expected = roundtrip(open_autoencoder(model, 3), [video])
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert fewer.count < 0.7 * all_of_them.count
    # what goes in may be a buffer that is filled anew: the next block is not the last one
    buffer, stream = still[:, :12].clone(), open_autoencoder(model, 3)
    with torch.no_grad():
        for _ in range(8):
            before = stream.encode(buffer)[0]
        buffer.copy_(torch.rand_like(buffer))
        assert not torch.equal(stream.encode(buffer)[0], before)
    # a frame that is written to does not come back changed
    stream = open_autoencoder(model, 3)
    with torch.no_grad():
        for _ in range(8):
            for block in stream.encode(still[:, :12]):
                last = stream.decode(block)
                assert last.max() <= 1
                last += 5


@pytest.mark.parametrize("at_once", [1, 2 * 4 * HEIGHT * WIDTH, 10**9])
@pytest.mark.parametrize("kind", ["tiny", "trimming"])
def test_large_frames_are_coded_in_pieces_that_do_not_show(
    kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = MODELS[kind]()
    video = torch.rand(1, 24, 3, HEIGHT, WIDTH)
    expected = roundtrip(open_autoencoder(model, 3), [video])
    monkeypatch.setattr(tiny_stream, "_PIXELS_AT_ONCE", at_once)
    calls: list[int] = []
    encode_chunk = model.encode_chunk

    def counted(frames: Tensor, *rest: Any) -> Any:
        calls.append(frames.shape[1])
        return encode_chunk(frames, *rest)

    monkeypatch.setattr(model, "encode_chunk", counted)
    got = roundtrip(open_autoencoder(model, 3), [video])
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    # of a first block, what parts of the next would need is kept: its last latent frame is alone
    first = {1: [4, 4, 4]}.get(at_once, [8, 4])
    later = {1: [4, 4, 4], 10**9: [12]}.get(at_once, [8, 4])
    # where the decoder trims, the last frames take a block more
    assert calls == first + later * (1 if kind == "tiny" else 2)


@pytest.mark.parametrize("block_frames", [1, 2, 3])
def test_the_wan_stream_is_the_stock_autoencoder_at_once(block_frames: int) -> None:
    """Encoding is the mode of the posterior, normalised as Wan's pipelines do."""
    vae = tiny.wan_autoencoder()
    video = torch.rand(2, 21, 3, HEIGHT, WIDTH)
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1)
        for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    posterior = vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist
    stream = WanStream(vae, block_frames)
    blocks = stream.encode(video)
    latents = torch.cat(blocks, 2)
    assert latents.shape[2] == 6
    torch.testing.assert_close(latents, (posterior.mode() - mean) / std, rtol=0, atol=1e-5)
    expected = (vae.decode(latents * std + mean).sample.transpose(1, 2) + 1) / 2
    frames = torch.cat([stream.decode(block) for block in blocks], 1)
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_stock_autoencoder_can_be_used_between_blocks_of_a_stream() -> None:
    """A stream has feature caches of its own, and so has a second stream on the same weights."""
    vae = tiny.wan_autoencoder()
    video = torch.rand(1, 21, 3, HEIGHT, WIDTH)
    expected = roundtrip(WanStream(vae, 3), [video])
    stream, other = WanStream(vae, 3), WanStream(vae, 2)
    blocks = []
    for chunk in video.split(3, 1):
        blocks += stream.encode(chunk)
        other.encode(torch.rand(1, 2, 3, HEIGHT, WIDTH))
        vae.encode(torch.rand(1, 3, 5, HEIGHT, WIDTH))
    frames = []
    for block in blocks:
        frames.append(stream.decode(block))
        vae.decode(torch.rand(1, 4, 2, 2, 3))
    assert torch.equal(torch.cat(blocks, 2), expected[0])
    assert torch.equal(torch.cat(frames, 1), expected[1])


@torch.no_grad()
@kinds
def test_completing_the_last_block_repeats_its_last_frame(kind: str) -> None:
    stream = open_autoencoder(MODELS[kind](), 3)
    video = torch.rand(1, 14, 3, HEIGHT, WIDTH)
    latents, frames = roundtrip(stream, [video])
    longer = torch.cat([video, video[:, -1:].expand(-1, 40, -1, -1, -1)], 1)
    stream.reset()
    more_latents, more_frames = roundtrip(stream, [longer])
    assert torch.equal(latents, more_latents[:, :, : latents.shape[2]])
    assert torch.equal(frames, more_frames[:, :14])


@kinds
def test_blocks_come_as_soon_as_they_are_full(kind: str) -> None:
    stream = open_autoencoder(MODELS[kind](), 3)
    given = 0
    with torch.no_grad():
        for block in range(3):
            need = stream.next_frames
            assert need == (9 if kind == "wan" and block == 0 else 12)
            assert stream.encode(torch.rand(1, need - 1, 3, HEIGHT, WIDTH)) == []
            assert stream.pending_frames == need - 1
            assert len(stream.encode(torch.rand(1, 1, 3, HEIGHT, WIDTH))) == 1
            assert stream.pending_frames == 0
            given += need
        assert (len(stream.flush()) > 0) == (kind == "trimming")


@kinds
def test_after_flush_a_stream_is_over_until_reset(kind: str) -> None:
    stream = open_autoencoder(MODELS[kind](), 1)
    video = torch.rand(1, 2, 3, HEIGHT, WIDTH)
    first = roundtrip(stream, [video])
    assert stream.flush() == []
    with pytest.raises(ValueError, match="flushed; reset it first"):
        stream.encode(video)
    stream.reset()
    assert all(map(torch.equal, roundtrip(stream, [video]), first))


@kinds
def test_an_empty_stream_gives_nothing(kind: str) -> None:
    stream = open_autoencoder(MODELS[kind](), 3)
    assert stream.flush() == []
    stream.reset()
    assert stream.encode(torch.rand(1, 0, 3, HEIGHT, WIDTH)) == []
    assert stream.flush() == []


@kinds
def test_pushing_no_frames_changes_nothing(kind: str) -> None:
    model, video = MODELS[kind](), torch.rand(1, 5, 3, HEIGHT, WIDTH)
    none = video[:, :0]
    expected = roundtrip(open_autoencoder(model, 3), [video])
    got = roundtrip(open_autoencoder(model, 3), [none, video[:, :2], none, video[:, 2:], none])
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("before", [1, 12, 13])
@pytest.mark.parametrize("shape", [(1, 1, 3, WIDTH, HEIGHT), (2, 1, 3, HEIGHT, WIDTH)])
def test_frames_that_change_shape_are_refused(before: int, shape: tuple[int, ...]) -> None:
    """In the middle of a block and exactly between two."""
    stream = TinyStream(tiny.autoencoder(), 3)
    with torch.no_grad():
        stream.encode(torch.rand(1, before, 3, HEIGHT, WIDTH))
        with pytest.raises(ValueError, match="frames changed from"):
            stream.encode(torch.rand(shape))


@kinds
def test_other_weights_loaded_in_place_are_those_of_the_next_stream(kind: str) -> None:
    """Of whole blocks and of parts, for which weights are packed, and of gains."""
    video, changed = torch.rand(1, 24, 3, 16, 24), torch.zeros(1, 3, 2, 3, dtype=torch.bool)
    changed[..., 1, 1] = True

    def coded(model: Any) -> list[Tensor]:
        stream = open_autoencoder(model, 3)
        found = [stream.channel_gains()]
        with torch.no_grad():
            for block in stream.take(video):
                latents = stream.encode_block(block, changed)
                found += [latents, stream.decode(latents, changed)]
        return found

    model, other = MODELS[kind](), MODELS[kind]()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    before = coded(model)
    model.load_state_dict(other.state_dict())
    after, expected = coded(model), coded(other)
    for was, mine, wanted in zip(before, after, expected, strict=True):
        assert not torch.allclose(was, wanted)
        torch.testing.assert_close(mine, wanted)


def test_only_known_autoencoders_are_opened() -> None:
    with pytest.raises(ModelError, match="TinyVideoAutoencoder or AutoencoderKLWan, got Linear"):
        open_autoencoder(nn.Linear(1, 1), 3)
