"""The tiny autoencoder against an evaluation frame by frame, from its published description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import tiny
from torch import Tensor

from stillframe.autoencoders.tiny import TinyVideoAutoencoder

# the published layer lists, counted by hand: kind and number in ``nn.Sequential``, stride of time
MEMORY = ("memory", "memory", "memory")
ENCODER = ["conv", "relu", "pool2", "down", *MEMORY, "pool2", "down", *MEMORY]
ENCODER += ["pool1", "down", *MEMORY, "conv"]
DECODER = ["clamp", "conv", "relu", *MEMORY, "up", "grow1", "conv", *MEMORY]
DECODER += ["up", "grow2", "conv", *MEMORY, "up", "grow2", "conv", "relu", "conv"]


def slowly(state: dict[str, Tensor], part: str, layers: list[str], frames: list[Tensor]) -> Tensor:
    """One layer after the other over a list of frames (B, C, H, W); stacks to (B, T, C, H, W)."""
    for number, kind in enumerate(layers):
        name = f"{part}.{number}."
        if kind in ("conv", "down"):
            stride, bias = 2 if kind == "down" else 1, state.get(name + "bias")
            frames = [F.conv2d(x, state[name + "weight"], bias, stride, 1) for x in frames]
        elif kind == "relu":
            frames = [x.clamp(min=0) for x in frames]
        elif kind == "clamp":
            frames = [3 * torch.tanh(x / 3) for x in frames]
        elif kind == "up":
            frames = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in frames]
        elif kind == "same":
            continue
        elif kind == "memory":
            past = [torch.zeros_like(frames[0]), *frames[:-1]]
            frames = [memory(state, name, x, y) for x, y in zip(frames, past, strict=True)]
        elif kind.startswith("pool"):
            count = int(kind[-1])
            groups = [frames[i : i + count] for i in range(0, len(frames), count)]
            weight = state[name + "conv.weight"]
            frames = [F.conv2d(torch.cat(group, 1), weight) for group in groups]
        else:
            grown = [F.conv2d(x, state[name + "conv.weight"]) for x in frames]
            frames = [part for x in grown for part in x.chunk(int(kind[-1]), 1)]
    return torch.stack(frames, 1)


def memory(state: dict[str, Tensor], name: str, x: Tensor, past: Tensor) -> Tensor:
    y = torch.cat([x, past], 1)
    for i in (0, 2, 4):
        y = F.conv2d(y, state[f"{name}conv.{i}.weight"], state[f"{name}conv.{i}.bias"], padding=1)
        y = y.clamp(min=0) if i < 4 else y
    return (x + y).clamp(min=0)


def published(width: int = 64, widths: tuple[int, ...] = (256, 128, 64, 64), c: int = 16) -> Any:
    """Names and shapes of the published weights, written out from the layer lists."""
    names: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, side: int, bias: bool) -> None:
        names[name + ".weight"] = (out, into, side, side)
        if bias:
            names[name + ".bias"] = (out,)

    for part, layers in (("encoder", ENCODER), ("decoder", DECODER)):
        convs = [i for i, kind in enumerate(layers) if kind == "conv"]
        now = width if part == "encoder" else widths[0]
        for i, kind in enumerate(layers):
            stage = sum(k == "up" for k in layers[:i])
            if kind == "memory":
                for j in (0, 2, 4):
                    conv(f"{part}.{i}.conv.{j}", now, 2 * now if j == 0 else now, 3, True)
            elif kind == "down":
                conv(f"{part}.{i}", now, now, 3, False)
            elif kind.startswith("pool"):
                conv(f"{part}.{i}.conv", now, now * int(kind[-1]), 1, False)
            elif kind.startswith("grow"):
                conv(f"{part}.{i}.conv", now * int(kind[-1]), now, 1, False)
            elif i == convs[0]:
                conv(f"{part}.{i}", now, 3 if part == "encoder" else c, 3, True)
            elif i == convs[-1]:
                conv(f"{part}.{i}", c if part == "encoder" else 3, now, 3, True)
            elif kind == "conv":
                conv(f"{part}.{i}", widths[stage], now, 3, False)
                now = widths[stage]
    return names


def test_weights_have_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = TinyVideoAutoencoder().state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == published()
    # a few of them once more, as they stand in taew2_1
    assert state["encoder.0.weight"].shape == (64, 3, 3, 3)
    assert state["encoder.2.conv.weight"].shape == (64, 128, 1, 1)
    assert state["encoder.4.conv.0.weight"].shape == (64, 128, 3, 3)
    assert state["encoder.17.weight"].shape == (16, 64, 3, 3)
    assert state["decoder.1.weight"].shape == (256, 16, 3, 3)
    assert state["decoder.7.conv.weight"].shape == (256, 256, 1, 1)
    assert state["decoder.13.conv.weight"].shape == (256, 128, 1, 1)
    assert state["decoder.19.conv.weight"].shape == (128, 64, 1, 1)
    assert state["decoder.22.weight"].shape == (3, 64, 3, 3)


def test_other_widths_keep_the_layout() -> None:
    with torch.device("meta"):
        vae = TinyVideoAutoencoder(4, 32, (128, 80, 32, 16))
    shapes = {name: tuple(x.shape) for name, x in vae.state_dict().items()}
    assert shapes == published(32, (128, 80, 32, 16), 4)


@torch.no_grad()
def test_parallel_equals_frame_by_frame(autoencoder: Any) -> None:
    """In the published order: upsampling, then temporal growth; the module swaps them."""
    state = autoencoder.state_dict()
    frames = torch.rand(2, 12, 3, 16, 24)
    expected = slowly(state, "encoder", ENCODER, list(frames.unbind(1)))
    latents = autoencoder.encode_raw(frames)
    assert latents.shape == (2, 3, 4, 2, 3)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-6)
    latents = 4 * torch.randn(latents.shape)
    expected = slowly(state, "decoder", DECODER, list(latents.unbind(1)))
    decoded = autoencoder.decode_raw(latents)
    assert decoded.shape == frames.shape
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)


def with_stages(layers: list[str], stages: int) -> list[str]:
    """The layer list where only the first stages of three change the picture's size."""
    seen, out = {"up": 0, "down": 0}, []
    for kind in layers:
        if kind in seen:
            seen[kind] += 1
            if seen[kind] > stages:
                kind = {"up": "same", "down": "conv"}[kind]
        out.append(kind)
    return out


@pytest.mark.parametrize(("patch", "stages"), [(1, 3), (2, 3), (2, 2), (4, 1), (8, 0)])
@torch.no_grad()
def test_other_widths_patches_and_stages(patch: int, stages: int) -> None:
    """Pixels folded into channels, as later members of the family do, and fewer stages."""
    vae = TinyVideoAutoencoder(
        3, 4, (12, 10, 8, 6), patch_size=patch, spatial_stages=stages
    ).eval()  # fmt: skip
    factor = patch * 2**stages
    assert vae.spatial_factor == factor
    frames = torch.rand(2, 8, 3, 2 * factor, factor)
    b, t, _, h, w = frames.shape
    folded = frames.view(b, t, 3, h // patch, patch, w // patch, patch)
    folded = folded.permute(0, 1, 2, 4, 6, 3, 5).reshape(b, t, -1, h // patch, w // patch)
    state = vae.state_dict()
    latents = vae.encode_raw(frames)
    expected = slowly(state, "encoder", with_stages(ENCODER, stages), list(folded.unbind(1)))
    assert latents.shape == (2, 2, 3, 2, 1)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    grown = slowly(state, "decoder", with_stages(DECODER, stages), list(latents.unbind(1)))
    grown = grown.view(b, t, 3, patch, patch, h // patch, w // patch)
    unfolded = grown.permute(0, 1, 2, 5, 3, 6, 4).reshape(frames.shape)
    torch.testing.assert_close(vae.decode_raw(latents), unfolded, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_refinement_is_three_convolutions_on_every_frame() -> None:
    vae = TinyVideoAutoencoder(3, 4, (12, 10, 8, 6), refine_channels=5).eval()
    plain = TinyVideoAutoencoder(3, 4, (12, 10, 8, 6)).eval()
    own = {name: value for name, value in vae.state_dict().items() if "refine" not in name}
    plain.load_state_dict(own)
    latents = torch.randn(2, 3, 3, 2, 4)
    decoded = plain.decode_raw(latents)
    # fresh, it changes nothing
    torch.testing.assert_close(vae.decode_raw(latents), decoded, rtol=0, atol=0)
    for parameter in vae.refine.parameters():
        parameter.normal_(std=0.3)
    weights = [parameter.detach() for parameter in vae.refine.parameters()]
    refined = vae.decode_raw(latents)
    for number, frame in enumerate(decoded.flatten(0, 1)):
        # the four pixels of every 2x2 square side by side, channel by channel
        x = torch.stack([frame[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1).flatten(0, 1)
        for layer in range(3):
            x = F.conv2d(x[None], weights[2 * layer], weights[2 * layer + 1], padding=1)[0]
            x = x.clamp(min=0) if layer < 2 else x
        added = torch.zeros_like(frame)
        for k, (i, j) in enumerate((i, j) for i in (0, 1) for j in (0, 1)):
            added[:, i::2, j::2] = x[k::4]
        got = refined.flatten(0, 1)[number]
        torch.testing.assert_close(got, frame + added, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("patch", "stages"), [(0, 3), (1, 4), (1, -1)])
def test_impossible_patches_and_stages_are_refused(patch: int, stages: int) -> None:
    with pytest.raises(ValueError, match=f"got {stages} and {patch}"):
        TinyVideoAutoencoder(patch_size=patch, spatial_stages=stages)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (2, 2), (1, 3), (3, 1)])
@torch.no_grad()
def test_chunk_by_chunk_equals_at_once(autoencoder: Any, chunks: tuple[int, ...]) -> None:
    frames = torch.rand(2, 16, 3, 16, 24)
    at_once = autoencoder.encode(frames)
    memory, parts = None, []
    for piece in frames.split([4 * n for n in chunks], 1):
        part, memory = autoencoder.encode_chunk(piece, memory)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), at_once, rtol=0, atol=1e-5)
    memory, parts = None, []
    for piece in at_once.split(chunks, 2):
        part, memory = autoencoder.decode_chunk(piece, memory)
        parts.append(part)
    assert parts[0].shape[1] == 4 * chunks[0]
    torch.testing.assert_close(torch.cat(parts, 1), autoencoder.decode(at_once), rtol=0, atol=1e-5)


@torch.no_grad()
def test_latents_are_normalised_and_the_decoder_undoes_it(autoencoder: Any) -> None:
    frames = torch.rand(1, 8, 3, 16, 24)
    raw = autoencoder.encode_raw(frames).transpose(1, 2)
    config = autoencoder.config
    mean, std = (
        torch.tensor(config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    latents = autoencoder.encode(frames)
    torch.testing.assert_close(latents, (raw - mean) / std)
    decoded = autoencoder.decode_raw(raw.transpose(1, 2)).clamp(0, 1)
    torch.testing.assert_close(autoencoder.decode(latents), decoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(autoencoder(frames), decoded, rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_latent_depends_on_a_later_frame(autoencoder: Any) -> None:
    frames = torch.rand(1, 12, 3, 16, 24)
    other = frames.clone()
    other[:, 8:] = torch.rand(1, 4, 3, 16, 24)
    a, b = autoencoder.encode(frames), autoencoder.encode(other)
    assert torch.equal(a[:, :, :2], b[:, :, :2])
    assert not torch.equal(a[:, :, 2], b[:, :, 2])
    a, b = autoencoder.decode(a), autoencoder.decode(b)
    assert torch.equal(a[:, :8], b[:, :8])
    assert not torch.equal(a[:, 8:], b[:, 8:])


@torch.no_grad()
def test_trimming_drops_the_first_frames() -> None:
    plain, trimmed = tiny.autoencoder(trim=0), tiny.autoencoder(trim=3)
    latents = torch.randn(1, 4, 2, 2, 3)
    assert torch.equal(trimmed.decode(latents), plain.decode(latents)[:, 3:])
    assert trimmed.decode(latents).shape[1] == 4 * 2 - 3


@torch.no_grad()
def test_saving_and_loading_keeps_configuration_and_weights(tmp_path: Path) -> None:
    vae = tiny.autoencoder(trim=3)
    vae.save_pretrained(tmp_path)
    loaded = TinyVideoAutoencoder.from_pretrained(tmp_path)
    for name in ("latent_channels", "encoder_channels", "frames_to_trim"):
        assert loaded.config[name] == vae.config[name]
    for name in ("decoder_channels", "latents_mean", "latents_std"):
        assert list(loaded.config[name]) == list(vae.config[name])
    frames = torch.rand(1, 8, 3, 16, 16)
    assert torch.equal(loaded(frames), vae(frames))
    assert loaded(frames).shape[1] == 8 - 3


@pytest.mark.parametrize(
    ("count", "height", "width"), [(3, 16, 16), (4, 12, 16), (4, 16, 20), (5, 17, 17)]
)
def test_chunks_that_do_not_divide_are_refused(
    autoencoder: Any, count: int, height: int, width: int
) -> None:
    with pytest.raises(ValueError, match=f"got {count} frames of {width}x{height}"):
        autoencoder.encode(torch.rand(1, count, 3, height, width))


def test_four_decoder_widths_are_needed() -> None:
    with pytest.raises(ValueError, match="needs 4 widths, got 3"):
        TinyVideoAutoencoder(decoder_channels=(8, 8, 8))
