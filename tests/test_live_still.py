"""Still scenes before a noisy camera: nothing of them is computed again, and nothing flickers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.live_fixtures import (
    BLOCK,
    counted,
    file_path,
    open_session,
    pipe_fixture,  # noqa: F401
    pixels,
    play,
)

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.live import Worker
from stillframe.live.input_queue import Policy
from stillframe.live.session import Pixels
from stillframe.pipelines.causal_wan import CausalWanPipeline

pytestmark = pytest.mark.timeout(60)


def scene(frames: int, sigma: float, seed: int = 0) -> Pixels:
    """A still picture before a camera with noise, (T, 96, 128, 3)."""
    generator = torch.Generator().manual_seed(seed)
    picture = 40 + 170 * torch.rand(12, 16, 3, generator=generator)
    picture = picture.repeat_interleave(8, 0).repeat_interleave(8, 1)
    noise = sigma * torch.randn(frames, *picture.shape, generator=generator)
    return (picture + noise).clamp(0, 255).round().byte().numpy()


@pytest.mark.parametrize("policy", ["latest", "all"])
@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0])
def test_a_still_scene_is_coded_once(pipe: CausalWanPipeline, policy: Policy, sigma: float) -> None:
    """What is shown after the first block is its last frame, bit for bit, at no convolution."""
    worker, frames = Worker(), scene(6 * BLOCK, sigma)
    # found by decoding a little, once for each autoencoder
    open_autoencoder(pipe.vae, 3).channel_gains()
    session = open_session(pipe, worker, policy=policy)
    with counted(pipe.vae.encoder[0]) as encoded, counted(pipe.vae.decoder[1]) as decoded:
        shown = pixels(play(session, worker, frames))
    assert [block.kept for block in session.telemetry.blocks][1:] == [0] * 5
    assert len(encoded) == len(decoded) == 2, "the first block, whose last latent frame goes alone"
    assert (shown[BLOCK:] == shown[BLOCK - 1]).all()
    session.close()
    if policy == "all":
        assert np.array_equal(shown, file_path(pipe, frames))


def test_light_that_fades_before_a_noisy_camera_is_followed(pipe: CausalWanPipeline) -> None:
    frames = scene(8 * BLOCK, 1.0).astype(np.float32)
    frames += np.linspace(0, 24, len(frames), dtype=np.float32).reshape(-1, 1, 1, 1)
    worker = Worker()
    with open_session(pipe, worker, policy="all") as session:
        play(session, worker, frames.clip(0, 255).round().astype(np.uint8))
        assert sum(block.kept > 0 for block in session.telemetry.blocks) >= 4
