"""What a family of denoisers tells the hooks about itself, in one file.

A family is found by the class of its transformer. One of yours is a subclass of `Family` under
`register`, imported before `hooks.apply`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from diffusers.utils.torch_utils import is_compiled_module
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillframe.errors import InputError
from stillframe.hooks.passes import KeysValues, Pass
from stillframe.hooks.pruning import ClipPlan, Geometry
from stillframe.hooks.restoring import noise_weight

__all__ = [
    "Family",
    "Processor",
    "families",
    "find_family",
    "in_heads",
    "normed_if_any",
    "register",
    "rotated",
]


class Processor:
    """A self-attention processor in the place of diffusers'; subclasses have its ``__call__``.

    Args:
        family: its adapter.
        number: of the self-attention in its denoiser.
        stock: the processor that was there, which runs whatever is not ours.
        running: gives the pass that is running; None: none of ours.
    """

    def __init__(
        self, family: Family, number: int, stock: Any, running: Callable[[], Pass | None]
    ) -> None:
        self.family, self.number, self.stock, self.running = family, number, stock, running

    # what diffusers sets on processors is the stock one's
    @property
    def _attention_backend(self) -> Any:
        return getattr(self.stock, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.stock._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.stock, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.stock._parallel_config = config


def in_heads(attn: Any, x: Tensor) -> Tensor:
    """Queries, keys or values (B, n, D) by head, (B, n, heads, head_dim)."""
    return x.unflatten(2, (attn.heads, -1))


def normed_if_any(norm: Any, x: Tensor) -> Tensor:
    """``x`` normalised; as it is where a model has no such norm."""
    found: Tensor = x if norm is None else norm(x)
    return found


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` (..., D) with neighbouring pairs of numbers rotated, in its own type.

    Written so that no more than its own size lies beside it in float32.

    Args:
        x: queries or keys.
        cos, sin: (..., D) that broadcast to it, every value twice.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[..., 0::2], sin[..., 0::2]
    out = torch.empty_like(x)
    out[..., 0::2] = (even * cos).sub_(odd * sin)
    out[..., 1::2] = (even * sin).add_(odd * cos)
    return out


class Family(ABC):
    """Adapter of a family of denoisers.

    Class attributes:
        transformers: names of the classes of its denoisers.
        latents: what they call the argument that is denoised.
        processor: takes the place of diffusers' self-attention processor.
        frame_dim: which axis of 5D latents counts frames: 2 of (B, C, F, H, W), or 1 of (B, F, C,
            H, W).
    """

    transformers: ClassVar[tuple[str, ...]]
    latents: ClassVar[str] = "hidden_states"
    processor: ClassVar[type[Processor]]
    frame_dim: ClassVar[int] = 2

    def denoisers(self, pipe: Any) -> list[nn.Module]:
        """The denoisers of a pipeline: some have one for high and one for low noise."""
        parts = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
        return [part for part in parts if part is not None]

    @abstractmethod
    def geometry(self, pipe: Any) -> Geometry:
        """How a pipeline cuts a video into tokens.

        Raises:
            InputError: in a way that is not supported.
        """

    @abstractmethod
    def attentions(self, denoiser: Any) -> list[nn.Module]:
        """The self-attentions of a denoiser, whose ``processor`` is replaced."""

    @abstractmethod
    def hang(self, denoiser: Any, running: Callable[[], Pass | None]) -> list[RemovableHandle]:
        """Torch's hooks on a denoiser that leave tokens out and put them back.

        Args:
            denoiser: of the family.
            running: gives the pass that is running; None: none of ours, and nothing is done.
        """

    @abstractmethod
    def keys_values(self, attn: Any, hidden_states: Tensor) -> KeysValues:
        """Keys, before rotation, and values of a self-attention's input."""

    def grid(
        self, latents: Tensor, geometry: Geometry, call: Mapping[str, Any]
    ) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens that a denoiser is called with.

        Args:
            latents: that it is called with.
            geometry: of the pipeline.
            call: arguments of the pipeline's call.
        """
        height, width = latents.shape[-2:]
        frames = latents.shape[self.frame_dim]
        return frames, height // geometry.patch, width // geometry.patch

    def leading(self, call: Mapping[str, Any], grid: tuple[int, int, int]) -> int:
        """Latent frames of the `grid` that a call of the pipeline puts in front of the video's."""
        return 0

    def weight(self, scheduler: Any, timestep: Tensor) -> float:
        """See `noise_weight`."""
        return noise_weight(scheduler, timestep)

    def part(self, given: dict[str, Any], frames: Tensor, count: int) -> dict[str, Any]:
        """Arguments of a denoiser's call on a part of its frames: of 5D tensors, those frames.

        Args:
            given: arguments by name.
            frames: (n,) int64, which of them.
            count: of all.
        """
        dim = self.frame_dim

        def cut(x: Any) -> Any:
            timed = isinstance(x, Tensor) and x.ndim == 5 and x.shape[dim] == count
            return x.index_select(dim, frames.to(x.device)) if timed else x

        return {name: cut(x) for name, x in given.items()}

    def restored(
        self, output: Tensor, latents: Tensor, plan: ClipPlan, patch: int, weight: float
    ) -> Tensor:
        """A denoiser's output with pruned places at their provider's x0, see `restoring`.

        Args:
            output: as the denoiser gives it.
            latents: that it was called with; they may have more channels than the output.
            plan: of the call.
            patch: side of a token in latent cells.
            weight: see `noise_weight`.

        Returns:
            float32: at low noise levels the weight is large, and rounding of it would be seen.
        """
        channels = 3 - self.frame_dim
        x = latents.narrow(channels, 0, output.shape[channels]).float()
        frame = plan.provider.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        if self.frame_dim == 1:
            frame = frame.unsqueeze(1)
        frame = frame.expand(x.shape)
        noise = x - x.gather(self.frame_dim, frame)
        return output.float().gather(self.frame_dim, frame) + weight * noise

    def source_latents(self, pipe: Any, video: Tensor) -> Tensor:
        """The clean latents of a video (1, 3, T, H, W) in [-1, 1], in the denoiser's layout.

        Raises:
            InputError: the family cannot tell.
        """
        raise InputError(f"the stand-in 'source' is not there for {type(pipe).__name__}")

    def with_source(self, latents: Tensor, source: Tensor) -> Tensor:
        """What the denoiser is called with, with the `source_latents` in the place of the noisy
        ones; what was put in front of them stays."""
        clean, frames, channels = latents.clone(), self.frame_dim, 3 - self.frame_dim
        count = source.shape[frames]
        part = clean.narrow(frames, clean.shape[frames] - count, count)
        part.narrow(channels, 0, source.shape[channels]).copy_(source)
        return clean


_FAMILIES: dict[str, Family] = {}


def register(kind: type[Family]) -> type[Family]:
    """Class decorator: make a family known by its transformers."""
    for name in kind.transformers:
        _FAMILIES[name] = kind()
    return kind


def families() -> dict[str, Family]:
    """Every family by the name of a transformer's class."""
    return dict(sorted(_FAMILIES.items()))


def find_family(pipe: Any) -> Family:
    """The family of a pipeline.

    Raises:
        InputError: nothing is known of its transformer, or it is compiled as a whole.
    """
    parts = [getattr(pipe, name, None) for name in ("transformer", "transformer_2", "unet")]
    found = next((part for part in parts if part is not None), None)
    if is_compiled_module(found):
        raise InputError(
            "a denoiser that is compiled as a whole cannot be pruned, because the number of tokens "
            "changes within its graph"
        )
    for kind in type(found).__mro__:
        if kind.__name__ in _FAMILIES:
            return _FAMILIES[kind.__name__]
    known = ", ".join(families())
    has = "no transformer" if found is None else f"a {type(found).__name__}"
    raise InputError(f"a pipeline with one of {known} can be pruned, this one has {has}")
