"""The nodes, by the host's first interface (``INPUT_TYPES``, ``RETURN_TYPES``, ``FUNCTION``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillframe import BlockStats, CausalWanPipeline, Controls, load_pipeline
from stillframe.methods import as_method
from stillframe.video.overlay import MaskTrack

from .frames import drawn_map, fit_images, kept_mask, levels, units, with_mask
from .host import nothing_yet, progress
from .widgets import USUAL, config_of, edit_widgets

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

_MODEL = "STILLFRAME_MODEL"
_CATEGORY = "video/stillframe"
_PROMPT = ("STRING", {"default": "oil painting", "multiline": True})
_SHORT_SIDE = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 4320,
        "tooltip": "Short side in pixels at most; 0: the model's.",
    },
)
_MASK_MODES = (["only", "always", "never"], {"tooltip": "Edit there only, or recompute it so."})
# frames that are handed to a stream at once: memory does not grow with the clip
_AT_ONCE = 16


class LoadModel:
    """A model by its name, folder or hub id; kept by the host while its inputs stay."""

    CATEGORY = _CATEGORY
    DESCRIPTION = "Loads a stillframe model; the host frees it when it is no longer in a workflow."
    RETURN_TYPES = (_MODEL,)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "name": ("STRING", {"default": "tiny", "tooltip": "A name, a folder or a hub id."})
            },
            "optional": {
                "device": ("STRING", {"default": "auto"}),
                "dtype": (["auto", "float32", "bfloat16", "float16"], {}),
                "autoencoder": ([USUAL, "tiny", "full"], {}),
                "fit_gb": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1000.0, "step": 0.5}),
            },
        }

    def load(
        self,
        name: str,
        device: str = "auto",
        dtype: str = "auto",
        autoencoder: str = USUAL,
        fit_gb: float = 0.0,
    ) -> tuple[CausalWanPipeline]:
        """The pipeline. See ``stillframe.load_pipeline`` for what it refuses."""
        vae = None if autoencoder == USUAL else autoencoder
        return (load_pipeline(name, device=device, dtype=dtype, vae=vae, fit=fit_gb or None),)


class EditVideo:
    """A clip edited, which of it was computed, and the map that shows it."""

    CATEGORY = _CATEGORY
    DESCRIPTION = "Edits frames, and recomputes only what changed."
    RETURN_TYPES = ("IMAGE", "MASK", "IMAGE")
    RETURN_NAMES = ("images", "computed", "map")
    FUNCTION = "edit"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"model": (_MODEL,), "images": ("IMAGE",), "prompt": _PROMPT},
            "optional": {
                **edit_widgets(),
                "short_side": _SHORT_SIDE,
                "mask": ("MASK",),
                "mask_mode": _MASK_MODES,
            },
        }

    def edit(
        self,
        model: CausalWanPipeline,
        images: Tensor,
        prompt: str,
        short_side: int = 0,
        mask: Tensor | None = None,
        mask_mode: str = "only",
        more: str = "",
        **options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """IMAGE (T, h, w, 3), MASK (T, h, w), and the map as an IMAGE of the same size.

        Raises:
            ValueError: an input is out of range.
        """
        fit = fit_images(model, images, short_side)
        config = with_mask(config_of(options, more), model, fit, mask, mask_mode)
        show, patch = progress(len(images)), model.frame_multiple
        track = MaskTrack(model.timeline)

        def note(stats: BlockStats) -> None:
            track.add(*stats.patches())

        stream = model.stream(prompt, config=config, on_block=note)
        edited, sources = list[Tensor](), list[Tensor]()
        for part in levels(images).split(_AT_ONCE):
            video = fit.to_grid(part)
            sources.append(fit.from_grid(video))
            done = stream.push(video[None].to(model.compute_device))
            if done is not None:
                edited.append(units(fit.from_grid(done[0])))
            show(sum(map(len, edited)))
        rest = stream.flush()
        if rest is not None:
            edited.append(units(fit.from_grid(rest[0])))
        patches = [track.at(number) for number in range(len(images))]
        computed = [kept_mask(each, fit, patch) for each in patches]
        drawn = map(drawn_map, torch.cat(sources), patches, [patch] * len(patches))
        return torch.cat(edited), torch.stack(computed), units(torch.stack(list(drawn)))


class StreamEdit:
    """Frames edited as they come: each run of the workflow hands some over and gets as many.

    The stream is kept in the node between runs. What comes out is late by a block less one frame;
    until then the nodes behind this one do not run.
    """

    CATEGORY = _CATEGORY
    DESCRIPTION = "Edits a live input, run after run; frames come out a block later."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "edit"
    # two of the same inputs are two streams
    NOT_IDEMPOTENT = True

    def __init__(self) -> None:
        self._stream: Any = None
        self._key: tuple[Any, ...] = ()
        self._prompt = ""
        self._waiting: list[Tensor] = []
        self._pushed = self._given = 0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"model": (_MODEL,), "images": ("IMAGE",), "prompt": _PROMPT},
            "optional": {
                **edit_widgets(),
                "short_side": _SHORT_SIDE,
                "restart": ("BOOLEAN", {"default": False, "tooltip": "Begin a new stream."}),
                "finish": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Give what is still due, and end the stream."},
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:
        """Not a number, which equals nothing: the same frame again is another frame."""
        return float("nan")

    def edit(
        self,
        model: CausalWanPipeline,
        images: Tensor,
        prompt: str,
        short_side: int = 0,
        restart: bool = False,
        finish: bool = False,
        more: str = "",
        **options: Any,
    ) -> tuple[Any]:
        """IMAGE of as many frames as came in, those of a block ago; nothing before that.

        Another prompt, method or control counts from the next block on; another model, size or seed
        begins a new stream.

        Raises:
            ValueError: an input is out of range.
        """
        fit = fit_images(model, images, short_side)
        config = with_mask(config_of(options, more), model, fit, None, "only")
        key = (id(model), fit, config.seed, config.settings["execution"])
        if restart or key != self._key:
            self._begin(key)
        if self._stream is None:
            self._stream = model.stream(prompt, config=config)
            self._prompt = prompt
        elif prompt != self._prompt:
            self._stream.set_text(model.text(prompt))
            self._prompt = prompt
        self._stream.update(
            method=as_method(config.method),
            settings=model.settings(**config.settings),
            controls=config.control or Controls(),
        )
        pushed = self._stream.push(fit.to_grid(levels(images))[None].to(model.compute_device))
        rest = self._stream.flush() if finish else None
        for part in (pushed, rest):
            if part is not None:
                self._waiting.extend(units(fit.from_grid(part[0])))
        self._pushed += len(images)
        late = 0 if finish else model.timeline.later_frames - 1
        due = max(self._pushed - late - self._given, 0)
        frames, self._waiting = self._waiting[:due], self._waiting[due:]
        self._given += len(frames)
        if finish:
            self._begin(())
        return (torch.stack(frames) if frames else nothing_yet(),)

    def _begin(self, key: tuple[Any, ...]) -> None:
        self._stream, self._key, self._waiting = None, key, []
        self._pushed = self._given = 0


NODE_CLASS_MAPPINGS = {
    "StillframeLoadModel": LoadModel,
    "StillframeEditVideo": EditVideo,
    "StillframeStreamEdit": StreamEdit,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "StillframeLoadModel": "Load stillframe model",
    "StillframeEditVideo": "Edit video (stillframe)",
    "StillframeStreamEdit": "Edit stream (stillframe)",
}
