"""Whole edits of awkward files: how long they last, what is told, pictures in and out."""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from tests.edit_fixtures import (
    busy_frames,
    model_folder_fixture,  # noqa: F401
    tiny_pipe_fixture,  # noqa: F401
)
from tests.video_samples import decode, make_video, packets
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.jobs.edit import edit_file
from stillframe.pipelines.causal_wan import CausalWanPipeline

PROMPT = "oil painting"


def test_an_edit_lasts_as_long_as_its_source(tiny_pipe: CausalWanPipeline, tmp_path: Path) -> None:
    """A recording of a screen whose last picture stands for three seconds; so does the map."""
    path, times = tmp_path / "in.mkv", [*range(0, 800, 40), 1000, 4000]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, (start, end) in zip(busy_frames(21), pairwise(times), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = start, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.duration = end - start
                container.mux(packet)
    out, drawn = tmp_path / "out.mp4", tmp_path / "map.mkv"
    report = edit_file(tiny_pipe, path, out, prompt=PROMPT, map_path=drawn)
    assert (report.frames_out, report.damage, report.warnings) == (21, None, ())
    for made in (out, drawn):
        with av.open(str(made)) as container:
            assert float(container.duration or 0) / av.time_base == pytest.approx(4.0, abs=0.001)
        assert [round(float(time) * 1000) for time, _ in decode(made)] == times[:-1]


def test_the_first_frames_of_an_edit_have_their_sound(
    tiny_pipe: CausalWanPipeline, tmp_path: Path
) -> None:
    source = make_video(
        tmp_path / "in.mp4",
        busy_frames(50),
        options={"g": "50"},
        container_options={"movflags": "frag_keyframe+empty_moov"},
        sound="aac",
        sound_seconds=2.0,
    )
    out = tmp_path / "out.mkv"
    report = edit_file(tiny_pipe, source, out, prompt=PROMPT, max_frames=20)
    assert report.frames_out == 20
    heard = packets(out, "audio")
    end = float(decode(out)[0][0]) + 20 / 25
    assert end - 0.022 <= heard[-1][0] + 0.0214 <= end + 0.022


def test_hdr_and_lost_tracks_are_told_in_the_report(
    tiny_pipe: CausalWanPipeline, tmp_path: Path
) -> None:
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        stream.codec_context.color_trc = 16
        container.metadata["title"] = "A walk"
        for index, pixels in enumerate(busy_frames(12)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p10le"
            )
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    report = edit_file(tiny_pipe, path, tmp_path / "out.gif", prompt=PROMPT)
    assert len(report.warnings) == 2
    assert "HDR (PQ)" in report.warnings[0]
    assert "without title" in report.warnings[1]


def test_pictures_are_edited_into_pictures(tiny_pipe: CausalWanPipeline, tmp_path: Path) -> None:
    """The same pictures as from a video of them."""
    (tmp_path / "in").mkdir()
    frames = busy_frames(20)
    for index, pixels in enumerate(frames):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index:03d}.png")
    out = tmp_path / "out" / "%03d.png"
    report = edit_file(tiny_pipe, tmp_path / "in" / "%03d.png", out, prompt=PROMPT)
    assert (report.frames_in, report.frames_out, report.warnings) == (20, 20, ())
    assert sorted(os.listdir(tmp_path / "out")) == [f"{n:03d}.png" for n in range(1, 21)]
    video = make_video(
        tmp_path / "in.mkv",
        frames,
        codec="libx264rgb",
        pixel_format="rgb24",
        options={"qp": "0", "preset": "ultrafast"},
    )
    edit_file(tiny_pipe, video, tmp_path / "again" / "%03d.png", prompt=PROMPT)
    for name in os.listdir(tmp_path / "out"):
        first, second = (Image.open(tmp_path / place / name) for place in ("out", "again"))
        assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize(("given", "code"), [("white", 0), ("black", 0), ("pink", 2)])
def test_the_background_is_asked_for_on_the_command_line(
    model_folder: Path, tmp_path: Path, given: str, code: int
) -> None:
    clear = np.zeros((48, 64, 4), np.uint8)
    clear[..., 0] = 200
    (tmp_path / "in").mkdir()
    for index in range(12):
        Image.fromarray(clear).save(tmp_path / "in" / f"{index}.png")
    command = ["edit", str(tmp_path / "in"), "-o", str(tmp_path / "out.mkv"), "--style", "oil"]
    command += ["--model", str(model_folder), "--background", given, "-q"]
    command += ["--map", str(tmp_path / "map.mkv")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == code, done.output
    if code:
        assert "--background is black or white, got 'pink'" in done.output
        assert os.listdir(tmp_path) == ["in"]
    else:
        # the map shows the source: grey where nothing was computed, and marked elsewhere
        level = decode(tmp_path / "map.mkv")[-1][1].astype(int)
        assert np.ptp(level.mean(axis=(0, 1))) < 150
        assert (level.mean() > 100) == (given == "white")
