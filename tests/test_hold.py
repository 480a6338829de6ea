"""What is not computed shows the picture that was shown, pixel for pixel, and no seam is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import tiny
from tests.test_engine import edit
from torch import Tensor

from stillframe.autoencoders.streaming import StreamingAutoencoder, open_autoencoder
from stillframe.engine.compose import REACH, ShownPictures, meet
from stillframe.methods.prune import InterFramePruning

PATCH = 16


def big(keep: Tensor) -> Tensor:
    """(..., h, w) as pixels."""
    return keep.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)


def by_hand(decoded: Tensor, keep: Tensor) -> Tensor:
    """Frame by frame, without anything at the borders; (T, 3, H, W) and (F, h, w)."""
    shown, out = decoded[0], []
    for t, mask in enumerate(keep):
        frames = decoded[4 * t : 4 * t + 4]
        out.append(torch.where(big(mask), frames, shown))
        shown = out[-1][-1]
    return torch.cat(out)


def moving(frames: int) -> Tensor:
    """A still picture in whose left third something moves, (1, T, 3, 64, 96)."""
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(3, 64, 96, generator=generator).expand(frames, -1, -1, -1).clone()
    for t in range(frames):
        video[t, :, 20:40, 4 + t % 16 : 16 + t % 16] = 0.9
    return video.unsqueeze(0)


@pytest.mark.parametrize("kind", ["tiny", "trimming", "wan"])
def test_held_pixels_are_those_shown_before(kind: str) -> None:
    vae: Any = {
        "tiny": tiny.autoencoder,
        "trimming": lambda: tiny.autoencoder(trim=3),
        "wan": tiny.wan_autoencoder,
    }[kind]()
    method = InterFramePruning()
    out = edit(tiny.transformer(), vae, method, moving(60))
    masks = out.masks[0, 3:]
    assert 0.05 < masks.float().mean() < 0.8
    # latent frame k is shown as frames 4k to 4k+3, or from 4k-3 on where the first one lacks three
    lacking = 0 if kind == "tiny" else 3
    frames = out.frames[0]
    for k, keep in enumerate(masks, 3):
        first = 4 * k - lacking
        stays = ~big(keep)
        for frame in frames[first : first + 4]:
            assert torch.equal(frame[:, stays], frames[first - 1][:, stays])
    # what was never computed again has not moved at all
    never = big(~masks.any(0))
    assert never.any()
    assert (frames[12 - lacking :, :, never] == frames[11 - lacking][:, never]).all()


def test_latents_are_restored_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holding changes pictures, not what is computed."""
    # only what is held can be decoded in part
    monkeypatch.setattr(StreamingAutoencoder, "changed_alone", False)
    model, vae = tiny.transformer(), tiny.autoencoder()
    held = edit(model, vae, InterFramePruning(), moving(48))
    decoded = edit(model, vae, InterFramePruning(hold=False), moving(48))
    assert torch.equal(held.masks, decoded.masks)
    assert not torch.equal(held.frames, decoded.frames)
    # far from what is held nothing is touched
    expected = by_hand(decoded.frames[0], held.masks[0])
    off = (held.frames[0] - expected).abs().amax(1)
    for t, mask in enumerate(held.masks[0]):
        near = torch.nn.functional.max_pool2d(
            big(~mask).float()[None, None], 2 * REACH + 1, stride=1, padding=REACH
        )[0, 0].bool()
        assert not off[4 * t : 4 * t + 4][:, ~near].any()
        assert not off[4 * t : 4 * t + 4][:, big(~mask)].any()


def test_a_border_is_met_from_the_new_side() -> None:
    """A constant difference is taken up at the border and gone at its reach; held pixels stay."""
    new, held = torch.full((1, 2, 3, 48, 64), 0.5), torch.full((1, 2, 3, 48, 64), 0.55)
    reused = torch.zeros(1, 48, 64, dtype=torch.bool)
    reused[:, :, :32] = True
    met = meet(new, held, reused)[0, 0, 0, 24]
    assert (met[:32] == 0.55).all()
    assert float(met[32]) == pytest.approx(0.55, abs=1e-5)
    assert (met[32:].diff() <= 1e-6).all()
    assert torch.allclose(met[32 + REACH :], torch.tensor(0.5))
    # no step along the way is larger than an eighth of what there was at the border
    assert met.diff().abs().max() <= 0.05 / 8 + 1e-5


def test_what_moved_is_not_mixed_in() -> None:
    """A bright thing stood where now is nothing: none of it may be seen beside what is held."""
    new, held = torch.full((1, 1, 3, 48, 64), 0.2), torch.full((1, 1, 3, 48, 64), 0.2)
    held[..., 36:60] = 1.0  # on the side that is new
    reused = torch.zeros(1, 48, 64, dtype=torch.bool)
    reused[:, :, :32] = True
    assert torch.allclose(meet(new, held, reused), torch.tensor(0.2))


def test_a_whole_block_holds_nothing_and_an_end_may_be_short() -> None:
    pictures, keep = ShownPictures(4, 3), torch.zeros(1, 3, 3, 4, dtype=torch.bool)
    first, second = torch.rand(1, 9, 3, 48, 64), torch.rand(1, 12, 3, 48, 64)
    assert torch.equal(pictures.compose(first, keep, True, 3), first)
    shown = pictures.compose(second[:, :6], keep, False)
    assert torch.equal(shown, first[:, -1:].expand(-1, 6, -1, -1, -1))
    assert torch.equal(pictures.compose(second, ~keep, True), second)
    assert pictures.compose(second[:, :0], keep, False).shape[1] == 0


@pytest.mark.parametrize("kind", ["tiny", "wan"])
def test_gains_are_what_the_decoder_makes_of_a_channel(kind: str) -> None:
    """A second derivation: decode a picture of latents, move one channel, look at the pixels."""
    vae: Any = {"tiny": tiny.autoencoder, "wan": tiny.wan_autoencoder}[kind]()
    stream = open_autoencoder(vae, 3)
    gains = stream.channel_gains()
    channels = stream.latent_channels
    assert gains.shape == (channels, channels)
    base = torch.zeros(1, channels, 3, 6, 6)
    for channel in range(channels):
        moved = base.clone()
        moved[:, channel] = 0.5
        pictures = [open_autoencoder(vae, 3).decode(x)[:, -4:] for x in (base, moved)]
        seen = 255 * (pictures[1] - pictures[0]).square().mean().sqrt()
        expected = 0.5 * gains[channel].square().mean().sqrt()
        assert float(seen) == pytest.approx(float(expected), rel=1e-2, abs=1e-4)
