"""Still scenes before a noisy camera: what is taken for noise, what is not, and what it saves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.live_fixtures import (
    counted,
    file_path,
    open_session,
    pipe_fixture,  # noqa: F401
    pixels,
    play,
)
from torch import Tensor

from stillframe.live import Worker
from stillframe.live.noise_gate import NoiseGate, only_noise
from stillframe.pipelines.causal_wan import CausalWanPipeline

pytestmark = pytest.mark.timeout(60)


def scene(frames: int, sigma: float, seed: int = 0) -> Tensor:
    """A still picture before a camera with noise, (T, 3, 48, 64) in [0, 1], in whole levels."""
    generator = torch.Generator().manual_seed(seed)
    picture = 40 + 170 * torch.rand(3, 6, 8, generator=generator).repeat_interleave(
        8, 1
    ).repeat_interleave(8, 2)
    noise = sigma * torch.randn(frames, *picture.shape, generator=generator)
    return (picture + noise).clamp(0, 255).round() / 255


def one_by_one(frames: Tensor, noise: float) -> tuple[Tensor, int]:
    """The slow twin: every frame against the last that was let through, patch by patch."""
    out, exchanged = [frames[0]], 0
    reference = 255 * frames[0].double().numpy()
    for frame in frames[1:]:
        d = 255 * frame.double().numpy() - reference
        patches = [(d[:, y : y + s, x : x + s], s) for s in (8, 16)
                   for y in range(0, d.shape[1], s) for x in range(0, d.shape[2], s)]  # fmt: skip
        means = [np.abs(p.mean((1, 2))).max() < noise for p, s in patches if s == 8]
        squares = [np.sqrt((p**2).mean()) < 2 * noise for p, s in patches if s == 16]
        if all(means) and all(squares):
            out.append(out[-1])
            exchanged += 1
        else:
            out.append(frame)
            reference = 255 * frame.double().numpy()
    return torch.stack(out), exchanged


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0, 3.5])
def test_it_is_what_its_slow_twin_says_however_frames_arrive(sigma: float) -> None:
    frames = scene(24, sigma)
    frames[9:, :, 8:12, 8:12] += 0.2  # something appears
    frames[15:] *= torch.linspace(1, 0.9, 9).view(-1, 1, 1, 1)  # and it grows dark
    expected, exchanged = one_by_one(frames, 2.0)
    for sizes in ([24], [1] * 24, [5, 12, 7]):
        gate = NoiseGate(2.0)
        assert torch.equal(torch.cat([gate(part) for part in frames.split(sizes)]), expected)
        assert gate.exchanged == exchanged


def test_noise_of_the_stated_size_never_shows_and_what_is_there_always_does() -> None:
    frames = scene(200, 2.0)
    assert only_noise(frames[1:], frames[0], 2.0).all()
    changes = {
        "light": lambda x: x + 3 / 255,
        "a patch": lambda x: x + _at(x, 16, 24, 8, 4 / 255),
        "a dot": lambda x: x + _at(x, 21, 30, 2, 80 / 255),
        "a shift": lambda x: x.roll(1, -1),
    }
    for name, change in changes.items():
        assert not only_noise(change(frames[1:]), frames[0], 2.0).any(), name


def _at(x: Tensor, top: int, left: int, side: int, value: float) -> Tensor:
    patch = torch.zeros_like(x)
    patch[..., top : top + side, left : left + side] = value
    return patch


def test_slow_change_adds_up_until_it_is_seen() -> None:
    """No frame handed on is further from its source than the bounds allow."""
    fade = scene(120, 1.0) + torch.linspace(0, 12 / 255, 120).view(-1, 1, 1, 1)
    gate = NoiseGate(2.0)
    out = gate(fade)
    assert 60 < gate.exchanged < 119
    for frame, given in zip(fade, out, strict=True):
        assert only_noise(frame.unsqueeze(0), given, 2.0).all() or torch.equal(frame, given)
    assert abs(float((out[-1] - fade[-1]).mean())) < 2 / 255


def test_a_noisy_still_scene_is_edited_as_if_it_had_no_noise(pipe: CausalWanPipeline) -> None:
    """And costs as much: the transformer sees its first block, the encoder two or three."""
    frames = (scene(96, 2.0) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    first = frames[:1].repeat(96, 0)
    results = []
    for clip in (frames, first):
        worker = Worker()
        session = open_session(pipe, worker, policy="latest")
        with counted(pipe.vae.encoder[0]) as encoded:
            results.append(pixels(play(session, worker, clip)))
        assert [block.kept for block in session.telemetry.blocks][1:] == [0] * 7
        assert len(encoded) <= 4 * 12
        session.close()
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], file_path(pipe, first))


def test_it_is_off_where_every_frame_counts(pipe: CausalWanPipeline) -> None:
    frames = (scene(24, 2.0) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    worker = Worker()
    with open_session(pipe, worker, policy="all") as session:
        exact = pixels(play(session, worker, frames))
    with open_session(pipe, worker, policy="latest", noise=0.0) as session:
        assert np.array_equal(pixels(play(session, worker, frames)), exact)
    assert np.array_equal(exact, file_path(pipe, frames))
    with pytest.raises(ValueError, match="noise must not be negative, got -1"):
        open_session(pipe, worker, noise=-1.0)
