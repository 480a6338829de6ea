"""VMAF, by the libvmaf in the ffmpeg program that the package ``imageio-ffmpeg`` carries.

Frames go to it through a pipe and its log through a folder that is gone afterwards. The package's
ffmpeg can be replaced by the environment variable IMAGEIO_FFMPEG_EXE."""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stillframe.errors import ModelError
from stillframe.metrics.base import Metric, Score, first_line, installed, levels, register

__all__ = ["VideoMultimethodAssessment"]


@register("vmaf")
@dataclass(frozen=True)
class VideoMultimethodAssessment(Metric):
    """VMAF v0.6.1: a regression from detail, information and motion to people's opinions; the mean
    over frames.

    Li, Aaron, Katsavounidis, Moorthy, Manohara, "Toward a Practical Perceptual Video Quality
    Metric", Netflix 2016. It sees brightness only, at 8 bits, was fitted to encodings watched at
    1080 lines from three screen heights, and rewards sharpening: compare videos of one size.

    Range: 0 to 100; identical videos get 95 or more. Higher is better. Reference: the dense edit.

    Args:
        threads: CPU threads of libvmaf; the result does not depend on them.

    Raises:
        ValueError: if threads is not positive.
    """

    summary = "likeness to the dense edit as Netflix measures encodings, 0 to 100"
    higher_is_better = True
    reference = "dense"

    threads: int = 2

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads must be positive, got {self.threads}")

    def available(self) -> str | None:
        """None, or what is missing: the package, its program, or libvmaf in it."""
        if not installed("imageio_ffmpeg"):
            return "VMAF needs the package imageio-ffmpeg: pip install 'stillframe[metrics]'"
        try:
            program, filters = _ffmpeg()
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            return (
                f"VMAF needs the program of imageio-ffmpeg, which does not run: {first_line(error)}"
            )
        return None if " libvmaf " in filters else f"VMAF needs libvmaf, which {program} lacks"

    def least(self) -> tuple[int, int]:
        """One frame that libvmaf's four scales fit into."""
        return 1, 32

    def _measure(self, video: Tensor, reference: Tensor) -> Score:
        with tempfile.TemporaryDirectory(prefix="stillframe-vmaf-") as folder:
            _run(video, reference, Path(folder), self.threads)
            log = json.loads((Path(folder) / "log.json").read_text())
        frames = torch.tensor([f["metrics"]["vmaf"] for f in log["frames"]], dtype=torch.float64)
        if len(frames) != len(video):
            raise ModelError(f"ffmpeg compared {len(frames)} frames of {len(video)}")
        return Score(float(frames.mean()), frames)


@functools.lru_cache(maxsize=1)
def _ffmpeg() -> tuple[str, str]:
    """Path of the program, and its list of filters."""
    import imageio_ffmpeg

    program: str = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-hide_banner", "-filters"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return program, done.stdout


def _run(video: Tensor, reference: Tensor, folder: Path, threads: int) -> None:
    """Have libvmaf write ``log.json`` into a folder.

    Both videos go through one pipe, each frame above its reference: a second pipe would need what
    only some systems have.
    """
    height, width = video.shape[-2:]
    graph = (
        f"split[a][b];[a]crop={width}:{height}:0:0,format=yuv444p[x];"
        f"[b]crop={width}:{height}:0:{height},format=yuv444p[y];"
        f"[x][y]libvmaf=model=version=vmaf_v0.6.1:n_threads={threads}:log_fmt=json:log_path=log.json"
    )
    source = f"-f rawvideo -pixel_format rgb24 -video_size {width}x{2 * height} -framerate 16 -i -"
    command = [_ffmpeg()[0], "-hide_banner", "-loglevel", "error", *source.split()]
    command += ["-filter_complex", graph, "-f", "null", "-"]
    with (folder / "errors").open("w+") as errors:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stderr=errors)
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                for pair in zip(video, reference, strict=True):
                    for frame in pair:
                        pipe.write(levels(frame).tobytes())
        except BrokenPipeError:
            pass  # it has ended early, and says why
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if process.returncode or not (folder / "log.json").is_file():
        reason = said[-1] if said else f"it ended with code {process.returncode}"
        raise ModelError(f"ffmpeg could not compute VMAF: {reason}")
