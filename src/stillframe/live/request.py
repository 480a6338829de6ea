"""What a session's next block is edited with, and changes of that.

They are checked at once, for whoever asks, so that a wrong one never reaches a running stream.
A prompt is only noted here: encoding it may take long, and is left to whoever runs the model.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from stillframe.config import EditConfig
from stillframe.controls import Box, Controls, Region
from stillframe.engine.stream import StreamSettings, check_settings
from stillframe.live.blend import MOST_BLOCKS
from stillframe.loading.prompts import clean_prompt
from stillframe.methods import Method, as_method
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["EditRequest"]

# tokenizers must not be used by two threads at a time
_encoding = threading.Lock()


@dataclass(frozen=True)
class EditRequest:
    """How the next block is edited.

    Attributes:
        prompt: to be encoded, None if ``embeds`` were given.
        embeds: of the prompt, (1, L, text_dim); None as long as it is not encoded.
        config: how to edit.
        method: that the configuration names.
        settings: how to denoise, as the configuration has it for this model.
        blend: blocks over which another prompt takes the place of this one.
    """

    prompt: str | None
    embeds: Tensor | None
    config: EditConfig
    method: Method
    settings: StreamSettings
    blend: int = 0

    @classmethod
    def first(
        cls,
        pipe: CausalWanPipeline,
        prompt: str | None,
        prompt_embeds: Tensor | None,
        config: EditConfig,
        blend: int = 0,
    ) -> EditRequest:
        """What a new session begins with.

        Raises:
            ValueError: for anything out of range, or a method that the control does not go with.
        """
        method, settings = _resolved(pipe, config)
        text = _text(pipe, prompt, prompt_embeds)
        return cls(*text, config, method, settings, _checked(blend))

    def changed(
        self,
        pipe: CausalWanPipeline,
        prompt: str | None,
        prompt_embeds: Tensor | None,
        config: EditConfig | None,
        changes: Mapping[str, Any],
        blend: int | None = None,
    ) -> EditRequest:
        """The same with some of it changed; None changes nothing, but for a control.

        Args:
            config: takes the place of the one before.
            changes: see `EditConfig.changed`.

        Raises:
            ValueError: for anything out of range or that a stream cannot change, or a method that
                the control does not go with.
        """
        wanted = (config or self.config).changed(len(self.settings.sigmas), **changes)
        text = self.prompt, self.embeds
        if prompt is not None or prompt_embeds is not None:
            text = _text(pipe, prompt, prompt_embeds)
        method, settings = _resolved(pipe, wanted)
        self.settings.check_change(settings)
        if wanted.seed not in (None, self.config.seed):
            raise ValueError(
                f"seed of a session cannot change, from {self.config.seed} to {wanted.seed}"
            )
        wanted = replace(wanted, seed=self.config.seed)
        blend = self.blend if blend is None else _checked(blend)
        return EditRequest(*text, wanted, method, settings, blend)

    def encoded(self, pipe: CausalWanPipeline) -> EditRequest:
        """The same with the embeddings of the prompt; may take long.

        Raises:
            ValueError: the embeddings are not those of one prompt.
        """
        assert self.prompt is not None
        with _encoding:
            embeds = pipe.encode_prompt(self.prompt)
        return replace(self, embeds=_of_one(embeds))


def _resolved(pipe: CausalWanPipeline, config: EditConfig) -> tuple[Method, StreamSettings]:
    """Method and settings of a configuration, which are checked."""
    method, settings = as_method(config.method), pipe.settings(**config.settings)
    if config.control is not None:
        config.control.check(method)
        _check_region(config.control)
    check_settings(pipe.denoiser, settings)
    return method, settings


def _checked(blend: int) -> int:
    if not 0 <= blend <= MOST_BLOCKS:
        raise ValueError(f"blend is a number of blocks from 0 to {MOST_BLOCKS}, got {blend}")
    return blend


def _check_region(controls: Controls) -> None:
    region = controls.find(Region)
    shape = None if region is None else region.shape
    if isinstance(shape, Box) and shape.in_pixels:
        raise ValueError(
            "a session's region is in shares of the picture, whose size in pixels may change, got "
            f"{shape}"
        )


def _text(
    pipe: CausalWanPipeline, prompt: str | None, embeds: Tensor | None
) -> tuple[str | None, Tensor | None]:
    """A prompt, or its embeddings.

    Raises:
        ValueError: if there are both or neither, they are not those of one prompt, nothing can
            encode the prompt, or it is no text (``prompts.clean_prompt``).
    """
    if (prompt is None) == (embeds is None):
        raise ValueError("give either prompt or prompt_embeds")
    if embeds is not None:
        return None, _of_one(embeds)
    if pipe.text_encoder is None and pipe.prompt_encoder is None:
        raise ValueError("this pipeline has no text encoder: give prompt_embeds")
    assert prompt is not None
    return clean_prompt(prompt), None


def _of_one(embeds: Tensor) -> Tensor:
    if embeds.ndim != 3 or embeds.shape[0] != 1:
        raise ValueError(f"a session has one prompt, (1, L, text_dim), got {tuple(embeds.shape)}")
    return embeds
