"""What a session's next block is to be edited with, and how that is changed: checked at once, by
whoever asks, so that a wrong wish never reaches a running stream.

Knows the model's prompts, methods and settings; not when a wish is granted.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from stillframe.engine import StreamSettings, check_settings
from stillframe.methods import Method, find_method
from stillframe.pipeline import CausalWanPipeline

__all__ = ["Wishes", "first_wishes"]

_OPTIONS = ("strength", "num_inference_steps", "sigmas", "conditioning")

# tokenizers must not be used by two threads at a time
_encoding = threading.Lock()


@dataclass(frozen=True)
class Wishes:
    """How to edit.

    Attributes:
        embeds: of the prompt, (1, L, text_dim).
        method: which tokens to compute.
        settings: how to denoise.
        options: what ``settings`` were made from, see ``CausalWanPipeline.settings``.
    """

    embeds: Tensor
    method: Method
    settings: StreamSettings
    options: Mapping[str, Any]

    def changed(
        self,
        pipe: CausalWanPipeline,
        prompt: str | None,
        prompt_embeds: Tensor | None,
        method: str | Method | None,
        numbers: Mapping[str, Any],
    ) -> Wishes:
        """The same with some of it changed; None changes nothing.

        Args:
            numbers: strength, num_inference_steps, sigmas, conditioning; all others are parameters
                of the method. Sigmas replace strength and steps and are replaced by them; a
                strength alone keeps the number of passes.

        Raises:
            ValueError: for anything out of range.
        """
        given = {name: value for name, value in numbers.items() if value is not None}
        changes = {name: given.pop(name) for name in _OPTIONS if name in given}
        options = _merged(self.options, changes, len(self.settings.sigmas))
        embeds = self.embeds
        if prompt is not None or prompt_embeds is not None:
            embeds = _encoded(pipe, prompt, prompt_embeds)
        settings = _settings(pipe, options) if changes else self.settings
        return Wishes(embeds, _method(self.method, method, given), settings, options)


def _merged(
    options: Mapping[str, Any], changes: Mapping[str, Any], steps: int
) -> Mapping[str, Any]:
    merged = {**options, **changes}
    if "sigmas" in changes:
        for name in {"strength", "num_inference_steps"} - set(changes):
            merged.pop(name, None)
    elif {"strength", "num_inference_steps"} & set(changes):
        merged.pop("sigmas", None)
    if "strength" in changes:
        merged["num_inference_steps"] = changes.get("num_inference_steps", steps)
    return merged


def first_wishes(
    pipe: CausalWanPipeline,
    prompt: str | None,
    prompt_embeds: Tensor | None,
    method: str | Method,
    options: Mapping[str, Any],
) -> Wishes:
    """What a new session wants.

    Raises:
        ValueError: for anything out of range.
    """
    chosen = find_method(method)() if isinstance(method, str) else method
    settings = _settings(pipe, options)
    return Wishes(_encoded(pipe, prompt, prompt_embeds), chosen, settings, dict(options))


def _settings(pipe: CausalWanPipeline, options: Mapping[str, Any]) -> StreamSettings:
    settings = pipe.settings(**options)
    check_settings(pipe.denoiser, settings)
    return settings


def _encoded(pipe: CausalWanPipeline, prompt: str | None, embeds: Tensor | None) -> Tensor:
    """A prompt's embeddings, (1, L, text_dim).

    Raises:
        ValueError: if there are both or neither, or they are not those of one prompt.
    """
    if (prompt is None) == (embeds is None):
        raise ValueError("give either prompt or prompt_embeds")
    if embeds is None:
        assert prompt is not None
        with _encoding:
            embeds = pipe.encode_prompt(prompt)
    if embeds.ndim != 3 or embeds.shape[0] != 1:
        raise ValueError(f"a session has one prompt, (1, L, text_dim), got {tuple(embeds.shape)}")
    return embeds


def _method(before: Method, wanted: str | Method | None, parameters: Mapping[str, Any]) -> Method:
    """A method, or the one before if there is none, with some of its parameters changed.

    Raises:
        ValueError: for parameters that it does not have, or out of range.
    """
    method = find_method(wanted)() if isinstance(wanted, str) else wanted or before
    unknown = set(parameters) - {f.name for f in fields(method)}
    if unknown:
        raise ValueError(f"method {method.name!r} has no {', '.join(sorted(unknown))}")
    return replace(method, **parameters) if parameters else method
