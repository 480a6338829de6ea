"""A pipeline's components: loading and setting them, what follows them, and what goes along.

diffusers' pipelines are made from each other's ``components``, and their parts are replaced by
setting them. Both must mean what they say: how a pipeline denoises goes along with its scheduler,
which is the part about that, and whatever is derived from a part follows it.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Self

from diffusers import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from torch import nn

from stillframe.autoencoders.streaming import open_autoencoder, timeline_of
from stillframe.autoencoders.timeline import Timeline
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.finite import check_model
from stillframe.backbones.model_folder import OLD_VAE, check_classes, is_of_earlier_version
from stillframe.backbones.wan import WanDenoiser
from stillframe.errors import ModelError
from stillframe.models import bundled_models

__all__ = ["SettableParts", "taking_along"]

_ALONG = "_stillframe_settings"
_ENCODER = "prompt_encoder"


def taking_along(init: Callable[..., None]) -> Callable[..., None]:
    """A pipeline's ``__init__`` that takes arguments left out from those its scheduler has along.

    See `SettableParts.components`.
    """
    parameters = signature(init)

    @wraps(init)
    def taking(self: Any, *args: Any, **kwargs: Any) -> None:
        given = parameters.bind(self, *args, **kwargs).arguments
        along: Mapping[str, Any] = getattr(given["scheduler"], _ALONG, {})
        known = {name for name in along if name in parameters.parameters and name not in given}
        init(self, *args, **kwargs, **{name: along[name] for name in known})
        if _ENCODER in along:
            self.prompt_encoder = along[_ENCODER]

    return taking


class SettableParts(DiffusionPipeline):
    """A pipeline whose parts and settings take effect when they are set, or say why they cannot.

    A stream keeps the parts that it was opened with.
    """

    _denoiser: WanDenoiser

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Self:
        """Load a pipeline.

        Code that comes with a model is never run.

        Args:
            name: of a bundled model, a folder in diffusers' format, or a hub id (owner/name).
            options: diffusers' own.

        Raises:
            ModelError: it is none of these, has parts of classes that Wan has not, or
                weights that are not finite.
            ValueError: for ``trust_remote_code``.
        """
        if options.get("trust_remote_code"):
            raise ValueError("code that comes with a model is never run: trust_remote_code is True")
        bundled, folder = bundled_models(), Path(name).expanduser()
        if str(name) in bundled:
            folder = bundled[str(name)]
        elif not folder.is_dir() and str(name).count("/") != 1:
            raise ModelError(
                f"unknown model {str(name)!r}: it is no folder, no hub id (owner/name) and none of "
                f"{', '.join(bundled)}; stillframe.load_pipeline knows published ones by name"
            )
        if folder.is_dir() and not (folder / "model_index.json").is_file():
            raise ModelError(f"{name} is not a model: the folder has no model_index.json")
        if folder.is_dir():
            check_classes(folder, options)
            if is_of_earlier_version(folder):
                # diffusers takes classes from modules that are imported already
                sys.modules.setdefault(OLD_VAE, sys.modules[TinyVideoAutoencoder.__module__])
        place = str(folder) if folder.is_dir() else name
        pipe: Self = super().from_pretrained(place, **options)
        quantised = "quantization_config" in options
        for part, model in pipe.components.items():
            if isinstance(model, nn.Module) and part not in options and not quantised:
                check_model(model, f"the {part} of {name}")
        return pipe

    @classmethod
    def download(cls, name: str | os.PathLike[str], **options: Any) -> Any:
        """Where diffusers has put a repository of the hub, before anything in it is loaded.

        Raises:
            ModelError: it has parts of classes that Wan has not.
        """
        folder = super().download(name, **options)
        check_classes(Path(folder), options)
        return folder

    @property
    def denoiser(self) -> WanDenoiser:
        """The transformer as a function of tokens."""
        return self._denoiser

    def run_by(self, denoiser: WanDenoiser) -> None:
        """Run the transformer through another adapter of it, until another transformer is set.

        Raises:
            ValueError: it is that of another transformer.
        """
        if denoiser.transformer is not self.transformer:
            raise ValueError("the adapter is that of another transformer than the pipeline's")
        self._denoiser = denoiser

    @property
    def timeline(self) -> Timeline:
        """How pixel frames, latent frames and blocks go together in its streams."""
        return timeline_of(self.vae, self.config.block_frames)

    @property
    def frame_multiple(self) -> int:
        """Frames must have sides in multiples of this many pixels."""
        return self.timeline.spatial * self.denoiser.patch

    @property
    def video_processor(self) -> VideoProcessor:
        """diffusers' way from any video to a tensor and back, for this autoencoder."""
        return VideoProcessor(vae_scale_factor=self.frame_multiple)

    @property
    def components(self) -> dict[str, Any]:
        """The parts, by the names that ``__init__`` has for them.

        The scheduler is a copy that has this pipeline's settings and its ``prompt_encoder`` along,
        so that a pipeline made from these parts gives the same pictures.
        """
        found: dict[str, Any] = super().components
        scheduler = copy.copy(found["scheduler"])
        along = {name: self.config[name] for name in self._settings()}
        if self.text_encoder is None:
            along[_ENCODER] = self.prompt_encoder
        setattr(scheduler, _ALONG, along)
        return {**found, "scheduler": scheduler}

    @classmethod
    def _settings(cls) -> set[str]:
        """Names of the settings: what ``__init__`` has defaults for."""
        parameters = signature(cls.__init__).parameters
        return {name for name, p in parameters.items() if p.default is not Parameter.empty}

    def __getattr__(self, name: str) -> Any:
        if name[0] != "_" and name in self._settings():
            return self.config[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a part or a setting.

        Raises:
            ModelError: it is no such part.
            AttributeError: it follows from others and cannot be set.
        """
        known = getattr(type(self), name, None)
        if isinstance(known, property) and known.fset is None:
            raise AttributeError(f"{name} of a pipeline cannot be set: it follows from its parts")
        if callable(known) and not callable(value):
            raise AttributeError(f"{name} is a method of the pipeline and cannot be set")
        if name in self._settings():
            self.register_to_config(**{name: value})
            return
        made = WanDenoiser(value) if name == "transformer" else None
        _check_part(name, value)
        super().__setattr__(name, value)
        if made is not None:
            self._denoiser = made


def _check_part(name: str, value: Any) -> None:
    """Refuse a part that would fail later.

    Raises:
        ModelError: it is not what its name says.
    """
    if name == "vae":
        # a first stream brings its weights into the order that convolutions like: here, since later
        # another thread may be using them
        open_autoencoder(value, 1)
    elif name == "scheduler" and not hasattr(value, "config"):
        raise ModelError(f"a scheduler has a configuration, got {type(value).__name__}")
    elif name in ("text_encoder", "tokenizer", _ENCODER) and not (value is None or callable(value)):
        raise ModelError(f"the {name} is called with prompts, got {type(value).__name__}")
