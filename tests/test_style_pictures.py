"""The pictures of a model's styles: made by the model, served with its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.edit_fixtures import (
    STYLES,
    busy_frames,
    model_folder_fixture,  # noqa: F401
    random_pipeline,
)
from tests.server_fixtures import get, serving
from tests.video_samples import make_video
from training.style_pictures import SMALL, frame_of, main, styled

from stillframe.loading.load import find_model, load_pipeline, model_styles, style_pictures


def test_a_style_is_a_row_of_what_the_model_makes(model_folder: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    make_video(clip, busy_frames(24, 96, 64))
    main([str(model_folder), "--clip", str(clip), "--frame", "20"])
    path = style_pictures(str(model_folder))
    assert path is not None
    with Image.open(path) as sheet:
        assert sheet.size == (SMALL[0], SMALL[1] * len(STYLES))
        rows = np.asarray(sheet.convert("RGB"), float).reshape(len(STYLES), *SMALL[::-1], 3)
    pipe, picture = load_pipeline(str(model_folder)), frame_of(clip, 20)
    for row, style in zip(rows, STYLES, strict=True):
        made = Image.fromarray(styled(pipe, picture, str(style["prompt"])))
        wanted = np.asarray(made.resize(SMALL, Image.Resampling.LANCZOS), float)
        assert np.abs(row - wanted).mean() < 8, "WebP loses a little"


def test_a_clip_that_is_too_short_is_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "short.mkv", busy_frames(3))
    with pytest.raises(ValueError, match="fewer than 10 frames"):
        frame_of(tmp_path / "short.mkv", 9)


def test_the_bundled_model_has_small_ones_and_the_server_hands_them_out() -> None:
    path = Path(find_model("tiny")) / "styles.webp"
    assert path.stat().st_size < 60_000
    with Image.open(path) as sheet:
        assert sheet.height % len(model_styles("tiny")) == 0
    with serving(random_pipeline(), style_pictures=style_pictures("tiny")) as server:
        answer = get(server, "/api/styles/pictures")
    assert (answer.status_code, answer.content) == (200, path.read_bytes())
    with serving(random_pipeline()) as server:
        assert get(server, "/api/styles/pictures").status_code == 404
