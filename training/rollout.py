"""Plain block-causal inference with what training uses, to check a model: no pruning, no engine.

Blocks are made one after the other; the rotated keys and the values of the first frame and of the
previous block are kept from their context passes, which is what ``teacher_forcing`` trains for.

This file knows nothing of pixels or files. It is written for short clips: positions are absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.teacher_forcing import rotate

__all__ = ["Rollout"]


class _Positions(nn.Module):
    """Stands in for a model's rotary module: tables of one block that starts at frame ``first``."""

    def __init__(self, rope: Any) -> None:
        super().__init__()
        self.rope, self.first = rope, 0

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (1, S*N, 1, D/2), for ``hidden_states`` (B, C, S, H, W)."""
        size = hidden_states.shape[2]
        longer = hidden_states[:, :, :1].expand(-1, -1, self.first + size, -1, -1)
        cos, sin = self.rope(longer)  # 1 F*N 1 D
        tokens = cos.shape[1] // (self.first + size) * size
        return cos[:, -tokens:, :, 0::2], sin[:, -tokens:, :, 1::2]


class _Processor:
    """Self-attention of one layer over [sink | previous block | this block]."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, size: int) -> None:
        self.size = size
        self.sink: tuple[Tensor, Tensor] | None = None
        self.previous: tuple[Tensor, Tensor] | None = None
        self.current: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert rotary_emb is not None
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        query = rotate(query, *rotary_emb).to(value.dtype)
        key = rotate(key, *rotary_emb).to(value.dtype)
        self.current = (key, value)
        seen = [kept for kept in (self.sink, self.previous) if kept is not None]
        keys, values = zip(*seen, self.current, strict=True)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            torch.cat(keys, 1).transpose(1, 2),
            torch.cat(values, 1).transpose(1, 2),
        )
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))

    def commit(self) -> None:
        """Keep this block's keys and values; the first frame of all becomes the sink later on."""
        assert self.current is not None
        if self.previous is not None and self.sink is None:
            tokens = self.previous[0].shape[1] // self.size
            self.sink = (self.previous[0][:, :tokens], self.previous[1][:, :tokens])
        self.previous = self.current


class Rollout:
    """Restyles a clip of latents block by block.

    Takes over ``model`` as ``TeacherForcing`` does.

    Args:
        model: a ``WanTransformer3DModel`` with 2C input channels.
        size: S, latent frames a block.
    """

    def __init__(self, model: Any, size: int = 3) -> None:
        self.model, self.size, self.rope = model, size, model.rope

    def _velocity(self, latents: Tensor, source: Tensor, sigma: float, text: Tensor) -> Tensor:
        timestep = torch.full((len(latents),), 1000 * sigma, device=latents.device)
        return self.model(
            hidden_states=torch.cat([latents, source], 1).to(self.model.dtype),
            timestep=timestep,
            encoder_hidden_states=text,
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def __call__(
        self,
        source: Tensor,
        text: Tensor,
        sigmas: Sequence[float],
        noise: Tensor,
        *,
        sdedit: bool = False,
        context: float = 0.0,
    ) -> Tensor:
        """Restyle ``source``.

        Args:
            source: (B, C, F, h, w) normalised latents, F a multiple of S.
            text: (B, L, E) encoded captions.
            sigmas: falling noise levels, one a step.
            noise: (steps, B, C, F, h, w).
            sdedit: start from the noised source, and give the model no source channels.
            context: noise level of the context pass, whose noise is the last step's.

        Returns:
            (B, C, F, h, w)
        """
        positions = _Positions(self.rope)
        processors = [_Processor(self.size) for _ in self.model.blocks]
        for block, processor in zip(self.model.blocks, processors, strict=True):
            block.attn1.processor = processor
        self.model.rope = positions
        done: list[Tensor] = []
        try:
            for first in range(0, source.shape[2], self.size):
                positions.first = first
                window = slice(first, first + self.size)
                seen = source[:, :, window]
                given = torch.zeros_like(seen) if sdedit else seen
                x0 = seen if sdedit else torch.zeros_like(seen)
                for sigma, draw in zip(sigmas, noise, strict=True):
                    x = (1 - sigma) * x0 + sigma * draw[:, :, window]
                    x0 = x - sigma * self._velocity(x, given, sigma, text)
                x = (1 - context) * x0 + context * noise[-1][:, :, window]
                self._velocity(x, given, context, text)
                for processor in processors:
                    processor.commit()
                done.append(x0)
        finally:
            self.model.rope = self.rope
        return torch.cat(done, 2)
