"""A stream of stillframe behind Scope's interface: a block of frames in, edited frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from scope.core.pipelines.base_schema import BasePipelineConfig, ModeDefaults, ui_field_config
from scope.core.pipelines.interface import Pipeline, Requirements
from torch import Tensor

from stillframe import EditConfig, load_pipeline
from stillframe.config import edit_options
from stillframe.methods import as_method
from stillframe.video.fit import Fit, fit_to_grid

__all__ = ["StillframeConfig", "StillframePipeline"]

_KNOWN = edit_options()
_TOLERANCE, _SEED = _KNOWN["tolerance"], _KNOWN["seed"]


class StillframeConfig(BasePipelineConfig):
    """What Scope shows of the pipeline, and lets be set."""

    pipeline_id = "stillframe"
    pipeline_name = "stillframe"
    pipeline_description = "Restyles video, and recomputes only what looks different."
    supports_prompts = True
    modes = {"video": ModeDefaults(default=True)}  # noqa: RUF012 - as Scope has it

    model: str = Field(
        default="tiny",
        description="Name, folder or hub id of a model.",
        json_schema_extra=ui_field_config(order=1, is_load_param=True, label="Model"),
    )
    seed: int = Field(
        default=0,
        ge=0,
        description=_SEED.help,
        json_schema_extra=ui_field_config(order=2, is_load_param=True, label="Seed"),
    )
    tolerance: float = Field(
        default=3.0,
        ge=_TOLERANCE.least,
        le=_TOLERANCE.most,
        description=_TOLERANCE.help,
        json_schema_extra=ui_field_config(order=3, label="Tolerance"),
    )


class StillframePipeline(Pipeline):
    """One stream at a time; another size of the input begins a new one."""

    @classmethod
    def get_config_class(cls) -> type[BasePipelineConfig]:
        return StillframeConfig

    def __init__(
        self, device: Any = None, model: str = "tiny", seed: int = 0, **options: Any
    ) -> None:
        name = "auto" if device is None else str(device)
        self._pipe = load_pipeline(model, device=name)
        self._seed = seed
        self._stream: Any = None
        self._fit: Fit | None = None
        self._prompt = ""

    def prepare(self, **options: Any) -> Requirements:
        """Ask for a block's frames."""
        return Requirements(input_size=self._pipe.timeline.later_frames)

    def __call__(self, **inputs: Any) -> dict[str, Tensor]:
        """Edit what has come in.

        Args:
            inputs: ``video``, frames (1, H, W, 3) in [0, 255]; ``prompts``, texts or mappings with
                ``text`` and ``weight``, of which the heaviest counts; ``tolerance``.

        Returns:
            ``video``: the frames that are done, (T, h, w, 3) in [0, 1]. A first block may be short.

        Raises:
            ValueError: there is no video, or a value is out of range.
        """
        video = inputs.get("video")
        if not video:
            raise ValueError("stillframe edits video, and got 0 frames")
        frames = torch.cat([frame if frame.ndim == 4 else frame[None] for frame in video])
        frames = frames.round().clamp(0, 255).to(torch.uint8)
        prompt = heaviest(inputs.get("prompts")) or self._prompt or "oil painting"
        config = EditConfig.from_options(
            {"seed": self._seed, "tolerance": float(inputs.get("tolerance", 3.0))}
        )
        height, width = frames.shape[1:3]
        fit = fit_to_grid(
            width,
            height,
            multiple=self._pipe.frame_multiple,
            max_short_side=self._pipe.config.default_height,
        )
        if self._stream is None or fit != self._fit:
            self._stream = self._pipe.stream(prompt, config=config)
        else:
            self._stream.update(method=as_method(config.method))
            if prompt != self._prompt:
                self._stream.set_text(self._pipe.text(prompt))
        self._fit, self._prompt = fit, prompt
        done = self._stream.push(fit.to_grid(frames)[None].to(self._pipe.compute_device))
        if done is None:
            return {"video": torch.empty(0, fit.height, fit.width, 3)}
        return {"video": fit.from_grid(done[0]).float() / 255}


def heaviest(prompts: Sequence[str | Mapping[str, Any]] | str | None) -> str:
    """The text of the prompt with the largest weight, "" if there is none."""
    if isinstance(prompts, str):
        return prompts
    if not prompts:
        return ""
    found = [
        (1.0, each) if isinstance(each, str) else (float(each.get("weight", 1)), str(each["text"]))
        for each in prompts
    ]
    return max(found, key=lambda pair: pair[0])[1]
