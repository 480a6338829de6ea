"""A sheet of moments instead of the whole edit, and files that are not replaced unasked."""

from __future__ import annotations

import errno
import os
import pty
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import tiny
from tests.edit_fixtures import model_folder_fixture  # noqa: F401
from tests.video_samples import make_video
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.config import EditConfig
from stillframe.jobs.preview import Moment, preview_file


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = (tiny.clip(60, 32, 48)[0] * 255).byte().permute(0, 2, 3, 1).numpy()
    return make_video(tmp_path / "in.mp4", list(frames))


def test_a_row_for_every_moment(clip: Path, tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    seen: list[Moment] = []
    shown = preview_file(
        pipe, clip, tmp_path / "sheet.png", prompt="oil", moments=3, on_moment=seen.append
    )
    assert shown == seen
    assert [moment.frame for moment in shown] == sorted({moment.frame for moment in shown})
    assert picture(tmp_path / "sheet.png").shape == (3 * 32, 4 * 48, 3)


def test_what_it_shows_is_what_an_edit_of_these_frames_ends_with(
    clip: Path, tmp_path: Path
) -> None:
    from stillframe.jobs.edit import edit_file

    pipe = tiny.pipeline()
    count = 3 * pipe.timeline.later_frames - pipe.timeline.pad
    (moment,) = preview_file(
        pipe, clip, tmp_path / "s.png", prompt="oil", moments=1, max_frames=count
    )
    report = edit_file(pipe, clip, tmp_path / "%03d.png", prompt="oil", max_frames=count)
    assert np.array_equal(picture(tmp_path / f"{count:03d}.png"), moment.pictures[2])
    assert moment.frame == count - 1
    assert moment.kept_share < 1 == report.kept_share_blocks[0]


def test_with_nothing_pruned_both_edits_are_one(clip: Path, tmp_path: Path) -> None:
    (moment,) = preview_file(
        tiny.pipeline(), clip, tmp_path / "s.png", prompt="oil", moments=1,
        config=EditConfig(method="full"),
    )  # fmt: skip
    assert np.array_equal(moment.pictures[1], moment.pictures[2])
    assert moment.kept_share == 1


def test_a_file_is_not_replaced_unasked(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    done = CliRunner().invoke(app, ["edit", str(clip), "-o", str(out), "--style", "oil", "-q"])
    assert done.exit_code == 2
    assert done.stderr == f"Error: {out} is there already: -y replaces it\n"
    assert out.read_bytes() == b"precious"


def all_of(terminal: int) -> str:
    """What was written to a terminal whose other end is closed; a read may bring but a part."""
    said = b""
    with open(terminal, "rb", buffering=0) as screen:
        try:
            while part := screen.read(10000):
                said += part
        except OSError as error:
            if error.errno != errno.EIO:  # which is what Linux says at the end
                raise
    return said.decode()


@pytest.mark.parametrize("answer", ["n", "y"])
def test_at_a_terminal_it_asks(
    clip: Path, model_folder: Path, tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.png"
    out.write_bytes(b"precious")
    words = ["edit", str(clip), "-o", str(out), "--style", "oil", "--preview", "1", "-q"]
    words += ["--model", str(model_folder)]
    ours, theirs = pty.openpty()
    with open(theirs, closefd=False) as keys, open(theirs, "w", closefd=False) as screen:
        monkeypatch.setattr(sys, "stdin", keys)
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        os.write(ours, f"{answer}\n".encode())
        with pytest.raises(SystemExit) as ended:
            app(words)
        monkeypatch.undo()
    os.close(theirs)
    assert f"{out} is there already. Replace?" in all_of(ours).replace("\r\n", "")
    code = ended.value.code
    assert (code, out.read_bytes() == b"precious") == ((2, True) if answer == "n" else (0, False))
