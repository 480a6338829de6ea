"""Wan's autoencoder over buffers that stay: what is dense, what changed, and nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import AutoencoderKLWan
from tests import tiny
from torch import Tensor

from stillframe.autoencoders import wan_fused, wan_layers
from stillframe.autoencoders.streaming import WanStream
from stillframe.autoencoders.wan_fused import FusedWan
from stillframe.autoencoders.wan_stock import StockCoder
from stillframe.kernels import causal_convolution
from stillframe.kernels.causal_convolution import convolve_reference
from stillframe.kernels.channel_norm import Norm, place_reference
from stillframe.kernels.graphs import Graphs

HEIGHT, WIDTH = 32, 48
PLACES = HEIGHT // 8, WIDTH // 8

#: Shares of cells that change, a block each; None for dense.
MIXED = [None, None, 0.1, 0.05, 0.0, 0.0, 0.05, None, 0.02, 0.0, None, 0.05]


@contextmanager
def reference() -> Iterator[None]:
    """Everything is computed, and what is active taken of it; all of a map becomes the past."""

    def place(norm: Norm, x: Any, out: Any, cells: Any, recent: Any, side: int) -> None:
        place_reference(norm, x, out, cells, None, side)

    with (
        patch.object(wan_layers, "convolve", convolve_reference),
        patch.object(wan_layers, "place", place),
    ):
        yield


def changes(share: float | None, batch: int, frames: int, seed: int) -> Tensor | None:
    """(B, S, h, w) at random."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand(batch, frames, *PLACES, generator=generator)
    return None if share is None else random < share


def coded(
    stream: WanStream,
    shares: list[float | None],
    batch: int = 1,
    before: Callable[[int], None] = lambda _: None,
) -> list[Tensor]:
    """Latents and pictures of random blocks, decoded from random latents."""
    generator, results = torch.Generator().manual_seed(5), []
    with torch.no_grad():
        for i, share in enumerate(shares):
            before(i)
            frames = torch.rand(batch, stream.next_frames, 3, HEIGHT, WIDTH, generator=generator)
            changed = changes(share, batch, stream.timeline.block_frames, i)
            (block,) = stream.take(frames)
            latents = stream.encode_block(block, changed)
            given = torch.randn(latents.shape, generator=generator).to(latents.device)
            results += [latents, stream.decode(given, changed)]
    return results


def close(got: list[Tensor], expected: list[Tensor], limit: float) -> None:
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=limit)


def stock(vae: Any, block_frames: int) -> WanStream:
    """A stream through diffusers' modules."""
    with patch.object(FusedWan, "supports", lambda _: False):
        stream = WanStream(vae, block_frames)
    assert isinstance(stream._coder, StockCoder)
    return stream


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("block_frames", [1, 3])
def test_dense_blocks_equal_diffusers(block_frames: int, batch: int) -> None:
    vae = tiny.wan_autoencoder().double()  # diffusers enlarges in float32 all the same
    dense: list[float | None] = [None] * 4
    ours = coded(WanStream(vae, block_frames), dense, batch)
    close(ours, coded(stock(vae, block_frames), dense, batch), 1e-5)
    assert ours[-1].std() > 0.01


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("block_frames", [1, 3])
def test_what_changed_equals_everything_of_which_that_is_taken(
    block_frames: int, batch: int
) -> None:
    """Dense blocks, partial ones and still ones take turns."""
    vae = tiny.wan_autoencoder().double()
    ours = coded(WanStream(vae, block_frames), MIXED, batch)
    with reference():
        expected = coded(WanStream(vae, block_frames), MIXED, batch)
    close(ours, expected, 1e-10)


def test_all_active_is_dense() -> None:
    vae = tiny.wan_autoencoder().double()
    shares = [None, None, 0.05, 1.1, 0.05, 1.1, 1.1, 1.1, 1.1]
    dense = [None if share == 1.1 else share for share in shares]
    close(coded(WanStream(vae, 1), shares, 2), coded(WanStream(vae, 1), dense, 2), 1e-12)


def test_a_partial_block_after_dense_ones_forgets_nothing() -> None:
    """Once everything has been computed for a while, it is as if it always had been."""
    vae = tiny.wan_autoencoder().double()
    dense: list[float | None] = [None] * 16
    mixed: list[float | None] = [None, None, 0.05, 0.0, *dense[4:]]
    # as many latent frames as the past of all layers reaches
    close(coded(WanStream(vae, 3), mixed)[-2:], coded(WanStream(vae, 3), dense)[-2:], 1e-6)


@pytest.mark.parametrize("block_frames", [1, 3])
def test_where_nothing_changes_nothing_is_convolved_and_all_stays(
    block_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("convolve_reference", "_convolve_rows", "_launch"):
        whole = getattr(causal_convolution, name)

        def counted(*given: Any, whole: Any = whole, name: str = name) -> Any:
            calls.append(name)
            return whole(*given)

        monkeypatch.setattr(causal_convolution, name, counted)
    stream = WanStream(tiny.wan_autoencoder(), block_frames)
    counts: list[int] = []
    shares = [None, None, 0.1, 0.0, 0.0]
    results = coded(stream, shares, before=lambda _: counts.append(len(calls)))
    assert counts[1] > 0
    assert counts[3] > counts[2]
    assert len(calls) == counts[3]  # neither of the still ones
    latents, pictures = results[4:6]
    last = latents[:, :, -1:].expand_as(latents)
    shown = pictures[:, -4:].repeat(1, block_frames, 1, 1, 1)
    close(results[6:], [last, shown, last, shown], 0)


def test_far_from_what_changes_nothing_moves() -> None:
    """And what does is the changed cells and one around them."""
    stream = WanStream(tiny.wan_autoencoder(), 3)
    latents, pictures = coded(stream, [None, None, 0.1])[4:]  # maps are kept from the third on
    changed = torch.zeros(1, 3, *PLACES, dtype=torch.bool)
    changed[:, :, 0, 1] = True
    reached = torch.zeros(PLACES, dtype=torch.bool)
    reached[:2, :3] = True
    with torch.no_grad():
        (block,) = stream.take(torch.rand(1, 12, 3, HEIGHT, WIDTH))
        new = stream.encode_block(block, changed)
        shown = stream.decode(torch.randn_like(new), changed)
    moved = (new - latents[:, :, -1:]).abs().amax((0, 1, 2)) > 0
    assert torch.equal(moved, reached)
    moved = (shown.unflatten(1, (3, 4)) - pictures[:, None, -4:]).abs().amax((0, 1, 2, 3)) > 0
    assert torch.equal(moved, reached.repeat_interleave(8, 0).repeat_interleave(8, 1))


def test_mostly_changed_blocks_are_computed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, gathering costs more than it saves then."""
    rows: list[object] = []
    gather = causal_convolution._convolve_rows

    def counted(*given: Any) -> None:
        rows.append(given)
        gather(*given)

    monkeypatch.setattr(causal_convolution, "_convolve_rows", counted)
    coded(WanStream(tiny.wan_autoencoder(), 1), [None, None, 0.1, 0.9])
    assert not rows
    coded(WanStream(tiny.wan_autoencoder(), 1), [None, None, 0.1, 0.05])
    assert rows


def test_a_stream_that_is_reset_or_copied_starts_afresh() -> None:
    stream = WanStream(tiny.wan_autoencoder(), 3)
    expected = coded(stream, MIXED[:4])
    other = copy.copy(stream)
    other.reset()
    close(coded(other, MIXED[:4]), expected, 0)
    stream.reset()
    close(coded(stream, MIXED[:4]), expected, 0)


def test_streams_share_layers_until_weights_move() -> None:
    vae = tiny.wan_autoencoder()
    layers = wan_fused.fused_wan(vae)
    assert wan_fused.fused_wan(vae) is layers
    vae.double()
    assert wan_fused.fused_wan(vae) is not layers


def test_maps_may_be_written_in_and_out_of_inference_mode() -> None:
    stream = WanStream(tiny.wan_autoencoder(), 3)

    def blocks(shares: list[float | None]) -> None:
        with torch.inference_mode():
            coded(stream, shares)

    blocks([None, 0.1])
    coded(stream, [None, 0.1])
    blocks([0.1, None])


def test_memory_grows_once_when_less_than_everything_is_asked_for() -> None:
    stream = WanStream(tiny.wan_autoencoder(), 1)
    sizes: list[int] = []

    def measured(_: int) -> None:
        coder = stream._coder
        assert isinstance(coder, wan_fused.FusedCoder)
        sizes.append(coder.size)

    coded(stream, MIXED, before=measured)
    assert MIXED[2] is not None
    # buffers of layers that a first latent frame has no use for come with the second
    assert 0 < sizes[1] <= sizes[2] < sizes[3]
    assert len(set(sizes[3:])) == 1


def residual() -> Any:
    """A tiny autoencoder of Wan 2.2's kind."""
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def test_the_residual_kind_is_computed_whole_by_diffusers() -> None:
    vae = residual()
    stream = WanStream(vae, 2)
    video = torch.rand(1, 13, 3, HEIGHT, WIDTH)
    blocks = stream.take(video)
    changed = torch.zeros(1, 2, HEIGHT // 16, WIDTH // 16, dtype=torch.bool)
    latents = torch.cat([stream.encode_block(block, changed) for block in blocks], 2)
    posterior = vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist
    torch.testing.assert_close(latents, posterior.mode(), rtol=0, atol=1e-5)
    frames = [stream.decode(part, changed) for part in latents.split(2, 2)]
    expected = (vae.decode(latents).sample.transpose(1, 2) + 1) / 2
    torch.testing.assert_close(torch.cat(frames, 1), expected, rtol=0, atol=1e-5)


def published() -> Any:
    """Wan 2.1's autoencoder, random."""
    torch.manual_seed(0)
    return AutoencoderKLWan().eval().requires_grad_(False).cuda()


@pytest.mark.gpu
def test_on_a_gpu_bfloat16_is_as_good_as_diffusers() -> None:
    dense: list[float | None] = [None] * 4
    vae = published()
    exact = coded(stock(vae, 3), dense)
    vae.to(torch.bfloat16)
    ours, theirs = coded(WanStream(vae, 3), dense), coded(stock(vae, 3), dense)
    for mine, other, expected in zip(ours, theirs, exact, strict=True):
        error, usual = ((x.float() - expected).square().mean().sqrt() for x in (mine, other))
        # diffusers rounds more often: before and after every factor of a norm
        assert 0 < error < 1.1 * usual


@pytest.mark.gpu
@pytest.mark.parametrize("block_frames", [1, 3])
def test_on_a_gpu_what_changed_equals_everything_of_which_that_is_taken(
    block_frames: int,
) -> None:
    vae = published()
    # cuDNN's products are rounded to 10 bits unless that is forbidden
    with torch.backends.cudnn.flags(allow_tf32=False):
        ours = coded(WanStream(vae, block_frames), MIXED, 2)
        with reference(), patch.object(Graphs, "run", lambda _self, _key, work: work()):
            expected = coded(WanStream(vae, block_frames), MIXED, 2)
    close(ours, expected, 1e-4)
