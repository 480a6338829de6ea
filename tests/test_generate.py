"""Files from a prompt, by function and by command: complete or not there, and as asked for."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.edit_fixtures import model_folder_fixture, tiny_pipe_fixture  # noqa: F401
from tests.video_samples import Pixels, decode
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.errors import OutputError
from stillframe.jobs.generate import GENERATE_STAGES, GenerateReport, generate_file
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import VideoWriter

HEIGHT, WIDTH = 32, 48


def encoded(pipe: CausalWanPipeline, target: Path, seed: int) -> list[tuple[Fraction, Pixels]]:
    """30 frames of the pipeline's own stream as this encoder keeps them."""
    stream = pipe.generate_stream(
        "oil painting",
        num_frames=30,
        height=HEIGHT,
        width=WIDTH,
        generator=torch.Generator().manual_seed(seed),
    )
    frames = (torch.cat(list(stream), 1)[0] * 255).round().to(torch.uint8)
    with VideoWriter(target, WIDTH, HEIGHT, Fraction(1, 16), 16, crf=0) as writer:
        for i, pixels in enumerate(frames.permute(0, 2, 3, 1).numpy()):
            writer.write(pixels, i)
    return decode(target)


def make(pipe: CausalWanPipeline, target: Path, **options: Any) -> GenerateReport:
    usual: dict[str, Any] = {"prompt": "oil painting", "num_frames": 30, "crf": 0}
    return generate_file(pipe, target, **{**usual, "height": HEIGHT, "width": WIDTH, **options})


def test_a_file_holds_the_frames_of_a_call(tmp_path: Path, tiny_pipe: CausalWanPipeline) -> None:
    target = tmp_path / "out.mp4"
    seen: list[tuple[int, int | None]] = []
    report = make(
        tiny_pipe,
        target,
        seed=7,
        on_progress=lambda progress: seen.append((progress.frames_out, progress.frames_total)),
    )
    expected, other = (encoded(tiny_pipe, tmp_path / f"{seed}.mp4", seed) for seed in (7, 8))
    decoded = decode(target)
    assert [time for time, _ in decoded] == [Fraction(i, 16) for i in range(30)]
    for (_, got), (_, same), (_, different) in zip(decoded, expected, other, strict=True):
        assert np.array_equal(got, same)
        assert not np.array_equal(got, different)
    assert seen == [(12, 30), (24, 30), (30, 30)]
    assert (report.frames_out, report.width, report.height) == (30, WIDTH, HEIGHT)
    assert (report.fps, report.seed, report.interrupted) == (16.0, 7, False)
    assert report.sigmas == tiny_pipe.generation_settings().sigmas
    assert report.seconds["total"] == pytest.approx(sum(report.seconds[s] for s in GENERATE_STAGES))
    assert report.fps_made == pytest.approx(30 / report.seconds["total"])


@pytest.mark.parametrize(
    ("length", "frames"),
    [
        ({"seconds": 1.5}, 24),
        ({"seconds": 0.01}, 1),
        ({"seconds": 1, "fps": 30000 / 1001}, 30),
        ({"num_frames": 5, "fps": 8}, 5),
        ({}, 81),
    ],
)
def test_the_length_in_frames_or_seconds(
    tmp_path: Path, tiny_pipe: CausalWanPipeline, length: dict[str, Any], frames: int
) -> None:
    given = {"num_frames": None, "height": 16, "width": 16, **length}
    report = make(tiny_pipe, tmp_path / "out.mp4", sigmas=(1.0,), **given)
    decoded = decode(tmp_path / "out.mp4")
    assert len(decoded) == report.frames_out == frames
    rate = Fraction(length.get("fps", 16)).limit_denominator(1001)
    assert decoded[-1][0] == (frames - 1) / rate


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_stopping_leaves_whole_blocks_or_nothing(
    tmp_path: Path, tiny_pipe: CausalWanPipeline, blocks: int
) -> None:
    answers = [False] * blocks + [True]
    report = make(tiny_pipe, tmp_path / "out.mp4", stop=lambda: answers.pop(0))
    assert report.interrupted
    assert report.frames_out == 12 * blocks
    names = [path.name for path in tmp_path.iterdir()]
    assert names == (["out.mp4"] if blocks else [])
    if blocks:
        assert len(decode(tmp_path / "out.mp4")) == 12 * blocks


def test_stopping_after_the_last_block_is_no_interruption(
    tmp_path: Path, tiny_pipe: CausalWanPipeline
) -> None:
    done: list[int] = []
    report = make(
        tiny_pipe,
        tmp_path / "out.mp4",
        on_progress=lambda progress: done.append(progress.frames_out),
        stop=lambda: 30 in done,
    )
    assert (report.frames_out, report.interrupted) == (30, False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_the_middle_leaves_what_was_there(
    tmp_path: Path, tiny_pipe: CausalWanPipeline, error: type[BaseException]
) -> None:
    (tmp_path / "out.mp4").write_text("before")

    def fail(progress: Any) -> None:
        raise error

    with pytest.raises(error):
        make(tiny_pipe, tmp_path / "out.mp4", on_progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "before"


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"target": "out.doc"}, OutputError, "no known video extension"),
        ({"fps": 0}, ValueError, "fps must be 1 to 1000, got 0"),
        ({"fps": float("nan")}, ValueError, "got nan"),
        ({"seconds": 2.0}, ValueError, "either frames, 30, or seconds, 2.0"),
        ({"num_frames": None, "seconds": -1}, ValueError, "above 0 and below 1000000, got -1"),
        ({"crf": 99}, ValueError, "crf in 0..51"),
        ({"sigmas": (0.5,)}, ValueError, "starts at sigma 1, got 0.5"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_wrong_files_are_refused_and_none_is_left(
    tmp_path: Path,
    tiny_pipe: CausalWanPipeline,
    wrong: dict[str, Any],
    kind: type[Exception],
    said: str,
) -> None:
    options = dict(wrong)
    with pytest.raises(kind, match=said):
        make(tiny_pipe, tmp_path / options.pop("target", "out.mp4"), **options)
    assert not list(tmp_path.iterdir())


# the command line


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["generate", *(str(argument) for argument in arguments)])


def test_a_model_that_only_edits_says_so(tmp_path: Path) -> None:
    """The bundled one, which is the one that is used where none is named."""
    out = tmp_path / "out.mp4"
    done = _run("-o", out, "--prompt", "oil painting", "--frames", "3", "--quiet")
    assert (done.exit_code, done.stdout) == (2, "")
    said = "this model edits video and was not trained to make it from a prompt alone"
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_the_command_writes_a_file_and_a_report(tmp_path: Path, model_folder: Path) -> None:
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    result = _run(
        *("-o", out, "--prompt", "oil painting", "--model", model_folder, "--frames", 20),
        *("--height", 32, "--width", 48, "--sigmas", "1.0,0.5", "--seed", 3, "--fps", 12),
        *("--device", "cpu", "--dtype", "float32", "--report", report),
    )
    assert result.exit_code == 0, result.output
    assert not result.stderr
    assert f"{out}: 20 frames of 48x32" in result.stdout
    decoded = decode(out)
    assert len(decoded) == 20
    assert decoded[-1][0] == Fraction(19, 12)
    assert decoded[0][1].shape == (32, 48, 3)
    numbers = json.loads(report.read_text())
    assert (numbers["frames_out"], numbers["fps"], numbers["seed"]) == (20, 12.0, 3)
    assert (numbers["sigmas"], numbers["prompt"]) == ([1.0, 0.5], "oil painting")
    assert numbers["model"] == str(model_folder)
    assert numbers["seconds"]["load"] > 0
    assert numbers["cache_bytes"] > 0


def test_sizes_and_steps_have_defaults_and_quiet_says_nothing(
    tmp_path: Path, model_folder: Path
) -> None:
    result = _run(
        *("-o", tmp_path / "out.mp4", "--prompt", "oil", "--model", model_folder),
        *("--seconds", "0.5", "--steps", 1, "--quiet"),
    )
    assert (result.exit_code, result.output) == (0, "")
    decoded = decode(tmp_path / "out.mp4")
    assert len(decoded) == 8
    assert decoded[0][1].shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--sigmas", "0.8,0.5"], "starts at sigma 1, got 0.8"),
        (["--sigmas", "a"], "--sigmas is numbers between commas"),
        (["--sigmas", "1,0.5", "--steps", "2"], "give either steps, 2, or sigmas"),
        (["--height", "50"], "multiples of 16, got 50"),
        (["--frames", "3", "--seconds", "3"], "either frames, 3, or seconds, 3.0"),
        (["--fps", "0"], "Input should be greater than or equal to 1"),
        (["--model", "huge"], "unknown model 'huge'"),
        (["--device", "abacus"], "unknown device"),
        (["--report", "no/report.json"], "there is no folder"),
        (["--report", "out.mp4"], "same file"),
        (["-o", "out.doc"], "no known video extension"),
        (["-o", "no/out.mp4"], "there is no folder"),
    ],
)
def test_refusals_are_one_sentence_and_leave_no_file(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run("-o", "out.mp4", "--prompt", "oil", "--model", model_folder, *more)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert not result.stdout
    assert not list(tmp_path.iterdir())
