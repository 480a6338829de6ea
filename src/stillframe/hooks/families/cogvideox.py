"""CogVideoX: text, image and video to video. Text and video are one sequence in its attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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

__all__ = ["CogVideoX"]


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
        current, rotary = self.running(), image_rotary_emb
        if current is None:
            given = (encoder_hidden_states, attention_mask, rotary)
            return self.stock(attn, hidden_states, *given)
        text = encoder_hidden_states
        text_key, text_value = self.family.keys_values(attn, text)
        key, value = self.family.keys_values(attn, hidden_states)
        own = self.family.own(attn, current)
        key, value = current.complete(self.number, key, value, own)
        query, text_query = (
            normed_if_any(attn.norm_q, in_heads(attn, attn.to_q(x))) for x in (hidden_states, text)
        )
        if rotary is not None:
            query = rotated(query, *(current.cut_shared(x, 0)[:, None] for x in rotary))
            key = rotated(key, *(current.of_keys(x, key, 0)[:, None] for x in rotary))
        parts = ((text_query, query), (text_key, key), (text_value, value))
        q, k, v = (torch.cat(pair, 1).transpose(1, 2) for pair in parts)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = attn.to_out[1](attn.to_out[0](out))
        return out[:, text.shape[1] :], out[:, : text.shape[1]]


@register
class CogVideoX(TransformerFamily):
    """``CogVideoXTransformer3DModel``, with patches of one latent frame."""

    transformers = ("CogVideoXTransformer3DModel",)
    processor = _JointAttention
    frame_dim = 1

    def geometry(self, pipe: Any) -> Geometry:
        config = pipe.transformer.config
        if config.patch_size_t not in (None, 1):
            raise InputError(
                f"patches must be one latent frame long, those of this transformer (CogVideoX 1.5) "
                f"are {config.patch_size_t}"
            )
        return Geometry(
            temporal=pipe.vae_scale_factor_temporal,
            single=True,
            pixels=pipe.vae_scale_factor_spatial * config.patch_size,
            patch=config.patch_size,
        )

    def stacks(self, denoiser: Any) -> list[Sequence[nn.Module]]:
        return [denoiser.transformer_blocks]

    def attention(self, block: Any) -> nn.Module:
        attn: nn.Module = block.attn1
        return attn

    def head(self, denoiser: Any) -> nn.Module:
        head: nn.Module = denoiser.norm_final
        return head

    def cut(self, block: Block, current: Pass) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return block.args, {**block.kwargs, "hidden_states": current.cut(self.state(block))}

    def state(self, block: Block) -> Tensor:
        state: Tensor = block.kwargs["hidden_states"]
        return state

    def attention_input(self, block: Block, state: Tensor, current: Pass) -> Tensor:
        text, temb = block.kwargs["encoder_hidden_states"], block.kwargs["temb"]
        normed: Tensor = block.module.norm1(state, text, temb)[0]
        return normed

    def keys_values(self, attn: Any, hidden_states: Tensor) -> KeysValues:
        key = normed_if_any(attn.norm_k, in_heads(attn, attn.to_k(hidden_states)))
        return key, in_heads(attn, attn.to_v(hidden_states))

    def part(self, given: dict[str, Any], frames: Tensor, count: int) -> dict[str, Any]:
        cut, rotary = super().part(given, frames, count), given.get("image_rotary_emb")
        if rotary is not None:  # of all tokens; every part begins at the first position
            rows = len(rotary[0]) // count * len(frames)
            cut["image_rotary_emb"] = tuple(x[:rows] for x in rotary)
        return cut

    def source_latents(self, pipe: Any, video: Tensor) -> Tensor:
        latents = pipe.vae.encode(video.to(pipe.vae.dtype)).latent_dist.mode().float()
        clean: Tensor = latents.transpose(1, 2) * pipe.vae_scaling_factor_image
        return clean
