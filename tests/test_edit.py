"""Editing files: the same frames as the pipeline makes, at the same times, whatever the file."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from tests.edit_fixtures import (
    busy_frames,
    clip_path_fixture,  # noqa: F401
    random_pipeline,
    tiny_pipe_fixture,  # noqa: F401
)
from tests.video_samples import LOSSLESS, decode, make_video, noise, packets, scramble

from stillframe.errors import InputError, OutputError
from stillframe.jobs.edit import Progress, edit_file
from stillframe.jobs.report import DENOISING_STAGES, STAGES
from stillframe.methods import find_method
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import VideoReader, VideoWriter

PROMPT = "oil painting"


def _pruning(tau1: float = 0.05) -> Any:
    """Pruning at a threshold that suits latents of random weights."""
    return find_method("prune")(tau1=tau1)  # type: ignore[call-arg]


def _frames(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([pixels for _, pixels in decode(path)])


def _by_stream(pipe: CausalWanPipeline, path: Path, method: Any, seed: int) -> Any:
    """Frames (T, H, W, 3) uint8 that a stream makes of a clip that is pushed all at once."""
    with VideoReader(path) as reader:
        video = np.stack([frame.pixels for frame in reader])
    stream = pipe.stream(PROMPT, method=method, generator=torch.Generator().manual_seed(seed))
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255
    parts = [stream.push(frames.unsqueeze(0)), stream.flush()]
    made = torch.cat([part for part in parts if part is not None], 1)[0]
    return (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_a_file_holds_what_a_stream_makes(
    tiny_pipe: CausalWanPipeline, clip_path: Path, tmp_path: Path
) -> None:
    edited, again = tmp_path / "edited.mp4", tmp_path / "again.mp4"
    report = edit_file(
        tiny_pipe, clip_path, edited, prompt=PROMPT, method=_pruning(), seed=3, crf=0
    )
    made = _by_stream(tiny_pipe, clip_path, _pruning(), 3)
    with VideoWriter(again, 64, 48, Fraction(1, 25), 25, crf=0) as writer:
        for index, pixels in enumerate(made):
            writer.write(pixels, index)
    assert 0 < report.kept_share < 1
    assert (_frames(edited) == _frames(again)).all()


@pytest.mark.parametrize("frames", [1, 3, 9, 10, 12, 13, 23])
@pytest.mark.parametrize("autoencoder", ["whole", "trimmed", "wan"])
def test_as_many_frames_come_out_as_go_in(frames: int, autoencoder: str, tmp_path: Path) -> None:
    pipe = random_pipeline(trim=3 if autoencoder == "trimmed" else 0)
    if autoencoder == "wan":
        pipe.register_modules(vae=tiny.wan_autoencoder())
    source = make_video(tmp_path / "in.mp4", busy_frames(frames, 32, 32, move=2))
    target, map_path = tmp_path / "out.mp4", tmp_path / "map.mp4"
    report = edit_file(pipe, source, target, prompt=PROMPT, map_path=map_path)
    times = [seconds for seconds, _ in decode(source)]
    assert report.frames_in == report.frames_out == len(times) == frames
    assert [seconds for seconds, _ in decode(target)] == times
    assert [seconds for seconds, _ in decode(map_path)] == times


def test_uneven_times_and_sound_are_kept(tiny_pipe: CausalWanPipeline, tmp_path: Path) -> None:
    times = [0, 1, 4, 5, 11, 12, 13, 27, 28, 29, 30, 41, 42, 43, 44, 60]
    source = make_video(
        tmp_path / "in.mp4",
        busy_frames(len(times)),
        time_base=Fraction(1, 30),
        pts=times,
        sound="aac",
        sound_seconds=2.0,
    )
    report = edit_file(tiny_pipe, source, tmp_path / "out.mp4", prompt=PROMPT)
    out = tmp_path / "out.mp4"
    assert [t for t, _ in decode(out)] == [t for t, _ in decode(source)]
    assert [t for t, _ in decode(out)] == [Fraction(t, 30) for t in times]
    assert [data for _, data in packets(out, "audio")] == [
        data for _, data in packets(source, "audio")
    ]
    assert not report.warnings


def test_sound_that_the_container_cannot_hold_is_a_warning(
    tiny_pipe: CausalWanPipeline, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "in.mp4", busy_frames(5), sound="aac", sound_seconds=0.2)
    report = edit_file(tiny_pipe, source, tmp_path / "out.gif", prompt=PROMPT)
    assert len(report.warnings) == 1
    assert "no sound" in report.warnings[0]


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [
        ((65, 49), {}, (64, 48)),
        ((50, 34), {}, (50, 34)),
        ((128, 96), {}, (64, 48)),
        ((96, 128), {}, (48, 64)),
        ((64, 48), {"height": 32}, (42, 32)),
        ((64, 48), {"width": 32, "height": 40}, (32, 40)),
        ((64, 48), {"height": 96}, (128, 96)),
        ((16, 16), {}, (16, 16)),
    ],
)
def test_sizes(
    tiny_pipe: CausalWanPipeline,
    tmp_path: Path,
    size: tuple[int, int],
    asked: dict[str, Any],
    expected: tuple[int, int],
) -> None:
    source = make_video(
        tmp_path / "in.mkv", [noise(i, *size) for i in range(2)], pixel_format="yuv444p"
    )
    out, map_path = tmp_path / "out.mp4", tmp_path / "map.mp4"
    report = edit_file(tiny_pipe, source, out, prompt=PROMPT, map_path=map_path, **asked)
    assert (report.source_width, report.source_height) == size
    assert (report.width, report.height) == expected
    for path in (out, map_path):
        assert _frames(path).shape == (2, expected[1], expected[0], 3)


def test_the_map_dims_what_was_not_recomputed(
    tiny_pipe: CausalWanPipeline, clip_path: Path, tmp_path: Path
) -> None:
    map_path = tmp_path / "map.mp4"
    masks: list[Any] = []
    tiny_pipe(
        np.stack(busy_frames(30)),
        PROMPT,
        method=_pruning(),
        callback_on_block_end=lambda stats: masks.append(stats.keep[0].numpy()),
    )
    report = edit_file(
        tiny_pipe,
        clip_path,
        tmp_path / "out.mp4",
        prompt=PROMPT,
        method=_pruning(),
        map_path=map_path,
        crf=1,
    )
    keep = np.concatenate(masks).repeat(4, 0)[:30]
    assert report.kept_share_blocks == tuple(float(mask.mean()) for mask in masks)
    source, drawn = np.stack(busy_frames(30)).mean(3), _frames(map_path).mean(3)
    for t in range(30):
        for y, x in np.ndindex(*keep.shape[1:]):
            patch = np.s_[t, 16 * y : 16 * y + (16 if y < 2 else 8), 16 * x : 16 * x + 16]
            ratio = drawn[patch].mean() / source[patch].mean()
            assert (ratio > 0.7) == keep[t, y, x], (t, y, x, ratio)


def _psnr(a: Any, b: Any) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_compare_measures_pruned_against_full(
    tiny_pipe: CausalWanPipeline, clip_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    report = edit_file(
        tiny_pipe, clip_path, out, prompt=PROMPT, method=_pruning(), seed=5, compare=True
    )
    pruned = _by_stream(tiny_pipe, clip_path, _pruning(), 5)
    full = _by_stream(tiny_pipe, clip_path, "full", 5)
    assert report.psnr_vs_full_db == pytest.approx(_psnr(pruned, full), abs=1e-6)
    assert report.full is not None
    assert (report.full.method, report.full.recovery) == ("full", "none")
    assert set(report.full.kept_share_blocks) == {1.0}
    assert report.speedup_total == pytest.approx(
        report.full.seconds["total"] / report.seconds["total"]
    )
    spent = [sum(r.seconds[s] for s in DENOISING_STAGES) for r in (report.full, report)]
    assert report.speedup_denoise == pytest.approx(spent[0] / spent[1])
    assert report.flicker is not None
    assert report.full.flicker is not None
    assert 0 < (report.static_share or 0) < 1


def test_full_against_full_is_identical(
    tiny_pipe: CausalWanPipeline, clip_path: Path, tmp_path: Path
) -> None:
    report = edit_file(
        tiny_pipe, clip_path, tmp_path / "out.mp4", prompt=PROMPT, method="full", compare=True
    )
    assert report.psnr_vs_full_db == math.inf
    assert report.full is not None
    assert report.flicker == report.full.flicker
    report.write(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert float(read["psnr_vs_full_db"]) == math.inf


def test_the_report_agrees_with_itself(
    tiny_pipe: CausalWanPipeline, clip_path: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []
    report = edit_file(
        tiny_pipe,
        clip_path,
        tmp_path / "out.mp4",
        prompt=PROMPT,
        method=_pruning(),
        load_seconds=7.0,
        on_progress=told.append,
    )
    assert report.kept_share == pytest.approx(np.mean(report.kept_share_blocks))
    assert len(report.kept_share_blocks) == math.ceil(report.frames_in / 12)
    assert report.seconds["total"] == pytest.approx(sum(report.seconds[s] for s in STAGES))
    assert report.seconds["load"] >= 7
    assert report.fps * report.seconds["total"] == pytest.approx(report.frames_out)
    assert min(report.cache_bytes, report.recovery_bytes, report.peak_memory_bytes or 1) > 0
    assert [p.frames_out for p in told] == [12, 24, 30]
    assert told[-1].kept_share == report.kept_share
    assert told[-1].frames_total == report.frames_in == 30


@pytest.mark.parametrize("asked_at", [12, 20])
def test_stopping_leaves_a_complete_file_of_whole_blocks(
    tiny_pipe: CausalWanPipeline, clip_path: Path, tmp_path: Path, asked_at: int
) -> None:
    whole, part, map_path = tmp_path / "whole.mp4", tmp_path / "part.mp4", tmp_path / "map.mp4"
    edit_file(tiny_pipe, clip_path, whole, prompt=PROMPT, crf=0)
    calls = iter(range(1, 100))
    report = edit_file(
        tiny_pipe,
        clip_path,
        part,
        prompt=PROMPT,
        crf=0,
        map_path=map_path,
        stop=lambda: next(calls) == asked_at,
    )
    assert report.interrupted
    assert (report.frames_in, report.frames_out) == (asked_at, 12)
    assert (_frames(part) == _frames(whole)[:12]).all()
    assert len(_frames(map_path)) == 12


def test_stopping_before_the_first_block_writes_nothing(
    tiny_pipe: CausalWanPipeline, clip_path: Path, tmp_path: Path
) -> None:
    report = edit_file(
        tiny_pipe,
        clip_path,
        tmp_path / "out.mp4",
        prompt=PROMPT,
        map_path=tmp_path / "map.mp4",
        stop=lambda: True,
    )
    assert report.interrupted
    assert report.frames_out == 0
    assert not list(tmp_path.iterdir())


def test_a_corrupt_middle_is_left_out_and_told(
    tiny_pipe: CausalWanPipeline, tmp_path: Path
) -> None:
    frames = [noise(i) for i in range(40)]
    source = scramble(make_video(tmp_path / "in.mp4", frames, options=LOSSLESS), 0.4, 0.5)
    report = edit_file(tiny_pipe, source, tmp_path / "out.mp4", prompt=PROMPT)
    with VideoReader(source) as reader:
        times = [frame.pts * reader.time_base for frame in reader]
        assert report.damage == reader.damage
    assert report.damage is not None
    assert report.damage in report.warnings[0]
    assert [t for t, _ in decode(tmp_path / "out.mp4")] == times
    assert report.frames_out == len(times)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow past 20 kB: writing on fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_everything_as_it_was(
    tiny_pipe: CausalWanPipeline, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = make_video(tmp_path / "in.mp4", [noise(i) for i in range(30)])
    old = tmp_path / "out.mp4"
    old.write_bytes(b"what was there before")
    request.getfixturevalue("small_disk")
    with pytest.raises(OutputError, match=r"(out|map)\.mp4 could not be written"):
        edit_file(tiny_pipe, source, old, prompt=PROMPT, crf=0, map_path=tmp_path / "map.mp4")
    assert old.read_bytes() == b"what was there before"
    assert not list(tmp_path.glob(".stillframe-*"))


def test_refusals(tiny_pipe: CausalWanPipeline, clip_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with pytest.raises(InputError, match="does not exist"):
        edit_file(tiny_pipe, tmp_path / "none.mp4", out, prompt=PROMPT)
    with pytest.raises(OutputError, match="same file"):
        edit_file(tiny_pipe, clip_path, out, prompt=PROMPT, map_path=tmp_path / "." / "out.mp4")
    with pytest.raises(OutputError, match="no folder"):
        edit_file(tiny_pipe, clip_path, out, prompt=PROMPT, map_path=tmp_path / "no" / "map.mp4")
    with pytest.raises(ValueError, match="at least 1 frame must be edited, got 0"):
        edit_file(tiny_pipe, clip_path, out, prompt=PROMPT, max_frames=0)
    with pytest.raises(ValueError, match="unknown method 'half'"):
        edit_file(tiny_pipe, clip_path, out, prompt=PROMPT, method="half")
    assert not list(tmp_path.iterdir())
