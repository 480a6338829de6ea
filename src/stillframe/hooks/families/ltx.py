"""LTX-Video: text and image to video, and conditions on pictures and videos at any frame.

Its latents are tokens already. Conditions at later frames are tokens in front of the video's, those
at the first frame replace its own; both have timesteps of their own, and are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from stillframe.errors import InputError
from stillframe.hooks.families.base import Processor, in_heads, register, rotated
from stillframe.hooks.families.transformer import TransformerFamily
from stillframe.hooks.passes import Block, KeysValues, Pass
from stillframe.hooks.pruning import ClipPlan, Geometry

__all__ = ["LTX"]


class _SelfAttention(Processor):
    family: TransformerFamily

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        current = self.running()
        if current is None:
            given = (encoder_hidden_states, attention_mask, image_rotary_emb)
            return self.stock(attn, hidden_states, *given)
        assert image_rotary_emb is not None
        key, value = self.family.keys_values(attn, hidden_states)
        own = self.family.own(attn, current)
        key, value = current.complete(self.number, key, value, own)
        query = attn.norm_q(attn.to_q(hidden_states))
        query = rotated(query, *(current.cut_shared(x) for x in image_rotary_emb))
        # heads share one table here: rotation is of all of them as one
        table = (current.of_keys(x, key, 1) for x in image_rotary_emb)
        key = in_heads(attn, rotated(key.flatten(2), *table))
        out = dispatch_attention_fn(
            in_heads(attn, query), key, value, backend=self._attention_backend
        )
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).to(query.dtype)))


@register
class LTX(TransformerFamily):
    """``LTXVideoTransformer3DModel``."""

    transformers = ("LTXVideoTransformer3DModel",)
    processor = _SelfAttention

    def geometry(self, pipe: Any) -> Geometry:
        patches = pipe.transformer_temporal_patch_size, pipe.transformer_spatial_patch_size
        if patches != (1, 1):
            raise InputError(f"patches must be one latent cell, those of this model are {patches}")
        return Geometry(
            temporal=pipe.vae_temporal_compression_ratio,
            single=True,
            pixels=pipe.vae_spatial_compression_ratio,
            patch=1,
        )

    def grid(
        self, latents: Tensor, geometry: Geometry, call: Mapping[str, Any]
    ) -> tuple[int, int, int]:
        # the defaults of its pipelines
        height, width = call.get("height") or 512, call.get("width") or 704
        rows, columns = height // geometry.pixels, width // geometry.pixels
        return latents.shape[1] // (rows * columns), rows, columns

    def leading(self, call: Mapping[str, Any], grid: tuple[int, int, int]) -> int:
        if all(call.get(name) is None for name in ("conditions", "video", "image")):
            return 0
        return grid[0] - ((call.get("num_frames") or 161) - 1) // 8 - 1

    def weight(self, scheduler: Any, timestep: Tensor) -> float:
        # where all tokens are conditioned, less noisy than the scheduler's step says
        steps: int = scheduler.config.num_train_timesteps
        return steps / float(timestep.max())

    def stacks(self, denoiser: Any) -> list[Sequence[nn.Module]]:
        return [denoiser.transformer_blocks]

    def attention(self, block: Any) -> nn.Module:
        attn: nn.Module = block.attn1
        return attn

    def head(self, denoiser: Any) -> nn.Module:
        head: nn.Module = denoiser.norm_out
        return head

    def cut(self, block: Block, current: Pass) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden_states = current.cut(self.state(block))
        temb = current.cut_shared(block.kwargs["temb"])
        return block.args, {**block.kwargs, "hidden_states": hidden_states, "temb": temb}

    def state(self, block: Block) -> Tensor:
        state: Tensor = block.kwargs["hidden_states"]
        return state

    def attention_input(self, block: Block, state: Tensor, current: Pass) -> Tensor:
        table = block.module.scale_shift_table
        # (B, 1 or T, 6 D): shift and scale of attention come first
        temb = block.kwargs["temb"].unflatten(2, (len(table), -1))[:, :, :2]
        shift, scale = (table[:2] + current.pruned(temb)).unbind(2)
        normed: Tensor = block.module.norm1(state)
        return normed * (1 + scale) + shift

    def keys_values(self, attn: Any, hidden_states: Tensor) -> KeysValues:
        key, value = attn.norm_k(attn.to_k(hidden_states)), attn.to_v(hidden_states)
        return in_heads(attn, key), in_heads(attn, value)

    def restored(
        self, output: Tensor, latents: Tensor, plan: ClipPlan, patch: int, weight: float
    ) -> Tensor:
        x, rows = latents.float(), plan.kept[plan.rows]
        noise = x - x.index_select(1, rows)
        return output.float().index_select(1, rows) + weight * noise

    def source_latents(self, pipe: Any, video: Tensor) -> Tensor:
        vae = pipe.vae
        latents = vae.encode(video.to(vae.dtype)).latent_dist.mode().float()
        mean, std = (
            x.view(1, -1, 1, 1, 1).to(latents) for x in (vae.latents_mean, vae.latents_std)
        )
        clean = (latents - mean) * vae.config.scaling_factor / std
        return clean.flatten(2).transpose(1, 2)

    def with_source(self, latents: Tensor, source: Tensor) -> Tensor:
        clean = latents.clone()
        clean[:, -source.shape[1] :] = source.to(latents)
        return clean
