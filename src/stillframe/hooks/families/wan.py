"""Wan 2.1 and 2.2: text, image and video to video, VACE, two experts, a timestep for every token.

Nothing of diffusers is imported but its dispatch of attention kernels: a model's modules are found
on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from stillframe.errors import InputError
from stillframe.hooks.families.base import Processor, in_heads, register, rotated
from stillframe.hooks.families.transformer import TransformerFamily
from stillframe.hooks.passes import Block, KeysValues, Pass
from stillframe.hooks.pruning import Geometry

__all__ = ["Wan"]


class _SelfAttention(Processor):
    family: TransformerFamily

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        current = self.running()
        if current is None:
            given = (encoder_hidden_states, attention_mask, rotary_emb)
            return self.stock(attn, hidden_states, *given)
        assert rotary_emb is not None
        if getattr(attn, "fused_projections", False):
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
            key, value = in_heads(attn, attn.norm_k(key)), in_heads(attn, value)
        else:
            query = attn.to_q(hidden_states)
            key, value = self.family.keys_values(attn, hidden_states)
        own = self.family.own(attn, current)
        key, value = current.complete(self.number, key, value, own)
        table = [current.cut_shared(x) for x in rotary_emb]
        query = rotated(in_heads(attn, attn.norm_q(query)), *table)
        key = rotated(key, *(current.of_keys(x, key, 1) for x in rotary_emb))
        out = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


def _is_control(block: Block) -> bool:
    """Whether a block is one of VACE's, which take the video's tokens and the control's."""
    return hasattr(block.module, "proj_in")


@register
class Wan(TransformerFamily):
    """``WanTransformer3DModel`` and ``WanVACETransformer3DModel``."""

    transformers: ClassVar[tuple[str, ...]] = (
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
    )
    processor = _SelfAttention

    def geometry(self, pipe: Any) -> Geometry:
        denoiser: Any = self.denoisers(pipe)[0]
        patch = denoiser.config.patch_size
        if patch[0] != 1 or patch[1] != patch[2]:
            raise InputError(f"patches must be 1 x p x p, this transformer has {tuple(patch)}")
        return Geometry(
            temporal=pipe.vae_scale_factor_temporal,
            single=True,
            pixels=pipe.vae_scale_factor_spatial * patch[1],
            patch=patch[1],
        )

    def stacks(self, denoiser: Any) -> list[Sequence[nn.Module]]:
        stacks = [denoiser.blocks]
        if hasattr(denoiser, "vace_blocks"):
            stacks.append(denoiser.vace_blocks)
        return stacks

    def attention(self, block: Any) -> nn.Module:
        attn: nn.Module = block.attn1
        return attn

    def head(self, denoiser: Any) -> nn.Module:
        head: nn.Module = denoiser.norm_out
        return head

    def cut(self, block: Block, current: Pass) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden_states, text, *control, temb, rotary = block.args
        control = [current.cut(x) for x in control]
        # times of tokens: (B, T, 6, D); of a whole video: (B, 6, D)
        temb = current.cut_shared(temb) if temb.ndim == 4 else temb
        return (current.cut(hidden_states), text, *control, temb, rotary), block.kwargs

    def state(self, block: Block) -> Tensor:
        if not _is_control(block):
            state: Tensor = block.args[0]
        elif block.module.proj_in is None:
            state = block.args[2]
        else:
            state = block.module.proj_in(block.args[2]) + block.args[0]
        return state

    def attention_input(self, block: Block, state: Tensor, current: Pass) -> Tensor:
        temb, table = block.args[-2], block.module.scale_shift_table
        if temb.ndim == 4:
            shift, scale = (table[:, :2] + current.pruned(temb[:, :, :2]).float()).unbind(2)
        else:
            shift, scale = (table[:, :2] + temb[:, :2].float()).chunk(2, dim=1)
        normed: Tensor = block.module.norm1(state.float())
        return (normed * (1 + scale) + shift).type_as(state)

    def keys_values(self, attn: Any, hidden_states: Tensor) -> KeysValues:
        if getattr(attn, "fused_projections", False):
            key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)[1:]
        else:
            key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        return in_heads(attn, attn.norm_k(key)), in_heads(attn, value)

    def leading(self, call: Mapping[str, Any], grid: tuple[int, int, int]) -> int:
        # VACE's reference images are latent frames in front
        given = call.get("reference_images")
        while isinstance(given, list | tuple) and given and isinstance(given[0], list | tuple):
            given = given[0]
        if given is None:
            return 0
        return len(given) if isinstance(given, list | tuple) else 1

    def source_latents(self, pipe: Any, video: Tensor) -> Tensor:
        vae = pipe.vae
        latents = vae.encode(video.to(vae.dtype)).latent_dist.mode().float()
        mean, std = (
            torch.tensor(x, device=latents.device).view(1, -1, 1, 1, 1)
            for x in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (latents - mean) / std
