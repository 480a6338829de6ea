"""Files of settings, prompts and paths that are made to break their reader: one sentence each."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.video_samples import gradient, make_video
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.controls import GivenMasks, RateTrace
from stillframe.errors import InputError, ModelError, OutputError, StillframeError
from stillframe.jobs.report import write_json
from stillframe.loading.adapt import parse_lora
from stillframe.loading.assemble import Source
from stillframe.loading.load import find_model, find_source
from stillframe.loading.recipes import read_recipes
from stillframe.loading.styles import load_styles
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.untrusted.numbers import check_number
from stillframe.untrusted.small_files import parse_toml
from stillframe.video import VideoReader, VideoWriter, check_file, check_output
from stillframe.video.demuxing import Demuxer

DEEP = "[" * 100_000
MASKS = b"stillframe masks\n"
TRACE = '{"format": "stillframe rate trace", "version": 1, "blocks": 1}\n'


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises((StillframeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "0x" not in message
    assert len(message) < 1500
    return message


def styles_of(folder: Path, data: bytes) -> str:
    (folder / "styles.json").write_bytes(data)
    return refusal(lambda: load_styles(folder))


def config_of(folder: Path, data: bytes) -> str:
    (folder / "transformer").mkdir(exist_ok=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "config.json").write_bytes(data)
    return refusal(lambda: Source("m", str(folder)).config("transformer"))


def file_of(read: Callable[[Path], object], head: bytes = b"") -> Callable[[Path, bytes], str]:
    def refused(folder: Path, data: bytes) -> str:
        (folder / "file").write_bytes(head + data)
        return refusal(lambda: read(folder / "file"))

    return refused


READERS: dict[str, Callable[[Path, bytes], str]] = {
    "styles": styles_of,
    "config": config_of,
    "masks": file_of(GivenMasks.read, MASKS),
    "trace": file_of(RateTrace.read),
    "trace block": file_of(RateTrace.read, TRACE.encode()),
    "recipes": file_of(read_recipes, b"a = "),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "data",
    [
        DEEP.encode(),
        b'{"a":' * 100_000,
        b"\xff\xfe\x00",
        b"[1e999]",
        b"[NaN]",
        b"1" * 5000,
        b'"\\ud800"',
        b"{}",
        b"null",
        b"",
    ],
)  # fmt: skip
def test_no_content_breaks_a_reader(reader: str, data: bytes, tmp_path: Path) -> None:
    if (reader, data) != ("config", b"{}"):
        READERS[reader](tmp_path, data)


@pytest.mark.parametrize("reader", ["styles", "config", "recipes"])
def test_files_have_a_largest_size(reader: str, tmp_path: Path) -> None:
    assert "more than" in READERS[reader](tmp_path, b" " * (2**22 + 1))


def test_large_files_of_masks_and_traces_are_not_read(tmp_path: Path) -> None:
    """They are sparse: nothing but their size is looked at."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2**40)
    for read in (GivenMasks.read, RateTrace.read):
        assert "more than" in refusal(lambda read=read: read(path))  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        "a." * 20_000 + "a = 1",
        "[" + "a." * 20_000 + "a]",
        "x = {" + "a . " * 20_000 + "= 1}",
        '"a".' * 20_000 + "a = 1",
        "1." * 20_000 + "1 = 1",
    ],
)
def test_keys_of_many_parts_take_no_memory(text: str) -> None:
    """tomllib takes memory by the square of their number."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "parts" in refusal(lambda: parse_toml(text))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_dots_that_are_in_no_key_are_welcome() -> None:
    numbers = ", ".join(f"{i}.5" for i in range(100))
    text = f"steps = [{numbers}]  # {'.' * 99}\ntitle = \"{'.' * 99}\"\nother = '{'.' * 99}'"
    assert len(parse_toml(text)["steps"]) == 100


HEADER = {"version": 3, "blocks": 0, "block_frames": 3, "height": 4, "width": 5, "patch": 16}
HEADER |= {"temporal": 4}


@pytest.mark.parametrize("name", [*HEADER, "frames", "tolerance", "tau1", "motion"])
@pytest.mark.parametrize("value", [10**30, -(10**30), 1e308, "x", [], None, True, 2.5])
def test_masks_have_bounded_numbers(name: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "masks"
    path.write_bytes(MASKS + json.dumps({**HEADER, name: value}).encode() + b"\n")
    fine = (name in ("tolerance", "tau1") and value in (None, 2.5)) or (
        (name, value) in (("version", True), ("motion", None))
    )
    if fine:
        GivenMasks.read(path)
    else:
        refusal(lambda: GivenMasks.read(path))


@pytest.mark.parametrize("value", ["10" + "0" * 30, "-1", "1.01", "NaN", "1e999", '"x"', "null"])
def test_traces_have_bounded_numbers(value: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for share, seconds in ((value, "1"), ("0.5", value)):
        block = f'{{"block": 0, "share": {share}, "seconds": {seconds}, "captured": false}}\n'
        path.write_text(TRACE + block)
        if seconds == "1.01":
            RateTrace.read(path)
        else:
            refusal(lambda: RateTrace.read(path))


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**30, float("nan"), float("inf"), True])
def test_numbers_of_any_size_are_refused_with_their_size(value: Any) -> None:
    message = refusal(lambda: check_number("n", value, 0, 10))
    assert message.startswith("n is a number from 0 to 10, got ")


# paths


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 2500, "a\0b"])
def test_paths_that_no_system_takes(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    for call in (
        lambda: VideoReader(str(place)),
        lambda: find_model(str(place)),
        lambda: find_source("tiny", str(place)),
        lambda: parse_lora(str(place)),
        lambda: parse_lora(f"{place}:0.5"),
        lambda: GivenMasks.read(place),
        lambda: check_file(place),
        lambda: check_output(place.with_suffix(".mp4")),
        lambda: check_output(f"{place}/a.mp4"),
    ):
        with pytest.raises((InputError, ModelError, OutputError, ValueError)) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "{0}", "-o", "o.mp4", "--prompt", "sepia"],
        ["edit", "{1}", "-o", "{0}.mp4", "--prompt", "sepia"],
        ["edit", "{1}", "-o", "o.mp4", "--prompt", "sepia", "--report", "{0}"],
        ["edit", "{1}", "-o", "o.mp4", "--prompt", "sepia", "--map", "{0}.mp4"],
        ["edit", "{1}", "-o", "o.mp4", "--prompt", "sepia", "--model", "{0}"],
        ["edit", "{1}", "-o", "o.mp4", "--prompt", "sepia", "--lora", "{0}"],
        ["edit", "{1}", "-o", "o.mp4", "--prompt", "sepia", "--vae", "{0}"],
        ["edit", "{1}", "-o", "o.mp4", "--prompt", "sepia", "--masks-in", "{0}"],
        ["edit", "{1}", "-o", "o.mp4", "--prompt", "sepia", "--masks-out", "{0}"],
        ["edit", "{1}", "-o", "o.mp4", "--prompt", "sepia", "--roi", "{0}"],
        ["styles", "--model", "{0}"],
        ["models", "plan", "{0}"],
        ["models", "convert", "{0}", "o"],
        ["models", "convert", "tiny", "{0}"],
        ["eval", "{0}", "-o", "o"],
        ["reproduce", "curve", "--clips", "{0}", "-o", "o"],
    ],
)
def test_commands_refuse_such_paths(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", [gradient(index) for index in range(3)])
    result = CliRunner().invoke(app, [part.format("x" * 5000, "clip.mp4") for part in arguments])
    assert result.exit_code == 2, result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert len(result.output) < 2500
    assert os.listdir(tmp_path) == ["clip.mp4"]


# prompts, rates, streams


def test_a_prompt_in_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    pipe = SimpleNamespace(compute_device="cpu")
    message = refusal(lambda: CausalWanPipeline.encode_prompt(pipe, "a\udcffb"))  # type: ignore[arg-type]
    assert "not valid text" in message
    arguments = ["generate", "-o", str(tmp_path / "o.mp4"), "--prompt", "a\udcffb"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "not valid text" in result.output


def test_a_report_names_a_file_in_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    write_json({"source": "a\udcff.mp4"}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_bytes()) == {"source": "a\udcff.mp4"}


@pytest.mark.parametrize("rate", ["1:5000000000", "1:2147483647", "2147483647:1", "1:7200"])
def test_a_frame_rate_that_is_none(rate: str, tmp_path: Path) -> None:
    path, frame = tmp_path / "a.y4m", b"FRAME\n" + bytes(64 * 48 * 3 // 2)
    path.write_bytes(f"YUV4MPEG2 W64 H48 F{rate} C420jpeg\n".encode() + 3 * frame)
    with VideoReader(path) as reader:
        assert 1 / 3600 <= reader.fps <= 1e5
        frames, tick = list(reader), reader.time_base
        assert len(frames) == 3
    try:
        with VideoWriter(tmp_path / "b.mp4", 64, 48, time_base=tick, fps=reader.fps) as writer:
            for read in frames:
                writer.write(read.pixels, read.pts)
    except OutputError:
        # no container holds pictures that are a century apart
        assert [path.name for path in tmp_path.iterdir()] == ["a.y4m"]


@pytest.mark.parametrize("fps", [2e-10, 0, -1, 1e7, float("nan"), float("inf"), 10**30])
def test_no_video_is_written_at_such_a_rate(fps: float, tmp_path: Path) -> None:
    assert "fps" in refusal(
        lambda: VideoWriter(tmp_path / "a.mp4", 64, 48, time_base=1, fps=fps)  # type: ignore[arg-type]
    )
    assert not list(tmp_path.iterdir())


def test_the_slowest_rate_is_written(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    tick = Fraction(3600)
    with VideoWriter(tmp_path / "a.mp4", 64, 48, time_base=tick, fps=1 / 3600) as writer:
        writer.write(pixels, 0)
        writer.write(pixels, 1)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert len(list(reader)) == 2


def test_streams_that_come_up_after_an_error_end_the_file() -> None:
    """PyAV counts streams once and runs over its table when there are more."""

    def packets() -> Any:
        yield SimpleNamespace(size=4, dts=0)
        raise IndexError("list index out of range")

    demuxer: Any = SimpleNamespace(container=SimpleNamespace(demux=packets))
    assert len(list(Demuxer._all_packets(demuxer))) == 1
