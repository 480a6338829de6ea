"""A tiny model, a short clip and folders of them, for the tests of ``stillframe.evaluation``."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from tests.edit_fixtures import busy_frames, random_pipeline
from tests.video_samples import LOSSLESS, Pixels, make_video

from stillframe.evaluation.experiments import Bench, Scale
from stillframe.evaluation.matrix import Matrix, Progress
from stillframe.evaluation.runs import Plan
from stillframe.evaluation.sources import find_clips
from stillframe.methods import base as method_registry

__all__ = [
    "QUICK",
    "clean_methods_fixture",
    "listing",
    "make_bench",
    "make_matrix",
    "plan_fixture",
    "write_picture",
]

#: Metrics that are cheap on small frames, one for each kind of reference.
QUICK = ("psnr", "ssim", "flicker")


def write_picture(path: Path, pixels: Pixels) -> Path:
    """One frame as JPEG or PNG, by PyAV alone."""
    is_png = path.suffix == ".png"
    codec: Any = av.CodecContext.create("png" if is_png else "mjpeg", "w")
    codec.height, codec.width = pixels.shape[:2]
    codec.pix_fmt, codec.time_base = "rgb24" if is_png else "yuvj444p", Fraction(1, 25)
    if not is_png:
        codec.options = {"qscale": "2", "flags": "+qscale", "global_quality": "200"}
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=codec.pix_fmt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes(p) for p in [*codec.encode(frame), *codec.encode(None)]))
    return path


@pytest.fixture(name="plan", scope="session")
def plan_fixture(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A random model and two clips of 36 frames of 128x48; a square moves in the left half."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "clips").mkdir()
    for index, name in enumerate(("one", "two")):
        frames = busy_frames(36, width=128, move=14 + 4 * index)
        make_video(folder / "clips" / f"{name}.mp4", frames, options=LOSSLESS)
    clips = find_clips([folder / "clips"])
    return Plan(random_pipeline(), "random", clips, folder / "out", metric_names=QUICK)


def make_matrix(plan: Plan, out: Path, progress: Progress | None = None, **more: Any) -> Matrix:
    """A matrix over the plan's clips in another folder."""
    conditions = plan.conditions(24, None, None)
    names = more.get("metric_names", QUICK)
    return Matrix(plan.pipe, plan.clips, conditions, out, names, progress)


def make_bench(plan: Plan, out: Path, **more: Any) -> Bench:
    """A bench of the smallest scale."""
    scale = Scale(
        frames=36,
        height=None,
        width=None,
        clips=1,
        paired_clips=1,
        probed_clips=1,
        prompts=("oil painting", "sepia"),
        rates=(0.2, 0.4),
    )
    conditions = plan.conditions(scale.frames, None, None)
    matrix = Matrix(plan.pipe, plan.clips, conditions, out, QUICK)
    return Bench(plan.pipe, matrix, plan.clips, scale, more.get("bundled", False))


def listing(folder: Path) -> dict[str, int]:
    """Files and when they were written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(name="clean_methods")
def clean_methods_fixture() -> Iterator[None]:
    """What a test registers as a method is gone after it."""
    registry: dict[str, Any] = method_registry._REGISTRY._kinds
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)
