"""VBench's dimensions, asked through a package of its shape: its files, signatures and results.

Their program and its weights are gigabytes. What stands in for them here takes the arguments that
version 0.1.5 takes, insists on the file that it would read, and writes what it would write.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.metric_videos import panned

from stillframe.errors import ModelError
from stillframe.metrics import find_metric, metrics
from stillframe.metrics.vbench import ImagingQuality

NAMES = [name for name in metrics() if name.startswith("vbench_")]

# the signatures of vbench 0.1.5; the number is the mean of all pixels of the file it is given
PACKAGE = """
import importlib, json, os
import av

class VBench(object):
    def __init__(self, device, full_info_dir, output_path):
        assert device == "cpu"
        self.output_path = output_path
        os.makedirs(self.output_path, exist_ok=True)

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False,
                 read_frame=False, mode="vbench_standard", **kwargs):
        assert mode == "custom_input" and local and len(prompt_list) == 1
        print("it talks")
        results = {}
        for dimension in dimension_list:
            module = importlib.import_module(f"vbench.{dimension}")
            compute = getattr(module, f"compute_{dimension}")
            with av.open(videos_path) as file:
                frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
            results[dimension] = compute(frames)
        if SAVES:
            with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as file:
                json.dump(results, file)
"""
DIMENSION = """
def compute_{name}(frames):
    mean = sum(float(f.mean()) for f in frames) / len(frames) / 255
    return mean, [{{"video_path": "", "video_results": mean, "frames": len(frames)}}]
"""


@pytest.fixture(name="package")
def package_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "vbench"
    folder.mkdir()
    (folder / "__init__.py").write_text("SAVES = True\n" + PACKAGE)
    for name in NAMES:
        dimension = getattr(find_metric(name), "dimension")  # noqa: B009
        (folder / f"{dimension}.py").write_text(DIMENSION.format(name=dimension))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "weights"))
    yield folder
    for module in [m for m in sys.modules if m.split(".")[0] == "vbench"]:
        del sys.modules[module]


def put_weights(folder: Path) -> None:
    for name in NAMES:
        for weight in getattr(find_metric(name), "weights"):  # noqa: B009
            path = folder / "weights" / weight
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def test_there_are_four_and_they_stand_alone() -> None:
    assert len(NAMES) == 4
    assert {find_metric(name).reference for name in NAMES} == {"none"}


def test_weights_are_not_fetched_but_asked_for(package: Path, tmp_path: Path) -> None:
    metric = ImagingQuality()
    path = tmp_path / "weights" / "pyiqa_model" / "musiq_spaq_ckpt-358bb6af.pth"
    said = f"VBench needs weights for imaging_quality, which are not at {path}"
    assert metric.available() == said
    with pytest.raises(ModelError, match="needs weights"):
        metric(panned())
    put_weights(tmp_path)
    assert metric.available() is None


@pytest.mark.parametrize("name", NAMES)
def test_the_file_holds_the_video_and_the_number_is_read(
    package: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_weights(tmp_path)
    video = panned(frames=5)
    metric = find_metric(name)()
    assert metric(video) == pytest.approx(float(video.mean()), abs=0.01)
    assert metric(video * 0.5) == pytest.approx(float(video.mean()) / 2, abs=0.01)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="has none for frames"):
        metric.frames(video)
    with pytest.raises(ValueError, match="at least 3 frames of 32 x 32"):
        metric(video[:2])


def test_no_number_is_a_sentence(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_weights(tmp_path)
    monkeypatch.setattr(importlib.import_module("vbench"), "SAVES", False)
    with pytest.raises(ModelError, match="without a number for imaging_quality"):
        ImagingQuality()(torch.rand(3, 3, 32, 32))
