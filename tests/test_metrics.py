"""The metrics against slow definitions and cases worked out by hand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.metric_videos import disturbed, noise, panned, usable
from torch import Tensor
from torch.nn.functional import avg_pool2d

from stillframe.errors import ModelError
from stillframe.metrics import Metric, Score, base, find_metric, metrics, register, vmaf
from stillframe.metrics.measures import PeakSignalToNoise
from stillframe.metrics.ms_ssim import MultiScaleSimilarity

# what holds for all of them


def test_there_is_one_of_each() -> None:
    names = ["cvvdp", "flicker", "lpips", "ms_ssim", "psnr", "ssim", "tlpips", "vbench_background"]
    names += [
        "vbench_imaging",
        "vbench_motion",
        "vbench_subject",
        "vmaf",
        "warp_error",
        "worst_patch",
    ]
    assert list(metrics()) == names


@pytest.mark.parametrize("name", list(metrics()))
def test_each_says_what_its_number_means(name: str) -> None:
    cls = find_metric(name)
    text = cls.__doc__ or ""
    better = "Higher" if cls.higher_is_better else "Lower"
    reference = {"dense": "the dense edit", "source": "the source", "none": "none"}[cls.reference]
    assert "Range: " in text
    assert f"{better} is better" in " ".join(text.split())
    assert f"Reference: {reference}" in " ".join(text.split())
    assert cls.summary
    with pytest.raises(FrozenInstanceError):
        cls().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", [n for n, m in metrics().items() if m.reference == "dense"])
def test_more_noise_is_worse_and_none_is_best(name: str) -> None:
    metric = usable(name)
    video = panned(height=176, width=192)
    found = [metric(disturbed(video, amount), video) for amount in (0.0, 0.05, 0.15, 0.4)]
    better = sorted(found, reverse=metric.higher_is_better)
    assert found == better
    assert len(set(found)) == 4
    best = {"psnr": math.inf, "ssim": 1, "ms_ssim": 1, "cvvdp": 10, "lpips": 0, "tlpips": 0}
    if name in best:
        assert found[0] == pytest.approx(best[name], abs=1e-6)


@pytest.mark.parametrize("name", ["psnr", "ssim", "ms_ssim", "lpips", "tlpips"])
def test_likeness_is_mutual(name: str) -> None:
    metric = usable(name)
    a, b = noise(2, 3, 176, 180), noise(2, 3, 176, 180, seed=2)
    assert metric(a, b) == pytest.approx(metric(b, a), rel=1e-6)


@pytest.mark.parametrize("name", list(metrics()))
def test_numbers_of_frames(name: str) -> None:
    metric = usable(name)
    video = panned(5, 176, 176, step=0)
    edit = disturbed(video, 0.2)
    score = metric.measure(edit, video)
    assert score.value == metric(edit, video)
    if not metric.per_frame:
        assert score.frames is None
        with pytest.raises(ValueError, match=f"^{name} is a number for a whole video"):
            metric.frames(edit, video)
        return
    frames = metric.frames(edit, video)
    assert frames.shape == (5,)
    assert frames.dtype == torch.float64
    assert score.frames is not None
    assert frames.tolist() == pytest.approx(score.frames.tolist(), rel=1e-9, nan_ok=True)
    first = {"flicker": 3, "warp_error": 1, "tlpips": 1}.get(name, 0)
    assert frames.isnan().tolist() == [t < first for t in range(5)]
    if name not in ("psnr", "worst_patch"):  # averages errors, a quantile of all patches
        assert score.value == pytest.approx(float(frames.nanmean()), rel=1e-9)


def test_half_precision_and_gradients_do_not_matter() -> None:
    video = panned()
    edit = disturbed(video, 0.1).half()
    expected = find_metric("psnr")()(edit.float(), video)
    assert find_metric("psnr")()(edit.requires_grad_(), video) == expected


VIDEO = torch.full((4, 3, 20, 24), 0.5)
WRONG = [
    ("psnr", VIDEO[0], VIDEO, r"^psnr takes a video of shape .*, got \(3, 20, 24\)$"),
    ("psnr", VIDEO.transpose(1, 3), VIDEO, r"^psnr takes a video of shape .*\(4, 24, 20, 3\)$"),
    ("psnr", VIDEO[:0], VIDEO, r"^psnr takes a video of shape .*\(0, 3, 20, 24\)$"),
    ("psnr", (VIDEO * 255).byte(), VIDEO, r"^psnr takes a video of numbers .* got torch.uint8$"),
    ("psnr", VIDEO * 255, VIDEO, r"^psnr takes a video of numbers .* got 128 to 128$"),
    ("psnr", VIDEO, VIDEO * 2 - 2, r"^psnr takes a reference of numbers .* got -1 to -1$"),
    ("psnr", VIDEO * math.nan, VIDEO, r"^psnr takes a video of numbers .* got nan to nan$"),
    ("psnr", VIDEO, VIDEO[:3], r"\(4, 3, 20, 24\) with one of \(3, 3, 20, 24\)$"),
    ("psnr", VIDEO, None, "^psnr compares with the dense video; none was given$"),
    ("flicker", VIDEO, None, "^flicker compares with the source video; none was given$"),
    ("flicker", VIDEO[:3], VIDEO[:3], "^flicker needs at least 4 frames of 1 x 1 .* got 3 of 24"),
    ("ssim", VIDEO[..., :10, :], VIDEO[..., :10, :], "^ssim needs .* 11 x 11 .* got 4 of 24 x 10$"),
    ("ms_ssim", VIDEO, VIDEO, "^ms_ssim needs at least 1 frames of 176 x 176 pixels"),
    ("warp_error", VIDEO[:1], VIDEO[:1], "^warp_error needs at least 2 frames"),
    ("vmaf", VIDEO, VIDEO, "^vmaf needs at least 1 frames of 32 x 32 pixels, got 4 of 24 x 20$"),
]


@pytest.mark.parametrize(("name", "video", "reference", "message"), WRONG)
def test_wrong_videos_are_refused(
    name: str, video: Tensor, reference: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_metric(name)()(video, reference)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ms_ssim", {"scales": 6}, "^ms_ssim has 1 to 5 scales, got 6$"),
        ("warp_error", {"flow": "guess"}, "^flow must be one of dis, raft, got 'guess'$"),
        ("lpips", {"net": "resnet"}, "^net must be one of alex, vgg, got 'resnet'$"),
        ("tlpips", {"net": "resnet"}, "^net must be one of alex, vgg, got 'resnet'$"),
        ("cvvdp", {"fps": 0.0}, r"^fps must be positive, got 0\.0$"),
        ("vmaf", {"threads": 0}, "^threads must be positive, got 0$"),
    ],
)
def test_wrong_parameters_are_refused(
    name: str, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_metric(name)(**parameters)


# the registry


@pytest.fixture
def _registry() -> Iterator[None]:
    before = dict(base._REGISTRY._kinds)
    yield
    base._REGISTRY._kinds = before


@pytest.mark.usefixtures("_registry")
def test_a_throw_away_metric() -> None:
    @register("brightness")
    @dataclass(frozen=True)
    class Brightness(Metric):
        summary = "mean of all numbers"
        higher_is_better = True
        reference = "none"

        def _measure(self, video: Tensor, reference: Tensor) -> Score:
            return Score(float(video.mean()), video.mean((1, 2, 3)).double())

    assert metrics()["brightness"] is Brightness
    assert find_metric("brightness")()(VIDEO) == 0.5
    with pytest.raises(ValueError, match=r"'brightness' is already the name of .*Brightness"):
        register("brightness")(find_metric("psnr"))
    with pytest.raises(ValueError, match="unknown metric 'vibes'; known: brightness, cvvdp, fl"):
        find_metric("vibes")


# PSNR


def test_psnr_by_hand() -> None:
    other = VIDEO.clone()
    other[0] += 0.1
    other[1, 0, 0, 0] += 0.3
    score = find_metric("psnr")().measure(other, VIDEO)
    size = 3 * 20 * 24
    errors = [0.1**2, 0.3**2 / size]
    expected = [-10 * math.log10(e) for e in errors]
    assert score.frames is not None
    assert score.frames[:2].tolist() == pytest.approx(expected, abs=1e-4)
    assert score.frames[2:].tolist() == [math.inf, math.inf]
    assert score.value == pytest.approx(-10 * math.log10(sum(errors) / 4), abs=1e-4)
    assert find_metric("psnr")()(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)) == 0


def test_psnr_is_the_streaming_measure_for_pictures_of_8_bits() -> None:
    a, b = (np.random.default_rng(i).integers(0, 256, (3, 8, 9, 3), np.uint8) for i in range(2))
    meter = PeakSignalToNoise()
    meter.add(a, b)
    videos = [torch.from_numpy(v).permute(0, 3, 1, 2) / 255 for v in (a, b)]
    assert find_metric("psnr")()(*videos) == pytest.approx(meter.db, abs=1e-5)


# SSIM

Plane = NDArray[np.float64]


def planes(frame: Tensor) -> Plane:
    r, g, b = frame.double().numpy()
    return np.asarray(0.299 * r + 0.587 * g + 0.114 * b)


def slow_factors(a: Plane, b: Plane) -> tuple[Plane, Plane]:
    """SSIM's factors place by place: weighted means, then weighted squares about them."""
    y, x = np.mgrid[-5:6, -5:6]
    window = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    window /= window.sum()
    luminance = np.empty((a.shape[0] - 10, a.shape[1] - 10))
    structure = np.empty_like(luminance)
    for i, j in np.ndindex(luminance.shape):
        p, q = (z[i : i + 11, j : j + 11] for z in (a, b))
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
        both = (window * (p - mp) * (q - mq)).sum()
        luminance[i, j] = (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
        structure[i, j] = (2 * both + 9e-4) / (vp + vq + 9e-4)
    return luminance, structure


def test_ssim_is_the_slow_loop() -> None:
    video = panned(2, 24, 33)
    edit = disturbed(video, 0.3)
    frames = find_metric("ssim")().frames(edit, video)
    for found, a, b in zip(frames, edit, video, strict=True):
        luminance, structure = slow_factors(planes(a), planes(b))
        assert float(found) == pytest.approx((luminance * structure).mean(), abs=1e-9)


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.25), torch.full((1, 3, 16, 16), 0.75)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert find_metric("ssim")()(a, b) == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_is_the_slow_loop_scale_by_scale() -> None:
    video = panned(1, 45, 50)
    edit = disturbed(video, 0.3)
    weights = np.array([0.0448, 0.2856, 0.3001])
    weights /= weights.sum()
    a, b = (v.double() for v in (edit, video))
    expected = 1.0
    for scale, weight in enumerate(weights):
        luminance, structure = slow_factors(planes(a[0]), planes(b[0]))
        last = scale == len(weights) - 1
        expected *= (luminance * structure if last else structure).mean() ** weight
        a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)  # grey is linear: before or after is the same
    assert MultiScaleSimilarity(scales=3)(edit, video) == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_of_one_scale_is_ssim_and_five_have_the_published_weights() -> None:
    video = panned(2, 30, 30)
    edit = disturbed(video, 0.2)
    one = MultiScaleSimilarity(scales=1)
    assert one(edit, video) == pytest.approx(find_metric("ssim")()(edit, video), abs=1e-12)
    assert MultiScaleSimilarity().weights() == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for scales in range(1, 5):
        assert sum(MultiScaleSimilarity(scales).weights()) == pytest.approx(1, abs=1e-12)


def test_ms_ssim_of_a_negative_is_no_less_than_nothing() -> None:
    video = panned(1, 176, 176)
    assert find_metric("ms_ssim")()(1 - video, video) == 0
    assert MultiScaleSimilarity(scales=1)(1 - video, video) == 0
    assert find_metric("ssim")()(1 - video, video) < 0


# VMAF


def test_vmaf_of_the_same_video_is_high_and_falls_with_noise() -> None:
    metric = find_metric("vmaf")()
    video = panned(5)
    found = [metric(disturbed(video, amount), video) for amount in (0, 0.1, 0.2, 0.4)]
    assert found[0] > 95
    assert all(a > b for a, b in pairwise(found))
    assert all(0 <= score <= 100 for score in found)


def test_vmaf_pairs_the_right_frames_at_any_size_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    video = panned(6, 33, 45)
    edit = video.clone()
    edit[3] = disturbed(video[3], 0.4)
    frames = find_metric("vmaf")().frames(edit, video)
    assert int(frames.argmin()) == 3
    assert float(frames[3]) < float(frames[[0, 1, 2, 4, 5]].min()) - 10
    assert (
        vmaf.VideoMultimethodAssessment(threads=1).frames(edit, video).tolist() == frames.tolist()
    )
    assert not list(tmp_path.iterdir())


def test_vmaf_says_what_ffmpeg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libvmaf, with another program in its place, and with frames it cannot take."""
    program, filters = vmaf._ffmpeg()
    monkeypatch.setattr(vmaf, "_ffmpeg", lambda: (program, filters.replace("libvmaf", "libgone")))
    reason = find_metric("vmaf")().available()
    assert reason == f"VMAF needs libvmaf, which {program} lacks"
    monkeypatch.setattr(vmaf, "_ffmpeg", lambda: (sys.executable, filters))
    with pytest.raises(ModelError, match=r"^ffmpeg could not compute VMAF: it ended with code 0$"):
        find_metric("vmaf")()(panned(4, 480, 640), panned(4, 480, 640))
    monkeypatch.setattr(vmaf, "_ffmpeg", lambda: (program, filters))
    with pytest.raises(ModelError, match=r"^ffmpeg could not compute VMAF: "):
        find_metric("vmaf")()._measure(VIDEO[..., :16, :16], VIDEO[..., :16, :16])


# without the optional packages

BLOCKED = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {folder})
import torch
from stillframe.errors import ModelError
from stillframe.metrics import find_metric, metrics
reasons = {name: metric().available() for name, metric in metrics().items()}
reasons["raft"] = find_metric("warp_error")(flow="raft").available()
video = torch.rand(4, 3, 176, 176)
for name, metric in metrics().items():
    try:
        value = metric()(video, video)
        assert reasons[name] is None, name
    except ModelError as error:
        assert str(error) == reasons[name], name
print(json.dumps(reasons))
"""


def reasons_without(names: set[str], folder: Path) -> dict[str, str | None]:
    code = BLOCKED.replace("{names}", repr(names)).replace("{folder}", repr(str(folder)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    reasons: dict[str, str | None] = json.loads(done.stdout)
    return reasons


def test_each_says_which_package_it_misses(tmp_path: Path) -> None:
    names = {"cv2", "imageio_ffmpeg", "lpips", "pycvvdp", "torchvision", "vbench"}
    vbench = "VBench needs the package vbench: pip install vbench"
    reasons = reasons_without(names, tmp_path)
    assert reasons == {
        "cvvdp": "ColorVideoVDP needs the package cvvdp: pip install 'stillframe[perceptual]'",
        "flicker": None,
        "lpips": "LPIPS needs the package lpips: pip install 'stillframe[perceptual]'",
        "ms_ssim": None,
        "psnr": None,
        "raft": "RAFT optical flow needs torchvision, which could not be imported: "
        "No module named 'torchvision'",
        "ssim": None,
        "tlpips": "LPIPS needs the package lpips: pip install 'stillframe[perceptual]'",
        "vbench_background": vbench,
        "vbench_imaging": vbench,
        "vbench_motion": vbench,
        "vbench_subject": vbench,
        "vmaf": "VMAF needs the package imageio-ffmpeg: pip install 'stillframe[metrics]'",
        "warp_error": "DIS optical flow needs OpenCV: pip install 'stillframe[metrics]'",
        "worst_patch": None,
    }


def test_a_package_that_cannot_be_imported_is_not_available(tmp_path: Path) -> None:
    """As where torchvision was built for another torch."""
    for package in ("lpips", "pycvvdp", "vbench"):
        (tmp_path / f"{package}.py").write_text("import torchvision\n")
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist\\nat line 1')\n"
    )
    reasons = reasons_without({"no_such_package"}, tmp_path)
    said = "could not be imported: operator torchvision::nms does not exist"
    assert reasons["lpips"] == reasons["tlpips"] == f"LPIPS needs torchvision, which {said}"
    assert reasons["cvvdp"] == f"ColorVideoVDP's package cvvdp {said}"
    assert reasons["vbench_motion"] == f"VBench's package vbench {said}"
    assert reasons["raft"] == f"RAFT optical flow needs torchvision, which {said}"
    assert reasons["vmaf"] is None
    assert reasons["warp_error"] is None
