"""The fused autoencoder against the reference one, through its kernels' twins, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.partial_autoencoder import PartialReference
from torch import Tensor, nn

from stillframe.autoencoders.tiny import Memory, TinyVideoAutoencoder
from stillframe.autoencoders.tiny_fused import (
    FusedAutoencoder,
    FusedDecoder,
    FusedEncoder,
    fused_autoencoder,
)
from stillframe.kernels.graphs import Graphs
from stillframe.loading.taehv import TAEW_CONFIG
from stillframe.models import bundled_models

_BUNDLED = TinyVideoAutoencoder.load_config(bundled_models()["tiny"] / "vae")

WIDTHS: list[dict[str, Any]] = [
    {"encoder_channels": 16, "decoder_channels": (32, 16, 48, 16)},
    {
        "encoder_channels": 16,
        "decoder_channels": (16, 16, 32, 16),
        "patch_size": 2,
        "latent_channels": 48,
    },
    {
        "encoder_channels": 16,
        "decoder_channels": (16, 32, 16, 16),
        "spatial_stages": 1,
        "patch_size": 4,
        "refine_channels": 8,
        "latents_mean": [0.5] * 16,
    },
    {
        "encoder_channels": 24,
        "decoder_channels": (24, 16, 16, 8),
        "spatial_stages": 0,
        "patch_size": 8,
        "refine_channels": 16,
        "latent_channels": _BUNDLED["latent_channels"],
        "latents_mean": [0.3 * (i % 3 - 1) for i in range(_BUNDLED["latent_channels"])],
        "latents_std": [0.5 + 0.5 * (i % 4) for i in range(_BUNDLED["latent_channels"])],
    },
]
widths = pytest.mark.parametrize(
    "options", WIDTHS, ids=["published kind", "wan 2.2 kind", "patches", "bundled"]
)

H, W = 4, 6  # cells


def autoencoder(options: dict[str, Any]) -> TinyVideoAutoencoder:
    torch.manual_seed(0)
    vae = TinyVideoAutoencoder(**options).eval().requires_grad_(False)
    if vae.refine is not None:  # zero at first
        last = vae.refine[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.normal_(last.weight, std=0.1)
    return vae


def close(mine: Tensor, other: Tensor, limit: float = 1e-5) -> None:
    assert other.std() > 1e-3
    torch.testing.assert_close(mine, other, atol=limit * other.std().item(), rtol=0)


@widths
def test_whole_blocks_equal_the_model(options: dict[str, Any]) -> None:
    vae = autoencoder(options)
    encoder, decoder = FusedEncoder(vae), FusedDecoder(vae)
    encoded: Memory | None = None
    decoded: Memory | None = None
    side = vae.spatial_factor
    for part in torch.rand(2, 24, 3, side * H, side * W).split(8, 1):
        latents, encoded = vae.encode_chunk(part, encoded)
        pictures, decoded = vae.decode_chunk(latents, decoded)
        close(encoder(part, None), latents)
        close(decoder(latents, None), pictures)


def blocks(vae: TinyVideoAutoencoder, batch: int, kinds: list[float | None]) -> Any:
    """Frames, latents and what changed: a share of the cells, None for a block that is whole."""
    side, channels = vae.spatial_factor, vae.config["latent_channels"]
    for share in kinds:
        changed = None if share is None else torch.rand(batch, 2, H, W) < share
        frames = torch.rand(batch, 8, 3, side * H, side * W)
        yield frames, torch.randn(batch, channels, 2, H, W), changed


@widths
@pytest.mark.parametrize("batch", [1, 2])
def test_partial_blocks_equal_a_slow_reference(options: dict[str, Any], batch: int) -> None:
    vae = autoencoder(options)
    ways = (FusedEncoder(vae), FusedDecoder(vae))
    slow = (PartialReference(vae, False), PartialReference(vae, True))
    kinds = [None, 0.1, 0.05, 0.0, 0.3, None, None, 0.1, 1.0, 0.02]
    for *given, changed in blocks(vae, batch, kinds):
        for mine, other, x in zip(ways, slow, given, strict=True):
            close(mine(x, changed), other(x, changed))


@widths
def test_everything_changed_is_a_whole_block(options: dict[str, Any]) -> None:
    vae = autoencoder(options)
    pairs = [(kind(vae), kind(vae)) for kind in (FusedEncoder, FusedDecoder)]
    for *given, changed in blocks(vae, 2, [None, 1.0, 0.2, 1.0]):
        for (one, other), x in zip(pairs, given, strict=True):
            everything = changed is None or bool(changed.all())
            assert torch.equal(one(x, changed), other(x, None if everything else changed))


@widths
def test_nothing_changed_is_the_last_latent_frame_again(options: dict[str, Any]) -> None:
    vae = autoencoder(options)
    for kind, time in ((FusedEncoder, 2), (FusedDecoder, 1)):
        coder, place = kind(vae), 0 if kind is FusedEncoder else 1
        (first, _), (second, changed) = (
            ((frames, latents)[place], changed)
            for frames, latents, changed in blocks(vae, 2, [None, 0.0])
        )
        before = coder(first, None).chunk(2, time)[1]
        for frame in coder(second, changed).chunk(2, time):
            assert torch.equal(frame, before)


def test_it_is_kept_until_weights_move() -> None:
    vae = autoencoder(WIDTHS[0])
    fused = fused_autoencoder(vae)
    assert fused_autoencoder(vae) is fused
    vae.to(torch.float64)
    assert fused_autoencoder(vae) is not fused


def test_it_serves_16_bits() -> None:
    pytest.importorskip("triton")
    published = TinyVideoAutoencoder(**TAEW_CONFIG)
    assert not FusedAutoencoder.supports(published)
    assert FusedAutoencoder.supports(published.to(torch.bfloat16))


def test_sides_and_counts_must_fit() -> None:
    encoder = FusedEncoder(autoencoder(WIDTHS[0]))
    with pytest.raises(ValueError, match="got 4 frames of 20x16"):
        encoder(torch.rand(1, 4, 3, 16, 20), None)


@pytest.mark.gpu
@widths
@pytest.mark.parametrize("batch", [1, 2])
def test_graphs_and_overlap_change_nothing(options: dict[str, Any], batch: int) -> None:
    """Compiled, in bfloat16: to the bit what kernels one by one make; near to the reference."""
    slow_vae = autoencoder(options)
    vae = autoencoder(options).to("cuda", torch.bfloat16)
    slow_vae.load_state_dict({k: x.float() for k, x in vae.cpu().state_dict().items()})
    vae.to("cuda")
    kinds = [None, None, 0.1, 0.05, 0.0, 0.3, None, 0.1, 1.0, 0.02, 0.1, None]
    with pytest.MonkeyPatch.context() as patch:
        for kind, decode in ((FusedEncoder, False), (FusedDecoder, True)):
            fast, plain, slow = kind(vae), kind(vae, False), PartialReference(slow_vae, decode)
            for *given, changed in blocks(vae, batch, kinds):
                x = given[decode].bfloat16()
                there = None if changed is None else changed.cuda()
                mine = fast(x.cuda(), there)
                with patch.context() as eagerly:
                    eagerly.setattr(Graphs, "run", lambda self, key, work: work())
                    assert torch.equal(mine, plain(x.cuda(), there))
                close(mine.float().cpu(), slow(x.float(), changed), 0.1)
