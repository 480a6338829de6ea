"""Four dimensions of VBench, by its authors' package ``vbench``: a video judged by itself.

Their program reads a video file and writes its numbers to another, so that is how it is asked
(``VBench.evaluate`` on ``custom_input``, as of 0.1.5). It would fetch weights that it does not
find; here they must be on disk already, and nothing is downloaded. It pins an old ``transformers``,
so it may have to be installed without its requirements."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from stillframe.errors import ModelError
from stillframe.metrics.base import Metric, Score, first_line, installed, levels, register
from stillframe.video import VideoWriter

__all__ = ["BackgroundConsistency", "ImagingQuality", "MotionSmoothness", "SubjectConsistency"]

_FPS = 16.0  # its dimensions count frames, not seconds


@dataclass(frozen=True)
class _Dimension(Metric):
    """One of VBench's dimensions.

    Class attributes:
        dimension: what VBench calls it.
        weights: what it reads, relative to VBench's folder.
    """

    higher_is_better = True
    reference = "none"
    per_frame = False

    dimension: ClassVar[str]
    weights: ClassVar[tuple[str, ...]]

    def available(self) -> str | None:
        """None, or what is missing: the package, one that it needs, or weights."""
        if not installed("vbench"):
            return "VBench needs the package vbench: pip install vbench"
        try:
            importlib.import_module("vbench")
            importlib.import_module(f"vbench.{self.dimension}")
        except Exception as error:  # torchvision fails in its own ways if built for another torch
            return f"VBench's package vbench could not be imported: {first_line(error)}"
        missing = [path for name in self.weights if not (path := _folder() / name).exists()]
        if missing:
            return f"VBench needs weights for {self.dimension}, which are not at {missing[0]}"
        return None

    def least(self) -> tuple[int, int]:
        """Three frames, since motion is judged by leaving out every other one."""
        return 3, 32

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        with tempfile.TemporaryDirectory(prefix="stillframe-vbench-") as name:
            folder = Path(name)
            file = folder / "video.mp4"
            _write(file, video)
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                judge = importlib.import_module("vbench").VBench(video.device.type, "", name)
                judge.evaluate(
                    videos_path=str(file),
                    name="found",
                    prompt_list=[""],
                    dimension_list=[self.dimension],
                    local=True,
                    mode="custom_input",
                )
            results = folder / "found_eval_results.json"
            if not results.is_file():
                raise ModelError(f"VBench ended without a number for {self.dimension}")
            found = json.loads(results.read_text(encoding="utf-8"))
        return Score(float(found[self.dimension][0]), None)


def _folder() -> Path:
    """Where VBench keeps its weights."""
    given = os.environ.get("VBENCH_CACHE_DIR")
    return Path(given) if given else Path.home() / ".cache" / "vbench"


def _write(path: Path, video: Tensor) -> None:
    """A video as a file, as little changed as a codec can."""
    height, width = video.shape[-2:]
    with VideoWriter(path, width, height, 1 / Fraction(_FPS), _FPS, crf=0) as writer:
        for index, frame in enumerate(video):
            writer.write(levels(frame), index)


@register("vbench_subject")
@dataclass(frozen=True)
class SubjectConsistency(_Dimension):
    """Likeness of each frame's DINO features to the first frame's and the frame before's.

    Huang et al., "VBench: Comprehensive Benchmark Suite for Video Generative Models", CVPR 2024,
    subject consistency.

    Range: 0 to 1 (nothing moves). Higher is better, as far as the source allows. Reference: none.
    """

    summary = "constancy of DINO features (VBench, Huang et al. 2024)"

    dimension = "subject_consistency"
    weights = ("dino_model/facebookresearch_dino_main", "dino_model/dino_vitbase16_pretrain.pth")


@register("vbench_background")
@dataclass(frozen=True)
class BackgroundConsistency(_Dimension):
    """Likeness of each frame's CLIP features to the first frame's and the frame before's.

    Huang et al., CVPR 2024, background consistency.

    Range: 0 to 1 (nothing moves). Higher is better, as far as the source allows. Reference: none.
    """

    summary = "constancy of CLIP features (VBench, Huang et al. 2024)"

    dimension = "background_consistency"
    weights = ("clip_model/ViT-B-32.pt",)


@register("vbench_motion")
@dataclass(frozen=True)
class MotionSmoothness(_Dimension):
    """How well every other frame is foretold by interpolation between its neighbours (AMT).

    Huang et al., CVPR 2024, motion smoothness.

    Range: 0 to 1 (as interpolated). Higher is better. Reference: none.
    """

    summary = "likeness of frames to what lies between their neighbours (VBench, Huang et al. 2024)"

    dimension = "motion_smoothness"
    weights = ("amt_model/amt-s.pth",)


@register("vbench_imaging")
@dataclass(frozen=True)
class ImagingQuality(_Dimension):
    """Technical quality of single frames - noise, blur, exposure - by MUSIQ trained on SPAQ.

    Huang et al., CVPR 2024, imaging quality.

    Range: 0 to 1. Higher is better. Reference: none.
    """

    summary = "technical quality of frames by MUSIQ (VBench, Huang et al. 2024)"

    dimension = "imaging_quality"
    weights = ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",)
