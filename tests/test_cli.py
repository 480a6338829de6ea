"""The command line as a user meets it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.edit_fixtures import (
    STYLES,
    clip_path_fixture,  # noqa: F401
    model_folder_fixture,  # noqa: F401
)
from tests.video_samples import LOSSLESS, decode, make_video, noise, scramble
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.cli.interruption import Interruption
from stillframe.methods import methods
from stillframe.recovery import recoveries
from stillframe.video import VideoReader

COMMAND = [sys.executable, "-c", "from stillframe.cli import main; main()"]


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _edit(source: Path, out: Path, model: Path, *more: object) -> Any:
    return _run("edit", source, "-o", out, "--model", model, *more)


@pytest.fixture
def folder(tmp_path: Path, clip_path: Path) -> Path:
    """A folder with things that cannot be edited, and a clip that can."""
    shutil.copy(clip_path, tmp_path / "clip.mp4")
    (tmp_path / "text.mp4").write_text("this is not a video " * 50)
    (tmp_path / "empty.mp4").touch()
    for side in (1, 15):
        pixels = [noise(i, side, side) for i in range(3)]
        make_video(tmp_path / f"{side}.mkv", pixels, pixel_format="yuv444p")
    return tmp_path


def _listing(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("source", "out", "more", "said"),
    [
        ("none.mp4", "out.mp4", ["--prompt", "oil"], "none.mp4 does not exist"),
        ("text.mp4", "out.mp4", ["--prompt", "oil"], "text.mp4 (1000 bytes) is not a video"),
        ("empty.mp4", "out.mp4", ["--prompt", "oil"], "empty.mp4 (0 bytes) is not a video"),
        (".", "out.mp4", ["--prompt", "oil"], "is a folder"),
        ("1.mkv", "out.mp4", ["--prompt", "oil"], "1.mkv is 1x1 pixels"),
        ("15.mkv", "out.mp4", ["--prompt", "oil"], "15.mkv is 15x15 pixels"),
        ("clip.mp4", "clip.mp4", ["--prompt", "oil"], "is the video being read"),
        ("clip.mp4", "no/out.mp4", ["--prompt", "oil"], "there is no folder"),
        ("clip.mp4", "out.doc", ["--prompt", "oil"], "no known video extension"),
        ("clip.mp4", "/dev/full", ["--prompt", "oil"], "/dev/full"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--map", "no/map.mp4"], "no folder"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--map", "out.mp4"], "same file"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--report", "no/r.json"], "no folder"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--report", "clip.mp4"], "same file"),
        ("clip.mp4", "out.mp4", [], "either --prompt TEXT or --style NAME"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--style", "oil"], "either --prompt"),
        ("clip.mp4", "out.mp4", ["--style", "rococo"], "known are oil, sepia"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--method", "half"], "known: full, idm"),
        (
            "clip.mp4",
            "out.mp4",
            ["--prompt", "oil", "--method", "runlength:tresh=1"],
            "method 'runlength' has no tresh; it has recovery,",
        ),
        (
            "clip.mp4",
            "out.mp4",
            ["--prompt", "oil", "--recovery", "magic"],
            "known: aligned, clean, noisy, none",
        ),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--model", "huge"], "unknown model 'huge'"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--model", "."], "no model_index.json"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--method", "full", "--tau1", "1"], "no tau1"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--method", "full", "--rate", "0"], "no rate"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--method", "tome", "--rate", "0.6"], "0.5]"),
        (
            "clip.mp4",
            "out.mp4",
            ["--prompt", "oil", "--sigmas", "a,b"],
            "--sigmas is numbers",
        ),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--sigmas", "0.2,0.4"], "sigmas must fall"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--conditioning", "x"], "conditioning is"),
        (
            "clip.mp4",
            "out.mp4",
            ["--prompt", "oil", "--store", "x"],
            "--store is auto, exact",
        ),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--device", "abacus"], "unknown device"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--device", "cuda:99"], "is not there"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--dtype", "int8"], "--dtype is auto, float32"),
        ("clip.mp4", "out.mp4", ["--prompt", "oil", "--height", "8"], "16 or more"),
    ],
)
def test_refusals_are_one_sentence_and_change_nothing(
    folder: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    out: str,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(folder)
    before = _listing(folder)
    result = _edit(Path(source), Path(out), model_folder, *more)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert not result.stdout
    assert _listing(folder) == before


@pytest.mark.parametrize(
    ("damaged", "content"),
    [("model_index.json", "{"), ("styles.json", "[1]"), ("vae/config.json", "nothing")],
)
def test_damaged_models_are_refused(
    folder: Path, model_folder: Path, damaged: str, content: str
) -> None:
    broken = folder / "broken"
    shutil.copytree(model_folder, broken)
    (broken / damaged).write_text(content)
    result = _edit(folder / "clip.mp4", folder / "out.mp4", broken, "--prompt", "oil")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "broken" in result.stderr
    assert not (folder / "out.mp4").exists()


def test_an_edit_with_everything(folder: Path, model_folder: Path) -> None:
    out, map_path, report = (folder / name for name in ("out.mp4", "map.mp4", "report.json"))
    result = _edit(
        folder / "clip.mp4",
        out,
        model_folder,
        *("--style", "Oil", "--compare", "--map", map_path, "--report", report),
        *("--tau1", "0.05", "--recovery", "clean", "--sigmas", "0.9,0.5", "--seed", "4"),
        *("--frames", "20", "--conditioning", "sdedit", "--dtype", "float32", "--device", "cpu"),
        *("--store", "fp8"),
    )
    assert result.exit_code == 0, result.output
    assert not result.stderr
    assert f"{out}: 20 frames of 64x48" in result.stdout
    assert "without pruning" in result.stdout
    assert len(decode(out)) == len(decode(map_path)) == 20
    numbers = json.loads(report.read_text())
    assert numbers["frames_in"] == numbers["frames_out"] == 20
    assert (numbers["style"], numbers["prompt"]) == ("oil", "oil painting")
    assert (numbers["method"], numbers["recovery"], numbers["tau1"]) == ("prune", "clean", 0.05)
    assert (numbers["sigmas"], numbers["seed"]) == ([0.9, 0.5], 4)
    assert (numbers["conditioning"], numbers["device"]) == ("sdedit", "cpu")
    assert numbers["store"] == "fp8"
    assert numbers["model"] == str(model_folder)
    assert numbers["full"]["method"] == "full"
    assert numbers["seconds"]["load"] > 0


def test_quiet_says_nothing_and_thresholds_of_zero_keep_everything(
    folder: Path, model_folder: Path
) -> None:
    report = folder / "report.json"
    result = _edit(
        folder / "clip.mp4",
        folder / "out.mp4",
        model_folder,
        *("--prompt", "sepia", "--quiet", "--tau1", "0", "--report", report),
    )
    assert (result.exit_code, result.output) == (0, "")
    assert json.loads(report.read_text())["kept_share_blocks"] == [1.0, 1.0, 1.0]


def test_a_prompt_that_names_no_style_warns_and_goes_on(folder: Path, model_folder: Path) -> None:
    report = folder / "report.json"
    result = _edit(
        folder / "clip.mp4",
        folder / "out.mp4",
        model_folder,
        *("--prompt", "brutalism", "--report", report),
    )
    assert result.exit_code == 0
    assert "Warning: 'brutalism' names no style" in result.stderr
    assert "oil, sepia" in result.stderr
    numbers = json.loads(report.read_text())
    assert len(numbers["warnings"]) == 1
    assert numbers["style"] is None
    assert numbers["frames_out"] == 30


def test_what_a_prompt_is_taken_for_is_said_and_reported(folder: Path, model_folder: Path) -> None:
    report = folder / "taken.json"
    prompt = ("--prompt", "painted quietly", "--report", report, "--frames", "12")
    result = _edit(folder / "clip.mp4", folder / "taken.mp4", model_folder, *prompt)
    assert result.exit_code == 0, result.output
    assert "'painted quietly' is taken for the style oil, score 0.5" in result.stdout
    numbers = json.loads(report.read_text())
    assert (numbers["style"], numbers["style_score"]) == ("oil", 0.5)
    quiet = _edit(folder / "clip.mp4", folder / "taken.mp4", model_folder, *prompt, "--quiet")
    assert "taken for" not in quiet.output


def test_a_corrupt_middle_is_edited_around(folder: Path, model_folder: Path) -> None:
    frames = [noise(i) for i in range(40)]
    source = scramble(make_video(folder / "in.mp4", frames, options=LOSSLESS), 0.4, 0.5)
    result = _edit(source, folder / "out.mp4", model_folder, "--prompt", "oil painting")
    assert result.exit_code == 0
    assert "Warning: " in result.stderr
    with VideoReader(source) as reader:
        readable = sum(1 for _ in reader)
        assert reader.damage is not None
        assert reader.damage in result.stderr
    assert len(decode(folder / "out.mp4")) == readable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_acts(number: signal.Signals) -> None:
    def act(received: int, frame: object) -> None:
        raise InterruptedError(received)

    before = signal.signal(number, act)
    try:
        with Interruption() as interrupted:
            assert not interrupted()
            signal.raise_signal(number)
            assert interrupted()
            assert interrupted.code == 128 + number
            with pytest.raises(InterruptedError):
                signal.raise_signal(number)
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)


def test_interrupting_leaves_a_complete_file(folder: Path, model_folder: Path) -> None:
    frames = [noise(i % 40) for i in range(600)]
    source = make_video(folder / "long.mp4", frames, options={"preset": "ultrafast"})
    out, report = folder / "out.mkv", folder / "report.json"
    arguments = ["edit", source, "-o", out, "--model", model_folder, "--prompt", "oil"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--threads", "1", "--report", str(report), "--crf", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(part.stat().st_size > 50_000 for part in folder.glob(".stillframe-*/out.mkv")):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 130, complained
    assert "interrupted" in said
    assert "Traceback" not in complained
    written = len(decode(out))
    assert 0 < written < 600
    assert written % 12 == 0
    assert f"{written} frames" in said
    assert json.loads(report.read_text())["frames_out"] == written
    assert not list(folder.glob(".stillframe-*"))


def test_listings(model_folder: Path) -> None:
    shown = _run("styles", "--model", model_folder)
    assert shown.exit_code == 0
    for entry in STYLES:
        assert str(entry["name"]) in shown.stdout
        assert str(entry["summary"]) in shown.stdout
    listed = _run("methods")
    assert listed.exit_code == 0
    known: dict[str, Any] = {**methods(), **recoveries()}
    for name, kind in known.items():
        assert name in listed.stdout
        assert kind.summary.split()[0] in listed.stdout
        assert getattr(kind, "paper", "") in listed.stdout
    assert _run("models").exit_code == 0
    assert _run("--version").stdout.startswith("stillframe ")
    assert _run("styles", "--model", "huge").exit_code == 2


def test_a_rate_reaches_the_method(folder: Path, model_folder: Path) -> None:
    report = folder / "report.json"
    for method in ("tomesd", "runlength", "prune"):
        result = _edit(
            folder / "clip.mp4", folder / "out.mp4", model_folder, "--prompt", "oil",
            "--method", method, "--rate", "0.25", "--report", report, "-y",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        numbers = json.loads(report.read_text())
        assert numbers["method"] == method
        assert numbers["kept_share_blocks"] == pytest.approx([1, 0.75, 0.75], abs=0.03)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from stillframe.cli.app import app;"
        "app(['edit', '--help'], standalone_mode=False);"
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules or 'av' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--recovery" in result.stdout
    assert result.returncode == 0, result.stderr


def test_the_bundled_model_edits(folder: Path) -> None:
    report = folder / "report.json"
    result = _run(
        *("edit", folder / "clip.mp4", "-o", folder / "out.mp4", "--style", "oil"),
        *("--frames", 14, "--report", report),
    )
    assert result.exit_code == 0, result.output
    assert not result.stderr
    numbers = json.loads(report.read_text())
    assert (numbers["model"], numbers["frames_out"]) == ("tiny", 14)
    assert "tiny" in _run("models").stdout
    assert len(_run("styles").stdout.splitlines()) > 10
