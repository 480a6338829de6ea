"""What a session's next block is to be edited with, and how that is changed: checked at once, by
whoever asks, so that a wrong wish never reaches a running stream.

A prompt is only noted here: encoding it may take long, and is left to whoever runs the model. Knows
the model's prompts, methods, settings and controls; not when a wish is granted.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from torch import Tensor

from stillframe.controls import Controls
from stillframe.engine.stream import StreamSettings, check_settings
from stillframe.loading.prompts import clean_prompt
from stillframe.methods import Method, find_method
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["UNCHANGED", "Unchanged", "Wishes", "first_wishes"]

_OPTIONS = ("strength", "num_inference_steps", "sigmas", "conditioning")

# tokenizers must not be used by two threads at a time
_encoding = threading.Lock()


class Unchanged(Enum):
    """Stands for a control that stays, since None means that there is none."""

    UNCHANGED = 0


UNCHANGED = Unchanged.UNCHANGED


@dataclass(frozen=True)
class Wishes:
    """How to edit.

    Attributes:
        prompt: to be encoded, None if ``embeds`` were given.
        embeds: of the prompt, (1, L, text_dim); None as long as it is not encoded.
        method: which tokens to compute.
        settings: how to denoise.
        control: what else is asked for; None for nothing.
        options: what ``settings`` were made from, see ``CausalWanPipeline.settings``.
    """

    prompt: str | None
    embeds: Tensor | None
    method: Method
    settings: StreamSettings
    control: Controls | None
    options: Mapping[str, Any]

    def changed(
        self,
        pipe: CausalWanPipeline,
        prompt: str | None,
        prompt_embeds: Tensor | None,
        method: str | Method | None,
        control: Controls | Unchanged | None,
        numbers: Mapping[str, Any],
    ) -> Wishes:
        """The same with some of it changed; None changes nothing, but for a control.

        Args:
            control: None takes it away, ``UNCHANGED`` leaves it.
            numbers: strength, num_inference_steps, sigmas, conditioning; all others are parameters
                of the method. Sigmas replace strength and steps and are replaced by them; a
                strength alone keeps the number of passes.

        Raises:
            ValueError: for anything out of range, or a method that the control does not go with.
        """
        given = {name: value for name, value in numbers.items() if value is not None}
        changes = {name: given.pop(name) for name in _OPTIONS if name in given}
        options = _merged(self.options, changes, len(self.settings.sigmas))
        text = self.prompt, self.embeds
        if prompt is not None or prompt_embeds is not None:
            text = _text(pipe, prompt, prompt_embeds)
        settings = _settings(pipe, options) if changes else self.settings
        chosen = _method(self.method, method, given)
        wanted = self.control if isinstance(control, Unchanged) else control
        if wanted is not None:
            wanted.check(chosen)
        return Wishes(*text, chosen, settings, wanted, options)

    def encoded(self, pipe: CausalWanPipeline) -> Wishes:
        """The same with the embeddings of the prompt; may take long.

        Raises:
            ValueError: the embeddings are not those of one prompt.
        """
        assert self.prompt is not None
        with _encoding:
            embeds = pipe.encode_prompt(self.prompt)
        return replace(self, embeds=_of_one(embeds))


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
    control: Controls | None,
    options: Mapping[str, Any],
) -> Wishes:
    """What a new session wants.

    Raises:
        ValueError: for anything out of range, or a method that the control does not go with.
    """
    chosen = find_method(method)() if isinstance(method, str) else method
    if control is not None:
        control.check(chosen)
    settings = _settings(pipe, options)
    return Wishes(*_text(pipe, prompt, prompt_embeds), chosen, settings, control, dict(options))


def _settings(pipe: CausalWanPipeline, options: Mapping[str, Any]) -> StreamSettings:
    settings = pipe.settings(**options)
    check_settings(pipe.denoiser, settings)
    return settings


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
