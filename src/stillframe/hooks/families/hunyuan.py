"""HunyuanVideo: text to video, with blocks of two streams and of one. Text is part of the sequence.

Its image to video replaces tokens of the first frame within blocks, and is not supported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from stillframe.errors import InputError
from stillframe.hooks.families.base import (
    Processor,
    in_heads,
    normed_if_any,
    register,
    rotated,
)
from stillframe.hooks.families.transformer import TransformerFamily
from stillframe.hooks.passes import Block, KeysValues, Pass
from stillframe.hooks.pruning import Geometry

__all__ = ["HunyuanVideo"]


class _JointAttention(Processor):
    family: TransformerFamily

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        current, text = self.running(), encoder_hidden_states
        if current is None:
            given = (text, attention_mask, image_rotary_emb)
            return self.stock(attn, hidden_states, *given)
        assert image_rotary_emb is not None
        assert attention_mask is not None
        key, value = self.family.keys_values(attn, hidden_states)
        own = self.family.own(attn, current)
        key, value = current.complete(self.number, key, value, own)
        query = normed_if_any(attn.norm_q, in_heads(attn, attn.to_q(hidden_states)))
        query = rotated(query, *(current.cut_shared(x, 0)[:, None] for x in image_rotary_emb))
        key = rotated(key, *(current.of_keys(x, key, 0)[:, None] for x in image_rotary_emb))
        parts = zip((query, key, value), self._of_text(attn, text), strict=True)
        query, key, value = (torch.cat(pair, 1) for pair in parts)
        # false for some of the text, which comes last
        mask = attention_mask[..., -key.shape[1] :]
        backend = self._attention_backend
        out = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend)
        out = out.flatten(2, 3).to(query.dtype)
        own, of_text = out[:, : -text.shape[1]], out[:, -text.shape[1] :]
        if getattr(attn, "to_out", None) is not None:
            own = attn.to_out[1](attn.to_out[0](own))
        if getattr(attn, "to_add_out", None) is not None:
            of_text = attn.to_add_out(of_text)
        return own, of_text

    def _of_text(self, attn: Any, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the text, with projections of its own in some blocks."""
        if attn.add_q_proj is None:
            query = normed_if_any(attn.norm_q, in_heads(attn, attn.to_q(text)))
            return query, *self.family.keys_values(attn, text)
        query = normed_if_any(attn.norm_added_q, in_heads(attn, attn.add_q_proj(text)))
        key = normed_if_any(attn.norm_added_k, in_heads(attn, attn.add_k_proj(text)))
        return query, key, in_heads(attn, attn.add_v_proj(text))


@register
class HunyuanVideo(TransformerFamily):
    """``HunyuanVideoTransformer3DModel`` without replaced tokens."""

    transformers = ("HunyuanVideoTransformer3DModel",)
    processor = _JointAttention

    def geometry(self, pipe: Any) -> Geometry:
        config = pipe.transformer.config
        if config.patch_size_t != 1:
            raise InputError(
                f"patches must be one latent frame long, those of this transformer are "
                f"{config.patch_size_t}"
            )
        if config.image_condition_type is not None:
            raise InputError(
                f"a HunyuanVideo transformer that takes an image ({config.image_condition_type}) "
                f"cannot be pruned"
            )
        return Geometry(
            temporal=pipe.vae_scale_factor_temporal,
            single=True,
            pixels=pipe.vae_scale_factor_spatial * config.patch_size,
            patch=config.patch_size,
        )

    def stacks(self, denoiser: Any) -> list[Sequence[nn.Module]]:
        return [[*denoiser.transformer_blocks, *denoiser.single_transformer_blocks]]

    def attention(self, block: Any) -> nn.Module:
        attn: nn.Module = block.attn
        return attn

    def head(self, denoiser: Any) -> nn.Module:
        head: nn.Module = denoiser.norm_out
        return head

    def cut(self, block: Block, current: Pass) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (current.cut(self.state(block)), *block.args[1:]), block.kwargs

    def state(self, block: Block) -> Tensor:
        state: Tensor = block.args[0]
        return state

    def attention_input(self, block: Block, state: Tensor, current: Pass) -> Tensor:
        norm = getattr(block.module, "norm1", None) or block.module.norm
        normed: Tensor = norm(state, emb=block.args[2])[0]
        return normed

    def keys_values(self, attn: Any, hidden_states: Tensor) -> KeysValues:
        key = normed_if_any(attn.norm_k, in_heads(attn, attn.to_k(hidden_states)))
        return key, in_heads(attn, attn.to_v(hidden_states))

    def source_latents(self, pipe: Any, video: Tensor) -> Tensor:
        latents = pipe.vae.encode(video.to(pipe.vae.dtype)).latent_dist.mode().float()
        clean: Tensor = latents * pipe.vae.config.scaling_factor
        return clean
