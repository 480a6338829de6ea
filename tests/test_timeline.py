"""A stream's geometry: what its numbers say is what frames that are pushed through it do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from tests import published, tiny
from tests.edit_fixtures import clip_path_fixture, tiny_pipe_fixture  # noqa: F401
from torch import Tensor

from stillframe.autoencoders.streaming import StreamingAutoencoder, open_autoencoder, timeline_of
from stillframe.controls import Controls, Cuts
from stillframe.jobs.edit import edit_file
from stillframe.loading.taehv import load_taehv
from stillframe.pipelines.causal_wan import CausalWanPipeline

FRAMES = 27


def taehv(folder: Path) -> Any:
    published.taehv_file(folder / "taew2_1.pth")
    return load_taehv(folder / "taew2_1.pth")


def wan_of_patches(_: Path) -> Any:
    """As Wan 2.2's, whose pixels are cut in patches before the first layer."""
    torch.manual_seed(3)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=tiny.CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * tiny.CHANNELS,
        latents_std=[1.0] * tiny.CHANNELS,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return vae.eval().requires_grad_(False)


MODELS: dict[str, Callable[[Path], Any]] = {
    "tiny": lambda _: tiny.autoencoder(),
    "taehv": taehv,
    "wan": lambda _: tiny.wan_autoencoder(),
    "wan of patches": wan_of_patches,
}


def first_change(a: Sequence[Tensor], b: Sequence[Tensor]) -> int | None:
    """The first frame in which two streams' results differ."""
    for number, (x, y) in enumerate(zip(a, b, strict=True)):
        if not torch.equal(x, y):
            return number
    return None


def encoded(stream: StreamingAutoencoder, video: Tensor) -> tuple[list[Tensor], list[int]]:
    """Latent frames of a video pushed frame by frame, and how many frames each block took."""
    stream.reset()
    latents: list[Tensor] = []
    taken: list[int] = []
    waiting = 0
    for frame in video.split(1, 1):
        waiting += 1
        for block in stream.encode(frame):
            latents += block.split(1, 2)
            taken.append(waiting)
            waiting = 0
    return latents, taken


def decoded(stream: StreamingAutoencoder, latents: list[Tensor]) -> list[list[Tensor]]:
    """The frames that come of each block."""
    stream.reset()
    size = stream.timeline.block_frames
    blocks = [torch.cat(latents[i : i + size], 2) for i in range(0, len(latents), size)]
    return [list(stream.decode(block).split(1, 1)) for block in blocks]


def clip_frames(vae: Any, latents: Tensor) -> int:
    """Frames that the autoencoder itself decodes a whole clip to, without a stream."""
    if isinstance(vae, AutoencoderKLWan):
        return int(vae.decode(latents).sample.shape[2])
    return int(vae.decode(latents).shape[1])


@torch.no_grad()
@pytest.mark.parametrize("block_frames", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_the_numbers_are_those_of_frames_that_are_pushed_through(
    kind: str, block_frames: int, tmp_path: Path
) -> None:
    vae = MODELS[kind](tmp_path)
    timeline = timeline_of(vae, block_frames)
    side = 2 * timeline.spatial
    video = torch.rand(1, FRAMES, 3, side, 2 * side)
    stream = open_autoencoder(vae, block_frames)
    latents, taken = encoded(stream, video)
    assert stream.timeline == timeline
    assert latents[0].shape[-2:] == (2, 4)
    assert taken == [timeline.taken_by(block) for block in range(len(taken))]
    assert taken[0] == timeline.first_frames
    assert set(taken[1:]) == {timeline.later_frames}
    # a frame of the source belongs to the first latent frame that it changes
    source: dict[int, list[int]] = {}
    for frame in range(sum(taken)):
        other = video.clone()
        other[:, frame] = 1 - other[:, frame]
        latent = first_change(latents, encoded(stream, other)[0])
        assert latent is not None
        source.setdefault(latent, []).append(frame)
    assert source == {i: list(timeline.source_frames(i)) for i in range(len(latents))}
    # and a frame of the result to the last latent frame that changes it
    blocks = decoded(stream, latents)
    made = [len(block) for block in blocks]
    assert [sum(made[:i]) for i in range(len(made) + 1)] == [
        timeline.decoded_from(i) for i in range(len(made) + 1)
    ]
    assert sum(made) == clip_frames(vae, torch.cat(latents, 2))
    shown = [frame for block in blocks for frame in block]
    output: dict[int, int] = {}
    for latent in range(len(latents)):
        others = [*latents[:latent], -latents[latent], *latents[latent + 1 :]]
        changed = [frame for block in decoded(stream, others) for frame in block]
        begun = first_change(shown, changed)
        assert begun == timeline.output_frames(latent).start
        output |= dict.fromkeys(range(begun, len(shown)), latent)
    assert output == {frame: timeline.output_latent(frame) for frame in range(len(shown))}
    for frame, latent in output.items():
        assert frame in timeline.output_frames(latent)


def test_an_edit_opens_as_many_streams_as_decode(
    tiny_pipe: CausalWanPipeline, clip_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[StreamingAutoencoder] = []
    decoding: set[int] = set()
    init, decode = StreamingAutoencoder.__init__, StreamingAutoencoder.decode

    def counted_init(self: StreamingAutoencoder, *args: Any) -> None:
        opened.append(self)
        init(self, *args)

    def counted_decode(
        self: StreamingAutoencoder, latents: Tensor, changed: Tensor | None = None
    ) -> Tensor:
        decoding.add(id(self))
        return decode(self, latents, changed)

    monkeypatch.setattr(StreamingAutoencoder, "__init__", counted_init)
    monkeypatch.setattr(StreamingAutoencoder, "decode", counted_decode)
    report = edit_file(
        tiny_pipe,
        clip_path,
        tmp_path / "out.mkv",
        prompt="sepia",
        compare=True,
        map_path=tmp_path / "map.mkv",
        masks_out=tmp_path / "masks.npz",
        control=Controls(Cuts()),
    )
    report.write(tmp_path / "report.json")
    assert report.frames_out == 30
    # three for edits and sources, and one that says what a change of latents looks like, once
    assert len(opened) == len(decoding) == 4
    assert {id(stream) for stream in opened} == decoding
    opened.clear()
    edit_file(tiny_pipe, clip_path, tmp_path / "again.mkv", prompt="sepia")
    assert len(opened) == 1
