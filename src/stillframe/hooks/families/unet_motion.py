"""AnimateDiff: a U-Net of pictures, with motion modules that attend over time at every place.

Convolutions need whole pictures, so tokens are left out around each part of a transformer block, as
Bolya and Hoffman (arXiv 2303.17604) do when they merge them: a place that is not computed keeps its
own residual, and what the part adds to it is its provider's. Attention within a frame has queries
of computed tokens. Attention over time is whole: it is one frame's worth of tokens at each place,
and costs little. Every resolution has a plan of its own for its larger tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillframe.errors import InputError
from stillframe.hooks.families.base import Family, Processor, in_heads, normed_if_any, register
from stillframe.hooks.passes import KeysValues, Pass
from stillframe.hooks.pruning import Geometry

__all__ = ["UNetMotion"]

Running = Callable[[], Pass | None]


class _WithinFrames(Processor):
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        level = _level(self.running)
        if level is None or encoder_hidden_states is not None or attention_mask is not None:
            given = (encoder_hidden_states, attention_mask, *args)
            return self.stock(attn, hidden_states, *given, **kwargs)
        x = hidden_states.reshape(-1, level.plan.tokens, hidden_states.shape[-1])
        computed = level.cut(x)
        key, value = self.family.keys_values(attn, computed)
        own = functools.partial(self.family.keys_values, attn, level.pruned(x))
        key, value = level.complete(self.number, key, value, own)
        query = normed_if_any(attn.norm_q, in_heads(attn, attn.to_q(computed)))
        parts = zip(
            *(level.by_frame(part) for part in (query, key, value)),
            strict=True,
        )
        backend = self._attention_backend
        seen = [dispatch_attention_fn(*part, backend=backend) for part in parts if part[0].numel()]
        out = attn.to_out[1](attn.to_out[0](torch.cat(seen, 1).flatten(2)))
        return level.expand(out).reshape(hidden_states.shape)


def _level(running: Running) -> Pass | None:
    """The pass at the resolution that runs; None: nothing is left out there."""
    current = running()
    return None if current is None else current.here


def _first_frames(given: Any, frames: int) -> Any:
    """Text, and pictures beside it, of the first frame: all frames have the same."""
    if isinstance(given, Tensor):
        return given[::frames]
    if isinstance(given, list | tuple):
        return type(given)(_first_frames(part, frames) for part in given)
    return given


class _TokenWise:
    """Hooks on a module that does the same to every token: it is given the computed ones only.

    Args:
        running: gives the pass that is running.
        over_time: it is called with (B n, F, D), not with (B F, n, D).
    """

    def __init__(self, running: Running, over_time: bool) -> None:
        self._running, self._over_time = running, over_time

    def hang(self, module: nn.Module) -> list[RemovableHandle]:
        return [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after),
        ]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        level = _level(self._running)
        if level is None or level.whole:
            return None
        x, frames = args[0], len(level.plan.keep)
        places = level.plan.tokens // frames
        # parts of it, where feed-forward is chunked; masks are of all places
        whole = (places, frames) if self._over_time else (frames, places)
        masked = "ip_adapter_masks" in kwargs or kwargs.get("attention_mask") is not None
        if masked or x.ndim != 3 or x.shape[1] != whole[1] or len(x) % whole[0]:
            return None
        x = x.unflatten(0, (-1, whole[0]))
        x = (x.transpose(1, 2) if self._over_time else x).flatten(1, 2)
        if "encoder_hidden_states" in kwargs:
            text = _first_frames(kwargs["encoder_hidden_states"], frames)
            kwargs = {**kwargs, "encoder_hidden_states": text}
        level.inside = module
        return (level.cut(x), *args[1:]), kwargs

    def _after(self, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        level = _level(self._running)
        if level is None or level.inside is not module:
            return None
        level.inside = None
        out = level.expand(out).unflatten(1, (len(level.plan.keep), -1))
        return (out.transpose(1, 2) if self._over_time else out).flatten(0, 1)


@register
class UNetMotion(Family):
    """``UNetMotionModel``."""

    transformers: ClassVar[tuple[str, ...]] = ("UNetMotionModel",)
    processor = _WithinFrames
    latents = "sample"

    def denoisers(self, pipe: Any) -> list[nn.Module]:
        return [pipe.unet]

    def geometry(self, pipe: Any) -> Geometry:
        if getattr(pipe, "free_noise_enabled", False):
            raise InputError(
                "frames have texts of their own with FreeNoise, which is not supported"
            )
        return Geometry(temporal=1, single=False, pixels=pipe.vae_scale_factor, patch=1)

    def attentions(self, denoiser: Any) -> list[nn.Module]:
        return [
            block.attn1
            for part in _parts(denoiser, "attentions")
            for block in part.transformer_blocks
        ]

    def hang(self, denoiser: Any, running: Running) -> list[RemovableHandle]:
        def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            current = running()
            if current is not None:
                x: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                current.resize(*x.shape[-2:])

        handles = []
        for name in ("attentions", "motion_modules"):
            cut = _TokenWise(running, over_time=name == "motion_modules")
            for part in _parts(denoiser, name):
                handles.append(part.register_forward_pre_hook(enter, with_kwargs=True))
                for block in part.transformer_blocks:
                    handles += cut.hang(block.ff)
                    if name == "attentions" and block.attn2 is not None:
                        handles += cut.hang(block.attn2)
        return handles

    def keys_values(self, attn: Any, hidden_states: Tensor) -> KeysValues:
        key = normed_if_any(attn.norm_k, in_heads(attn, attn.to_k(hidden_states)))
        return key, in_heads(attn, attn.to_v(hidden_states))

    def part(self, given: dict[str, Any], frames: Tensor, count: int) -> dict[str, Any]:
        batch = len(given["sample"])

        def cut(x: Any) -> Any:  # of texts, and of control's residuals, there is one a frame
            if isinstance(x, list | tuple):
                return type(x)(map(cut, x))
            if not isinstance(x, Tensor) or x.ndim < 3 or len(x) != batch * count:
                return x
            return x.unflatten(0, (batch, count)).index_select(1, frames.to(x.device)).flatten(0, 1)

        given = {name: x if name == "sample" else cut(x) for name, x in given.items()}
        return super().part(given, frames, count)

    def source_latents(self, pipe: Any, video: Tensor) -> Tensor:
        vae = pipe.vae
        frames = video[0].transpose(0, 1).to(vae.dtype)
        parts = [vae.encode(part).latent_dist.mode().float() for part in frames.split(16)]
        clean: Tensor = torch.cat(parts).transpose(0, 1)[None] * vae.config.scaling_factor
        return clean


def _parts(denoiser: Any, name: str) -> Iterator[Any]:
    """The modules of blocks by that name, from the input to the output."""
    for block in (*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks):
        yield from getattr(block, name, ())
