"""The fused autoencoder against the reference one, through its kernels' twins, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillframe.autoencoders.tiny import Memory, TinyVideoAutoencoder
from stillframe.autoencoders.tiny_fused import FusedAutoencoder, fused_autoencoder
from stillframe.loading.taehv import TAEW_CONFIG

WIDTHS: list[dict[str, Any]] = [
    {"encoder_channels": 16, "decoder_channels": (32, 16, 48, 16)},
    {
        "encoder_channels": 16,
        "decoder_channels": (16, 32, 16, 16),
        "spatial_stages": 1,
        "patch_size": 4,
        "refine_channels": 8,
        "latents_mean": [0.5] * 16,
    },
]


def autoencoder(options: dict[str, Any]) -> TinyVideoAutoencoder:
    torch.manual_seed(0)
    return TinyVideoAutoencoder(**options).eval().requires_grad_(False)


@pytest.mark.parametrize("options", WIDTHS, ids=["published kind", "bundled kind"])
def test_fused_equals_reference_and_either_goes_on_from_the_other(options: dict[str, Any]) -> None:
    vae = autoencoder(options)
    fused = fused_autoencoder(vae)
    ways: dict[str, Any] = {"reference": vae, "fused": fused}
    frames = torch.rand(2, 12, 3, 32, 48)
    latents, pictures = {}, {}
    for order in (
        ("reference", "reference", "reference"),
        ("fused", "fused", "fused"),
        ("fused", "reference", "fused"),
    ):
        encoded: Memory | None = None
        decoded: Memory | None = None
        z, y = [], []
        for way, part in zip(order, frames.split(4, 1), strict=True):
            block, encoded = ways[way].encode_chunk(part, encoded)
            picture, decoded = ways[way].decode_chunk(block, decoded)
            z.append(block)
            y.append(picture)
        latents[order], pictures[order] = torch.cat(z, 2), torch.cat(y, 1)
    for results in (latents, pictures):
        reference, *others = results.values()
        assert reference.std() > 1e-3
        for other in others:
            torch.testing.assert_close(other, reference, atol=1e-5 * reference.std().item(), rtol=0)


def test_it_is_kept_until_weights_move() -> None:
    vae = autoencoder(WIDTHS[0])
    fused = fused_autoencoder(vae)
    assert fused_autoencoder(vae) is fused
    vae.to(torch.float64)
    assert fused_autoencoder(vae) is not fused


def test_it_serves_16_bits_and_widths_in_sixteens() -> None:
    pytest.importorskip("triton")
    published = TinyVideoAutoencoder(**TAEW_CONFIG)
    assert not FusedAutoencoder.supports(published)
    assert FusedAutoencoder.supports(published.to(torch.bfloat16))
    narrow = TinyVideoAutoencoder(encoder_channels=8, decoder_channels=(16, 16, 16, 16))
    assert not FusedAutoencoder.supports(narrow.to(torch.bfloat16))
