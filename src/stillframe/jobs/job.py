"""What jobs on files have in common: the model, the prompt, the seed, the working size."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from stillframe.loading.device_memory import peak_memory
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import VideoReader, VideoWriter
from stillframe.video.fit import Fit, fit_to_grid

__all__ = ["Job", "fit_of"]


class Job(NamedTuple):
    """A job, for its report.

    Attributes:
        pipe: the model.
        model: its name; None takes the folder's.
        prompt, seed: what the video is made from.
        load_seconds: how long the model took to load.
    """

    pipe: CausalWanPipeline
    model: str | None
    prompt: str
    seed: int
    load_seconds: float

    def facts(self, writer: VideoWriter) -> dict[str, Any]:
        """Fields that the reports of all jobs have, once the output is complete."""
        pipe = self.pipe
        return {
            "stillframe": version("stillframe"),
            "output": writer.name,
            "frames_out": writer.frames_written,
            "model": self.model or Path(pipe.name_or_path or type(pipe).__name__).name,
            "prompt": self.prompt,
            "seed": self.seed,
            "device": str(pipe.compute_device),
            "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
            "peak_memory_bytes": peak_memory(pipe.compute_device),
        }


def fit_of(
    pipe: CausalWanPipeline, reader: VideoReader, height: int | None, width: int | None
) -> Fit:
    """The working size of a source."""
    return fit_to_grid(
        reader.width,
        reader.height,
        multiple=pipe.frame_multiple,
        target_height=height,
        target_width=width,
        max_short_side=pipe.config.default_height,
    )
