"""Edits confined to a region, and regions that move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from tests.edit_fixtures import (
    clip_path_fixture,  # noqa: F401
    tiny_pipe_fixture,  # noqa: F401
)
from tests.test_control import STILL, Run, scene
from tests.test_engine import H, W
from tests.tiny import clip
from tests.video_samples import LOSSLESS, decode, make_video
from torch import Tensor

from stillframe.autoencoders.streaming import open_autoencoder
from stillframe.autoencoders.timeline import Timeline
from stillframe.config import EditConfig
from stillframe.controls import Box, Controls, Cuts, Gop, MaskVideo, Refresh, Region
from stillframe.jobs.edit import edit_file
from stillframe.methods import find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.tokens.grid import Grid
from stillframe.video.control_files import VideoControlFiles

GRID = Grid(3, H // 16, W // 16)
LEFT = Box(0, 0, 0.5, 1)


def round_trip(vae: Any, video: Tensor) -> Tensor:
    """What the autoencoder alone makes of a video."""
    coder = open_autoencoder(vae, 3)
    with torch.inference_mode():
        blocks = [*coder.encode(video), *coder.flush()]
        return torch.cat([coder.decode(block) for block in blocks], 1)


def edited(pipe: Any, video: Tensor, control: Controls | None, **more: Any) -> Tensor:
    stream = pipe.stream("oil", control=control, generator=torch.Generator().manual_seed(0), **more)
    parts = [stream.push(video), stream.flush()]
    return torch.cat([part for part in parts if part is not None], 1)


@pytest.mark.parametrize(
    ("kind", "invert"), [("tiny", False), ("tiny", True), ("trimming", False), ("wan", False)]
)
def test_nothing_changes_outside_of_an_edit_and_much_does_inside(kind: str, invert: bool) -> None:
    pipe = tiny.pipeline(wan=kind == "wan")
    if kind == "trimming":
        pipe.vae = tiny.autoencoder(trim=3)
    video = clip(30)
    control = Controls(Gop(3), Refresh(4), Region(LEFT, "only", invert))
    result, around = edited(pipe, video, control), round_trip(pipe.vae, video)
    assert result.shape == video.shape
    half = video.shape[-1] // 2
    outside, inside = (slice(half, None), slice(0, half))[:: -1 if invert else 1]
    assert torch.equal(result[..., outside], around[..., outside])
    assert (result[..., inside] - around[..., inside]).abs().mean() > 0.001
    # without the second decoding, the decoder carries the edit across the border
    assert not torch.equal(edited(pipe, video, None)[..., outside], around[..., outside])


@pytest.mark.parametrize("execution", ["reference", "fused"])
@pytest.mark.parametrize("recovery", ["aligned", "clean", "none"])
def test_what_lies_outside_is_computed_in_whole_blocks_alone(recovery: str, execution: str) -> None:
    pipe = tiny.pipeline()
    seen: list[Any] = []
    method = InterFramePruning(tau1=0.0, recovery=recovery)
    edited(
        pipe, clip(60), Controls(Gop(3), Refresh(2), Region(LEFT, "only")), method=method,
        on_block=seen.append, execution=execution,
    )  # fmt: skip
    width = seen[0].keep.shape[-1]
    left = torch.arange(width) < width // 2
    for number, block in enumerate(seen):
        wanted = torch.ones_like(left) if number % 3 == 0 else left
        assert torch.equal(block.keep, wanted.expand_as(block.keep))


def test_inside_is_what_an_edit_of_everything_shows_while_all_is_whole() -> None:
    """Latents inside are those of the whole edit; a place that is not shown is still context."""
    latents = scene(0, 9, drift=0.2)
    control = Controls(Gop(1), Region(LEFT, "only"))
    run, whole = Run(control), Run(None, find_method("full")())
    # the recorder writes down what reaches the decoders: result and source in turn
    run.feed(latents)
    results, sources = run.coder.result[::2], run.coder.result[1::2]
    assert torch.equal(torch.cat(sources, 2), latents)
    mixed, full, half = torch.cat(results, 2), whole.feed(latents), W // 16
    assert torch.equal(mixed[..., :half], full[..., :half])
    assert torch.equal(mixed[..., half:], latents[..., half:])


def test_each_video_of_a_batch_is_confined() -> None:
    pipe = tiny.pipeline()
    video = torch.cat([clip(24), clip(24, seed=4)])
    control = Controls(Region(LEFT, "only"))
    stream = pipe.stream(["oil", "sepia"], control=control)
    parts = [stream.push(video), stream.flush()]
    result = torch.cat([part for part in parts if part is not None], 1)
    half = video.shape[-1] // 2
    assert torch.equal(result[..., half:], round_trip(pipe.vae, video)[..., half:])


def test_the_edit_that_is_compared_to_is_confined_as_well() -> None:
    asked = Controls(Gop(2), Cuts(), Region(LEFT, "only"))
    shown = asked.unpruned
    shown.check(find_method("full")())
    assert shown.find(Gop) is None
    video = clip(24)
    result = edited(tiny.pipeline(), video, shown, method="full")
    half = video.shape[-1] // 2
    assert torch.equal(result[..., half:], round_trip(tiny.autoencoder(), video)[..., half:])
    with pytest.raises(ValueError, match="a region that alone is edited"):
        asked.check(find_method("full")())


def moving_square(count: int) -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
    """A square of 16x16 in 64x96 that is one patch further right with every 4 pictures."""
    pictures = []
    for i in range(count):
        picture = np.zeros((H, W), np.bool_)
        picture[16:32, i // 4 % 6 * 16 : (i // 4 % 6 + 1) * 16] = True
        pictures.append(picture)
    return pictures


@pytest.mark.parametrize("mode", ["always", "never", "only"])
def test_a_region_moves_with_its_film(mode: str) -> None:
    method = STILL if mode == "always" else InterFramePruning(tau1=0.0)
    film = MaskVideo.pack(moving_square(72))
    run = Run(Controls(Region(film, mode)), method)
    run.feed(scene(0, 18))
    kept = torch.cat([block.keep[0] for block in run.blocks], 0)[3:]
    there = torch.zeros(18, GRID.height, GRID.width, dtype=torch.bool)
    for latent in range(18):
        there[latent, 1, latent % 6] = True
    assert torch.equal(kept, (~there if mode == "never" else there)[3:])


def test_a_film_goes_by_number_or_by_time_and_holds_its_end() -> None:
    pictures = moving_square(8)
    film = MaskVideo.pack(pictures, fps=25)
    assert [film.number(i) for i in (0, 3, 7, 8, 99)] == [0, 3, 7, 7, 7]
    twice = film.fitted(Timeline(fps=50))
    assert [twice.number(i) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    alike = film.fitted(Timeline(fps=25.02))
    assert [alike.number(i) for i in range(8)] == list(range(8))
    # every time that a clock of thirds gives must find its picture
    thirds = MaskVideo.pack(pictures * 9, fps=30 / 3).fitted(Timeline(fps=30))
    assert [thirds.number(3 * i) for i in range(72)] == list(range(72))
    assert all(torch.equal(film.picture(i), torch.from_numpy(p)) for i, p in enumerate(pictures))
    with pytest.raises(ValueError, match="1 or more pictures, got 0"):
        MaskVideo.pack([])
    with pytest.raises(ValueError, match=r"got \(2, 2\) after \(64, 96\)"):
        MaskVideo.pack([pictures[0], np.zeros((2, 2), np.bool_)])


def test_latent_frames_stand_for_the_frames_that_they_become() -> None:
    film = MaskVideo.pack(moving_square(30)).fitted(Timeline(pad=3))
    assert [film.numbers(i) for i in range(3)] == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    # the frames of a latent frame have two places: both are meant, and neither may go stale
    for mode, count in (("always", 2), ("only", 2), ("never", 0)):
        assert int(Region(film, mode).places(Grid(1, 4, 6), 1).sum()) == count
    assert Timeline(trim=9).output_frames(0) == range(0)
    assert film.fitted(Timeline(trim=9)).numbers(0) == [0]


def test_a_file_is_edited_where_a_mask_video_is_white(
    tmp_path: Path, clip_path: Path, tiny_pipe: Any
) -> None:
    white = [np.zeros((24, 32, 3), np.uint8) for _ in range(20)]
    for i, picture in enumerate(white):
        picture[:, :16] = 255 * (i < 12)
    mask = make_video(tmp_path / "mask.mkv", white, options=LOSSLESS)
    method = find_method("prune")()
    options = {"method": method.name, "roi": str(mask), "roi_mode": "only"}
    control = EditConfig.from_options(options, files=VideoControlFiles()).control
    assert control is not None
    region = control.find(Region)
    assert region is not None
    assert isinstance(region.shape, MaskVideo)
    none = Controls(Region(Box(0, 0, 1, 1), "only", invert=True))
    paths = [tmp_path / name for name in ("part.mkv", "none.mkv")]
    for path, asked in zip(paths, (control, none), strict=True):
        edit_file(tiny_pipe, clip_path, path, prompt="oil", crf=0, control=asked)
    part, unedited = (np.stack([frame for _, frame in decode(path)]) for path in paths)
    assert part.shape == (30, 48, 64, 3)
    # its colours are kept at half of the resolution, so a column at the border is mixed
    assert np.array_equal(part[:, :, 34:], unedited[:, :, 34:])
    assert np.array_equal(part[12:], unedited[12:])
    assert not np.array_equal(part[:12, :, :32], unedited[:12, :, :32])


@pytest.mark.parametrize("wan", [False, True])
def test_a_clip_takes_a_control_as_a_stream_does(wan: bool) -> None:
    """A box in pixels, and a film that goes by the autoencoder's own frames."""
    pipe = tiny.pipeline(wan=wan)
    video = clip(25)
    height, width = video.shape[-2:]
    box = Controls(Region(Box(0, 0, width // 2, height), "only"))
    around = round_trip(pipe.vae, video)[0]
    shown = pipe(video[0], "oil", output_type="pt", return_dict=False, control=box)[0][0]
    # packing a clip moves it to [-1, 1] and back
    assert torch.allclose(shown[..., width // 2 :], around[..., width // 2 :], atol=1e-6)
    assert not torch.allclose(shown, around, atol=1e-3)
    # white from the fifth frame on: that is latent frame 1 or, where the first stands for one, 2
    pictures = [np.full((2, 2), i >= 5) for i in range(25)]
    film = Controls(Region(MaskVideo.pack(pictures), "only"))
    shown = pipe(video[0], "oil", output_type="pt", return_dict=False, control=film)[0][0]
    first = 5 if wan else 4
    assert torch.allclose(shown[:first], around[:first], atol=1e-6)
    assert not torch.allclose(shown[first:], around[first:], atol=1e-3)
