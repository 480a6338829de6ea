"""The tiny autoencoder that computes what changed, against itself dense and against a slow one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.incremental import SlowAutoencoder
from torch import Tensor, nn

from stillframe.autoencoders import tiny_incremental
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
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
KINDS: dict[str, dict[str, Any]] = {
    "bundled": BUNDLED,
    "published": PUBLISHED,
    "between": BETWEEN,
    "trimming": {**BETWEEN, "frames_to_trim": 3},
}


@pytest.fixture(autouse=True)
def _partial_whatever_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_incremental, "_DENSE_FROM", 2.0)


kinds = pytest.mark.parametrize("kind", KINDS)


def autoencoder(kind: str) -> TinyVideoAutoencoder:
    torch.manual_seed(0)
    vae = TinyVideoAutoencoder(latent_channels=3, **KINDS[kind])
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
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
@kinds
def test_what_is_active_is_as_slow_layers_have_it(kind: str, batch: int, count: int) -> None:
    """Dense and partial blocks in any order, some with nothing active, or everything."""
    h, w = 5, 7
    vae = autoencoder(kind)
    stream, slow = TinyStream(vae, count), SlowAutoencoder(vae)
    shares = [None, 0.05, 0.2, None, None, 0.05, 0.0, 0.1, 0.9, 0.03, 1.0, 0.05]
    for number, share in enumerate(shares):
        frames, latents = source(stream, batch, h, w)
        asked = None if share is None else cells(share, batch, count, h, w)
        first = number == 0
        equal(stream.encode_block(frames, asked), slow.encode(frames, asked))
        pictures = slow.decode(latents, asked)
        if first:
            pictures = pictures[:, stream.timeline.trim :]
        equal(stream.decode(latents, asked), pictures)
