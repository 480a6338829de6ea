"""Published weights of the tiny autoencoder: loaded, they compute what their description says."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests import published, tiny
from tests.test_autoencoder import published as published_shapes
from torch import Tensor

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.errors import ModelError
from stillframe.loading.taehv import TAEW_CONFIG, load_taehv

State = dict[str, Tensor]
Frames = Iterator[Tensor]
Kernel = tuple[Tensor, Tensor | None]
HEIGHT, WIDTH = 16, 24
NO_MODEL = "is no tiny video autoencoder: it has no encoder.0.weight"

suffixes = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


# the published layers: one frame (B, C, H, W) after the other goes in, and is forgotten


def conv(frames: Frames, kernel: Kernel, stride: int = 1) -> Frames:
    for x in frames:
        yield F.conv2d(x, *kernel, stride, padding=1)


def relu(frames: Frames) -> Frames:
    for x in frames:
        yield x.clamp(min=0)


def clamp(frames: Frames) -> Frames:
    for x in frames:
        yield torch.tanh(x / 3) * 3


def up(frames: Frames) -> Frames:
    for x in frames:
        yield F.interpolate(x, scale_factor=2, mode="nearest")


def memory(frames: Frames, kernels: list[Kernel]) -> Frames:
    before = None
    for x in frames:
        y = torch.cat([x, torch.zeros_like(x) if before is None else before], 1)
        y = F.conv2d(y, *kernels[0], padding=1).clamp(min=0)
        y = F.conv2d(y, *kernels[1], padding=1).clamp(min=0)
        y = F.conv2d(y, *kernels[2], padding=1)
        before = x
        yield (x + y).clamp(min=0)


def pool(frames: Frames, kernel: Kernel, count: int) -> Frames:
    for x in frames:
        yield F.conv2d(torch.cat([x, *islice(frames, count - 1)], 1), *kernel)


def grow(frames: Frames, kernel: Kernel, count: int) -> Frames:
    """Of the frames that the rows of the kernel make, the last ones are those that count."""
    for x in frames:
        yield from F.conv2d(x, *kernel).split(x.shape[1], 1)[-count:]


def of_layer(state: State, name: str) -> Kernel:
    return state[f"{name}.weight"], state.get(f"{name}.bias")


def three_memories(frames: Frames, state: State, part: str, first: int) -> Frames:
    for number in range(first, first + 3):
        kernels = [of_layer(state, f"{part}.{number}.conv.{i}") for i in (0, 2, 4)]
        frames = memory(frames, kernels)
    return frames


def encode(state: State, video: Iterable[Tensor]) -> Tensor:
    """Frames to latents, stacked in time: (B, T / 4, C, H / 8, W / 8)."""
    x = relu(conv(iter(video), of_layer(state, "encoder.0")))
    for number, count in ((2, 2), (7, 2), (12, 1)):
        x = pool(x, of_layer(state, f"encoder.{number}.conv"), count)
        x = conv(x, of_layer(state, f"encoder.{number + 1}"), stride=2)
        x = three_memories(x, state, "encoder", number + 2)
    return torch.stack(list(conv(x, of_layer(state, "encoder.17"))), 1)


def decode(state: State, latents: Iterable[Tensor]) -> Tensor:
    """Latents to frames, all four of the first one too: (B, 4 F, 3, 8 h, 8 w)."""
    x = relu(conv(clamp(iter(latents)), of_layer(state, "decoder.1")))
    for number, count in ((3, 1), (9, 2), (15, 2)):
        x = up(three_memories(x, state, "decoder", number))
        x = grow(x, of_layer(state, f"decoder.{number + 4}.conv"), count)
        x = conv(x, of_layer(state, f"decoder.{number + 5}"))
    return torch.stack(list(conv(relu(x), of_layer(state, "decoder.22"))), 1)


# files


def refusal(path: Path) -> str:
    """The one sentence that a file is refused with."""
    with pytest.raises(ModelError) as caught:
        load_taehv(path)
    said = str(caught.value)
    assert "\n" not in said
    assert not re.search(r"\.(\s|$)", said), said
    return said


def write(path: Path, state: dict[str, Any]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def state() -> State:
    """Weights of an autoencoder of other widths than the bundled one's."""
    generator = torch.Generator().manual_seed(5)
    shapes = published_shapes(6, (12, 10, 8, 6), tiny.CHANNELS)
    return {
        # of the size that keeps a picture's variance, or it would fade
        name: torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        for name, shape in shapes.items()
    }


@torch.no_grad()
@suffixes
@pytest.mark.parametrize("more_rows", [False, True])
def test_a_published_file_gives_its_autoencoder_back(
    tmp_path: Path, suffix: str, more_rows: bool
) -> None:
    path = tmp_path / f"taew2_1{suffix}"
    expected = published.taehv_file(path, more_rows=more_rows)
    vae = load_taehv(path)
    assert not vae.training
    assert not any(p.requires_grad or p.is_meta for p in vae.parameters())
    assert (vae.config["latents_mean"], vae.config["latents_std"]) == (None, None)
    weights = expected.state_dict()
    assert vae.state_dict().keys() == weights.keys()
    assert all(torch.equal(x, weights[name]) for name, x in vae.state_dict().items())
    video = torch.rand(1, 8, 3, HEIGHT, WIDTH)
    assert torch.equal(vae(video), expected(video))


@torch.no_grad()
@suffixes
@pytest.mark.parametrize("more", [0, 1, 3])
def test_loaded_weights_compute_what_they_are_published_for(
    tmp_path: Path, state: State, suffix: str, more: int
) -> None:
    """Against the layers one frame at a time; with rows for frames that are not used, too."""
    state = dict(state)
    for number in (7, 13, 19):
        weight = state[f"decoder.{number}.conv.weight"]
        unused = torch.randn(more * weight.shape[1], *weight.shape[1:])
        state[f"decoder.{number}.conv.weight"] = torch.cat([unused, weight])
    vae = load_taehv(write(tmp_path / f"taew{suffix}", state))
    assert list(vae.config["decoder_channels"]) == [12, 10, 8, 6]
    assert (vae.config["encoder_channels"], vae.config["latent_channels"]) == (6, tiny.CHANNELS)

    video = torch.rand(2, 12, 3, HEIGHT, WIDTH)
    expected = encode(state, video.unbind(1))
    assert expected.std() > 0.1
    torch.testing.assert_close(vae.encode(video), expected.transpose(1, 2), rtol=0, atol=1e-5)

    latents = 4 * torch.randn(2, 3, tiny.CHANNELS, HEIGHT // 8, WIDTH // 8)
    frames = decode(state, latents.unbind(1))
    assert frames.shape == video.shape
    assert frames.std() > 0.1
    torch.testing.assert_close(vae.decode_raw(latents), frames, rtol=0, atol=1e-5)
    # the first latent stands for one frame: three are left out
    decoded = vae.decode(latents.transpose(1, 2))
    assert decoded.shape[1] == 12 - 3
    torch.testing.assert_close(decoded, frames[:, 3:].clamp(0, 1), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("block_frames", [1, 3])
def test_a_stream_through_loaded_weights_is_the_clip_at_once(
    tmp_path: Path, state: State, block_frames: int
) -> None:
    video = torch.rand(1, 24, 3, HEIGHT, WIDTH)
    latents = encode(state, video.unbind(1))
    frames = decode(state, latents.unbind(1))[:, 3:].clamp(0, 1)
    stream = open_autoencoder(load_taehv(write(tmp_path / "taew.pth", state)), block_frames)
    for seed in range(3):
        stream.reset()
        cuts = sorted(random.Random(seed).choices(range(25), k=5))
        blocks = [block for chunk in video.tensor_split(cuts, 1) for block in stream.encode(chunk)]
        assert len(blocks) == 6 // block_frames
        got = torch.cat(blocks, 2).transpose(1, 2)
        torch.testing.assert_close(got, latents, rtol=0, atol=1e-5)
        got = torch.cat([stream.decode(block) for block in blocks], 1)
        torch.testing.assert_close(got, frames, rtol=0, atol=1e-5)


@suffixes
def test_a_file_of_the_published_size_has_the_configuration_that_is_planned_with(
    tmp_path: Path, suffix: str
) -> None:
    shapes = published_shapes(64, (256, 128, 64, 64), 16)
    state = {name: torch.randn(shape).half() for name, shape in shapes.items()}
    vae = load_taehv(write(tmp_path / f"taew2_1{suffix}", state), torch.bfloat16)
    assert {name: vae.config[name] for name in TAEW_CONFIG} == TAEW_CONFIG
    assert TAEW_CONFIG["decoder_channels"] == (256, 128, 64, 64)
    assert (TAEW_CONFIG["encoder_channels"], TAEW_CONFIG["latent_channels"]) == (64, 16)
    assert (vae.temporal_factor, vae.spatial_factor, vae.frames_to_trim) == (4, 8, 3)
    assert {p.dtype for p in vae.parameters()} == {torch.bfloat16}


# wrong files


@suffixes
def test_other_models_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"wrong{suffix}"
    transformer = tiny.transformer().state_dict()
    for other in (transformer, published.original_names(transformer)):
        assert refusal(write(path, dict(other))) == f"{path.name} {NO_MODEL}"
    assert refusal(write(path, dict(tiny.wan_autoencoder().state_dict()))) == (
        f"{path.name} {NO_MODEL}"
    )


def test_a_training_checkpoint_is_refused(tmp_path: Path) -> None:
    weights = dict(tiny.transformer().state_dict())
    path = write(tmp_path / "x.pt", {"generator": weights, "step": 7})
    assert refusal(path) == f"weight file {path} holds a dict at 'generator', not a named tensor"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("encoder.0.weight", "is no tiny video autoencoder: it has no encoder.0.weight"),
        ("decoder.9.conv.0.weight", "is no tiny video autoencoder: it has no {}"),
        ("encoder.2.conv.weight", "lacks 1 of {count} tensors, first {}"),
        ("decoder.13.conv.weight", "lacks 1 of {count} tensors, first {}"),
        ("decoder.22.bias", "lacks 1 of {count} tensors, first {}"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, state: State, name: str, said: str) -> None:
    path = write(tmp_path / "x.pth", {key: x for key, x in state.items() if key != name})
    assert refusal(path) == f"x.pth {said.format(name, count=len(state))}"


def test_an_unexpected_tensor_is_named(tmp_path: Path, state: State) -> None:
    path = write(tmp_path / "x.pth", {**state, "decoder.23.weight": torch.ones(1)})
    assert refusal(path) == "x.pth has 1 that the model has not, first decoder.23.weight"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("encoder.0.weight", torch.tensor(1.0), "its encoder.0.weight is of shape ()"),
        ("decoder.1.weight", torch.ones(12), "its decoder.1.weight is of shape (12,)"),
        ("decoder.22.weight", torch.ones(0, 6, 3, 3), "of shape (0, 6, 3, 3)"),
        ("decoder.22.weight", torch.ones(2, 6, 3, 3), "in shape 2x6x3x3 where"),
        ("decoder.13.conv.weight", torch.ones(10, 10, 1, 1), "10x10x1x1 where the model has 20x"),
        ("decoder.13.conv.weight", torch.ones(40), "in shape 40 where the model has 20x10x1x1"),
        ("decoder.22.bias", torch.ones(3, dtype=torch.int8), "has decoder.22.bias as (int8"),
    ],
)
def test_tensors_of_another_shape_are_named(
    tmp_path: Path, state: State, name: str, value: Tensor, said: str
) -> None:
    refused = refusal(write(tmp_path / "x.pth", {**state, name: value}))
    assert refused.startswith("x.pth ")
    assert said in refused


@suffixes
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(
    tmp_path: Path, state: State, suffix: str, share: float
) -> None:
    path = write(tmp_path / f"x{suffix}", state)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    said = refusal(path)
    assert said.startswith(f"weight file {path} ")
    assert "truncated or" in said
