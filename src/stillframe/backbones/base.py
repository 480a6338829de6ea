"""What the engine needs of a transformer, whatever family it is of.

A backbone runs some of a block's tokens through a model, and hands queries, keys and values of its
self-attention to `BlockAttention`. It may offer passes of its own that do the same in fewer
kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stillframe.attention.block import BlockAttention, Provides
from stillframe.attention.cache import KeyValueCache
from stillframe.tokens.grid import Plan
from stillframe.tokens.schedule import Pass

__all__ = ["Backbone", "BlockInputs", "FusedPasses", "TextCache"]


@dataclass(frozen=True)
class TextCache:
    """Cross-attention keys and values of a prompt, one entry a layer: (B, L, heads, head_dim).

    ``embeds`` is what they were projected from, and ``revision`` by which weights.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    embeds: Tensor
    revision: int = 0


class BlockInputs(NamedTuple):
    """What a block is denoised from.

    Attributes:
        source: (S*N, P) source latents.
        noise: (S*N, P) for each pass.
        passes: noise levels of each pass.
        kept: passes that a recovery has a store for, the last ones.
        timestep_scale: the model's timestep at sigma 1.
        shows_source: whether the model sees the source beside what it denoises.
        context: noise level of the context pass; its noise is the last pass's.
    """

    source: Tensor
    noise: Sequence[Tensor]
    passes: Sequence[Pass]
    kept: int
    timestep_scale: float
    shows_source: bool
    context: float = 0.0


class FusedPasses(Protocol):
    """A stream's denoising and context passes in fewer kernels, equal to the plain ones.

    Attributes:
        lengths: that computed tokens are padded to, rising; the last is a whole block.
    """

    @property
    def lengths(self) -> Sequence[int]: ...

    @property
    def captured(self) -> int:
        """CUDA graphs that were captured for blocks of the stream."""

    def can(self, plan: Plan) -> bool:
        """Whether a block can be run this way."""

    def denoise(self, plan: Plan, text: TextCache, inputs: BlockInputs) -> Tensor:
        """The denoising passes of a block: (1, S*N, P) float32 results at their slots, zero
        elsewhere; `commit` has to follow."""

    def commit(self) -> None:
        """The context pass: commit the block's clean keys and values."""

    def warm(self, counts: Sequence[int] | None) -> Iterator[int]:
        """Capture the lengths of some numbers of tokens, or of all, for blocks like the latest one,
        in a stream that is made for this; yields each length."""


class Backbone(Protocol):
    """A transformer as a function of tokens.

    Attributes:
        transformer: the model itself; threads that share it take turns.
        latent_channels: C, channels predicted.
        takes_source: whether source latents are concatenated to the input channels.
        patch: side of a token in latent pixels.
        layers, heads, head_dim: of self-attention.
        positions: temporal positions that the model knows.
        device, dtype: of the weights, and of keys and values.
    """

    @property
    def transformer(self) -> nn.Module: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def takes_source(self) -> bool: ...
    @property
    def patch(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def positions(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def revision(self, *, read: bool = True) -> int:
        """A number that rises whenever the weights have been changed since it was asked for.

        Without ``read`` only what the host knows of is noticed: assignments, torch's own operations
        and adapters. Numbers that were changed through ``.data`` take reading them.
        """

    def text(self, embeds: Tensor) -> TextCache:
        """What a prompt's embeddings (B, L, text_dim) come to, once for all passes and blocks."""

    def rotary(self, frames: Sequence[int], height: int, width: int) -> Tensor:
        """Rotations (T, head_dim / 2) of frames at temporal positions, see `rotary_table`."""

    def block_attention(
        self, cache: KeyValueCache, recovery: Provides, position_limit: int, context_sink: bool
    ) -> BlockAttention:
        """Self-attention of a stream's blocks: `BlockAttention` with the model's rotations."""

    def attached(self) -> AbstractContextManager[None]:
        """Within the ``with`` block the model may be called; no other thread runs it."""

    def __call__(
        self, tokens: Tensor, timestep: Tensor, text: TextCache, block: BlockAttention
    ) -> Tensor:
        """Predict for some tokens of a block. Call within `attached`.

        Args:
            tokens: (B, K, p*p*channels in) latent patches, channels last within a patch.
            timestep: (B,) float.
            text: from `text`.
            block: the block's attention, at the right step.

        Returns:
            (B, K, p*p*C): the model's velocity ``v`` for each token.
        """

    def fused(self, attention: BlockAttention, *, fp8: bool) -> FusedPasses | None:
        """Passes of a stream in fewer kernels, None where there are none.

        They are of the weights as they are now: of another `revision`, ask again.

        Args:
            attention: the stream's; its workplaces say whether CUDA graphs are captured.
            fp8: multiply in FP8 where it pays.
        """
