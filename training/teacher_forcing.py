"""Block-causal training of a stock Wan transformer, with blocks in the batch dimension.

A clip of nb blocks of S latent frames becomes 2 nb - 1 *items*: a clean copy of every block but the
last (timestep 0: what the engine's cache holds at inference) and a noisy copy of every block (its
own sigma: what is denoised). Items go through diffusers' own forward as a batch; only in
self-attention do they meet, and there the processor below gathers, for every item of block b,

    [ first frame of clean block 0 | clean block b-1 | the item itself ]

which is the window "first frame and last 6 frames, block included". No mask is needed: attention is
whole within every call, and blocks 2 and later have equal key counts and share one.

The processor finds its rotary tables in the ``rotary_emb`` slot, which diffusers passes untouched.

This file knows nothing of data, losses or noise schedules. Teacher forcing over blocks follows
Self Forcing (Huang et al. 2025) and CausVid (Yin et al. 2025); the batching is ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BlockPositions", "Rotary", "TeacherForcing", "TeacherForcingProcessor", "rotate"]


class Rotary(NamedTuple):
    """Rotary tables of all items, and of the sink at position 0.

    ``cos, sin``: (items, 1, S*N, 1, D/2). ``sink_cos, sink_sin``: (1, N, 1, D/2). Items are in the
    order clean 0, noisy 0, clean 1, noisy 1, ..., noisy nb-1.
    """

    cos: Tensor
    sin: Tensor
    sink_cos: Tensor
    sink_sin: Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of the last dimension of ``x`` (..., D) by tables (..., D/2) of angles."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class BlockPositions(nn.Module):
    """Stands in for a model's rotary module: every item at its block's place in the clip.

    Args:
        rope: the model's own module; its tables are used.
        blocks: blocks a clip, nb.
        gap: latent frames dropped between the sink and the clip, as in a long stream: block b
            stands at ``gap + b S`` while the sink that blocks 2 and later see stays at 0.
    """

    def __init__(self, rope: nn.Module, blocks: int, gap: int = 0) -> None:
        super().__init__()
        self.rope, self.blocks, self.gap = rope, blocks, gap

    def _tables(self, table: Tensor, stride: int, frames: Tensor, h: int, w: int) -> Tensor:
        rope: Any = self.rope
        time, rows, columns = table[:, stride::2].split(
            [rope.t_dim // 2, rope.h_dim // 2, rope.w_dim // 2], 1
        )
        shape = (len(frames), h, w, -1)
        return torch.cat(
            [
                time[frames].view(-1, 1, 1, time.shape[1]).expand(shape),
                rows[:h].view(1, h, 1, -1).expand(shape),
                columns[:w].view(1, 1, w, -1).expand(shape),
            ],
            -1,
        )  # F h w D/2

    def forward(self, hidden_states: Tensor) -> Rotary:
        """Tables for ``hidden_states`` (items * B, C, S, H, W)."""
        rope: Any = self.rope
        _, _, size, height, width = hidden_states.shape
        h, w = height // rope.patch_size[1], width // rope.patch_size[2]
        item_blocks = torch.arange(self.blocks).repeat_interleave(2)[
            [*range(2 * self.blocks - 2), 2 * self.blocks - 1]
        ]
        frames = (self.gap + item_blocks[:, None] * size + torch.arange(size)).flatten()
        frames = frames.to(rope.freqs_cos.device)
        # tables repeat every angle twice: cosines are read at even places, sines at odd ones
        cos = self._tables(rope.freqs_cos, 0, frames, h, w)
        sin = self._tables(rope.freqs_sin, 1, frames, h, w)
        zero = frames.new_zeros(1)
        shape = (len(item_blocks), 1, size * h * w, 1, cos.shape[-1])
        return Rotary(
            cos.reshape(shape),
            sin.reshape(shape),
            self._tables(rope.freqs_cos, 0, zero, h, w).reshape(1, h * w, 1, -1),
            self._tables(rope.freqs_sin, 1, zero, h, w).reshape(1, h * w, 1, -1),
        )


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention of (items, B, L, heads, D) on (items, B, K, heads, D)."""
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).unflatten(0, query.shape[:2])


class TeacherForcingProcessor:
    """Self-attention over items, see the file's docstring; takes its tables from ``rotary_emb``."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        assert rotary_emb is not None
        items, tokens = rotary_emb.cos.shape[0], rotary_emb.sink_cos.shape[1]
        query = attn.norm_q(attn.to_q(hidden_states))
        key = attn.norm_k(attn.to_k(hidden_states))
        value = attn.to_v(hidden_states)
        query, key, value = (
            x.unflatten(2, (attn.heads, -1)).unflatten(0, (items, -1)) for x in (query, key, value)
        )  # items B L heads D
        first = key[0, :, :tokens]
        sink = rotate(first, rotary_emb.sink_cos, rotary_emb.sink_sin).to(value.dtype)
        query = rotate(query, rotary_emb.cos, rotary_emb.sin).to(value.dtype)
        key = rotate(key, rotary_emb.cos, rotary_emb.sin).to(value.dtype)
        out = [_attend(query[:2], key[:2], value[:2])]
        if items > 2:
            both = (-1, min(items, 4) - 2)
            key_1, value_1 = (
                torch.cat([x[:1].expand(both[1], -1, -1, -1, -1), x[2:4]], 2) for x in (key, value)
            )
            out.append(_attend(query[2:4], key_1, value_1))
        if items > 4:
            count = items - 4
            parts = []
            for x, start in ((key, sink), (value, value[0, :, :tokens])):
                before = x[2:-1:2].repeat_interleave(2, 0)[:count]
                parts.append(torch.cat([start.expand(count, -1, -1, -1, -1), before, x[4:]], 2))
            out.append(_attend(query[4:], parts[0], parts[1]))
        result = torch.cat(out).flatten(3).flatten(0, 1)
        return attn.to_out[1](attn.to_out[0](result))


class TeacherForcing:
    """Predicts the velocity of all blocks of a clip at once.

    Takes over ``model``: its self-attention processors and its rotary module are replaced. Its
    parameters stay as they are, so its ``state_dict`` is that of the stock model.

    Args:
        model: a ``WanTransformer3DModel``.
        size: S, latent frames a block.
    """

    def __init__(self, model: Any, size: int = 3) -> None:
        self.model, self.size = model, size
        self.rope = model.rope
        processor = TeacherForcingProcessor()
        for block in model.blocks:
            block.attn1.processor = processor

    def _items(self, clean: Tensor, noisy: Tensor) -> Tensor:
        """(B, C, F, h, w) twice -> (items * B, C, S, h, w), interleaved, last clean left out."""
        pair = torch.stack([clean, noisy]).unflatten(3, (-1, self.size)).movedim(3, 0)
        items = pair.flatten(0, 1)  # 2nb B C S h w
        return torch.cat([items[:-2], items[-1:]]).flatten(0, 1)

    def __call__(
        self,
        noisy: Tensor,
        clean: Tensor,
        source: Tensor,
        sigma: Tensor,
        text: Tensor,
        gap: int = 0,
    ) -> Tensor:
        """Velocities of a batch of clips.

        Args:
            noisy: (B, C, F, h, w), F = nb S; every block at its own sigma.
            clean: (B, C, F, h, w), what the blocks before look like to a block.
            source: (B, C, F, h, w) latents of the source, zeros where it is not given.
            sigma: (B, nb).
            text: (B, L, E) encoded captions.
            gap: see ``BlockPositions``.

        Returns:
            (B, C, F, h, w)
        """
        blocks = sigma.shape[1]
        hidden = torch.cat([self._items(clean, noisy), self._items(source, source)], 1)
        noise_level = torch.stack([torch.zeros_like(sigma.T), 1000 * sigma.T], 1).flatten(0, 1)
        noise_level = torch.cat([noise_level[:-2], noise_level[-1:]])  # items B
        items = len(noise_level)
        self.model.rope = BlockPositions(self.rope, blocks, gap)
        try:
            velocity = self.model(
                hidden_states=hidden,
                timestep=noise_level.flatten(),
                encoder_hidden_states=text.repeat(items, 1, 1),
                return_dict=False,
            )[0]
        finally:
            self.model.rope = self.rope
        velocity = velocity.unflatten(0, (items, -1))
        noisy_items = [*range(1, items - 1, 2), items - 1]
        return velocity[noisy_items].movedim(0, 2).flatten(2, 3)
