"""``WanTransformer3DModel`` as a backbone: running it on some of a block's tokens.

diffusers' model is driven through its own submodules, in its own order; nothing of it is copied and
nothing stays attached to it: while `WanDenoiser.attached` is entered, its attention processors are
ours, and on leaving they are what they were. An arbitrary object rides in the rotary slot of each
transformer block to our self-attention processor, and one in the text slot to the cross-attention
processor, so that text keys and values are computed once a prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanRotaryPosEmbed
from diffusers.utils.torch_utils import is_compiled_module
from torch import Tensor

from stillframe.attention.block import Attend, BlockAttention, Provides
from stillframe.attention.cache import KeyValueCache
from stillframe.attention.rotary import rotary_table
from stillframe.backbones.base import FusedPasses, TextCache
from stillframe.backbones.finite import check_model
from stillframe.backbones.fused.blocks import FusedBlocks
from stillframe.backbones.fused.transformer import UNMERGED, FusedTransformer, unsupported
from stillframe.backbones.meter import typed
from stillframe.backbones.model_folder import check_numbers, check_part
from stillframe.errors import ModelError
from stillframe.kernels.offload import bring, expect, is_offloaded
from stillframe.kernels.weights import WeightWatch
from stillframe.turns import model_turn

__all__ = [
    "WanDenoiser",
    "empty_transformer",
    "random_transformer",
    "read_transformer",
    "rotary_axes",
]

#: Without these a configuration is some other model's: diffusers would fill in Wan 14B's numbers.
_NEEDED = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "in_channels")


def empty_transformer(config: Mapping[str, Any]) -> WanTransformer3DModel:
    """The transformer of a configuration with its weights on the meta device, in float32.

    Buffers are real: the rotary tables are in no checkpoint. As in diffusers, keys that the model
    does not know are left out.

    Args:
        config: content of a transformer's ``config.json``.

    Raises:
        ModelError: if it is another model's, or has values that no model can be built from.
    """
    check_numbers(config, "the configuration")
    for name in _NEEDED:
        value = config.get(name)
        if value is None:
            raise ModelError(
                f"the configuration is not that of a Wan transformer: it has no {name}"
            )
        if not isinstance(value, int) or value < 1:
            raise ModelError(
                f"the configuration has {name} = {value!r}, which is no positive number"
            )
    known = signature(WanTransformer3DModel.__init__).parameters
    given = {name: value for name, value in config.items() if name in known}
    try:
        with init_empty_weights(include_buffers=False):
            model: WanTransformer3DModel = WanTransformer3DModel(**given)
    except Exception as error:  # what it says depends on which number is wrong
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"no Wan transformer can be built from the configuration: {reason}"
        raise ModelError(message) from error
    return model.eval().requires_grad_(False)


def random_transformer(config: Mapping[str, Any], dtype: torch.dtype) -> WanTransformer3DModel:
    """A transformer with random weights, on torch's present default device."""
    model = typed(WanTransformer3DModel(**config), dtype)
    return model.eval().requires_grad_(False)


def read_transformer(folder: Path, dtype: torch.dtype) -> WanTransformer3DModel:
    """The transformer of a folder in diffusers' format, whatever its class is called there.

    Folders of causal models name classes of their authors' programs; the weights are Wan's.

    Args:
        folder: has ``config.json`` and weights.
        dtype: of the weights; diffusers' exceptions stay in float32.

    Raises:
        ModelError: its weights lie elsewhere, or are not finite.
    """
    check_part(folder)
    model: WanTransformer3DModel = WanTransformer3DModel.from_pretrained(
        folder, torch_dtype=dtype, local_files_only=True
    )
    check_model(model, f"the transformer in {folder}")
    return model.eval().requires_grad_(False)


def _no_transformer(given: object) -> str:
    if is_compiled_module(given):
        return (
            "a transformer that is compiled as a whole would run as if it were not: "
            "compile its blocks, transformer.compile_repeated_blocks()"
        )
    return f"the transformer is a WanTransformer3DModel, got {type(given).__name__}"


def rotary_axes(rope: WanRotaryPosEmbed) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations by time, height and width, read from the model's own buffers, so that a table of
    them is by construction what the stock model would use; see `rotary_table`."""
    # the buffers repeat every value for the two numbers of a pair: one of each is enough
    table = torch.complex(rope.freqs_cos[:, 0::2].float(), rope.freqs_sin[:, 1::2].float())
    t, h, w = table.split([rope.t_dim // 2, rope.h_dim // 2, rope.w_dim // 2], dim=1)
    return t, h, w


def _heads(attn: WanAttention, x: Tensor) -> Tensor:
    return x.unflatten(2, (attn.heads, -1))


def _keys(attn: WanAttention, hidden_states: Tensor) -> Tensor:
    if attn.fused_projections:
        key = attn.to_qkv(hidden_states).chunk(3, dim=-1)[1]
    else:
        key = attn.to_k(hidden_states)
    return _heads(attn, attn.norm_k(key))


class _SelfAttention:
    """Self-attention processor: projections here, keys and values of others from the block.

    Calls that are not ours, from another thread, are the stock processor's.
    """

    _parallel_config = None

    def __init__(self, layer: int, stock: Any) -> None:
        self.layer = layer
        self._stock = stock
        self._attention_backend = stock._attention_backend

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        if not isinstance(rotary_emb, BlockAttention):
            given = (encoder_hidden_states, attention_mask, rotary_emb)
            return self._stock(attn, hidden_states, *given)
        keys, attention = partial(_keys, attn, hidden_states), partial(self._attend, attn)
        return rotary_emb.run(self.layer, hidden_states, keys, attention)

    def _attend(self, attn: WanAttention, hidden_states: Tensor, attend: Attend) -> Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query = attn.to_q(hidden_states)
            key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        out = attend(
            _heads(attn, attn.norm_q(query)),
            _heads(attn, attn.norm_k(key)),
            _heads(attn, value),
            self._attention_backend,
        )
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


class _CrossAttention:
    """Cross-attention processor over cached text keys and values, see `_SelfAttention`."""

    _parallel_config = None

    def __init__(self, layer: int, stock: Any) -> None:
        self.layer = layer
        self._stock = stock
        self._attention_backend = stock._attention_backend

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        if not isinstance(encoder_hidden_states, TextCache):
            given = (encoder_hidden_states, attention_mask, rotary_emb)
            return self._stock(attn, hidden_states, *given)
        query = _heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        out = dispatch_attention_fn(
            query,
            encoder_hidden_states.keys[self.layer],
            encoder_hidden_states.values[self.layer],
            backend=self._attention_backend,
        )
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


class WanDenoiser:
    """A ``WanTransformer3DModel`` as a function of tokens.

    Attributes:
        latent_channels: channels predicted.
        takes_source: whether source latents are concatenated to the input channels.
        patch: side of a token in latent pixels.
        layers, heads, head_dim: of self-attention.
        positions: temporal positions that the model knows.

    Raises:
        ModelError: for model variants this engine does not drive (image conditioning, patches that
            span several latent frames, input channels that are neither C nor 2C), and for what is
            none, such as a model that was compiled as a whole: its forward is never called.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        if not isinstance(transformer, WanTransformer3DModel):
            raise ModelError(_no_transformer(transformer))
        config = transformer.config
        p_t, p_h, p_w = config.patch_size
        if p_t != 1 or p_h != p_w:
            raise ModelError(
                f"patches must be 1 x p x p, this transformer has {tuple(config.patch_size)}"
            )
        if config.image_dim is not None or config.added_kv_proj_dim is not None:
            raise ModelError("image-conditioned (I2V) transformers are not supported")
        channels = config.out_channels or config.in_channels
        if config.in_channels not in (channels, 2 * channels):
            raise ModelError(
                f"the transformer takes {config.in_channels} channels and predicts {channels}; "
                f"supported are {channels} and, with source latents, {2 * channels}"
            )
        self.transformer = transformer
        self.latent_channels: int = channels
        self.takes_source: bool = config.in_channels == 2 * channels
        self.patch: int = p_h
        self.layers: int = config.num_layers
        self.heads: int = config.num_attention_heads
        self.head_dim: int = config.attention_head_dim
        self.positions: int = config.rope_max_seq_len
        self._watch = WeightWatch()
        self._fused: tuple[int, FusedTransformer] | None = None
        self._warned = False

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        device: torch.device = self.transformer.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of keys and values."""
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    def rotary(self, frames: Sequence[int], height: int, width: int) -> Tensor:
        """See `Backbone.rotary`."""
        return rotary_table(rotary_axes(self.transformer.rope), frames, height, width)

    def block_attention(
        self, cache: KeyValueCache, recovery: Provides, position_limit: int, context_sink: bool
    ) -> BlockAttention:
        """See `Backbone.block_attention`."""
        return BlockAttention(cache, self.rotary, recovery, position_limit, context_sink)

    def revision(self, *, read: bool = True) -> int:
        """See `Backbone.revision`; another attention kernel counts as other weights.

        Raises:
            ModelError: adapters were merged into weights that are offloaded, which are brought
                anew for every pass, without them.
        """
        away = [block for block in self.transformer.blocks if is_offloaded(block)]
        if any(getattr(m, "merged_adapters", None) for block in away for m in block.modules()):
            raise ModelError(
                f"adapters were merged into {len(away)} layers whose weights stay on the CPU, and "
                f"are lost there: merge them with --lora, or when the model is loaded"
            )
        return self._watch.revision(self.transformer, self._kernels, read=read)

    @property
    def _kernels(self) -> tuple[str | None, ...]:
        """What the user chose among diffusers' attention kernels, by layer."""
        blocks = self.transformer.blocks
        return tuple(block.attn1.processor._attention_backend for block in blocks)

    def fused(self, attention: BlockAttention, *, fp8: bool) -> FusedPasses | None:
        """See `Backbone.fused`; for a batch of 1, and layers that are as diffusers makes them.

        Where adapters stand in the way it says so, once.
        """
        if attention.cache.shape.batch != 1 or self._unsupported():
            return None
        return FusedBlocks(self.prepared(fp8), attention, self.shown_channels, fp8=fp8)

    def prepared(self, fp8: bool) -> FusedTransformer:
        """`fused_transformer`, ready to multiply in FP8 if that is asked for."""
        model = self.fused_transformer()
        if fp8:
            model.prepare_fp8()
        return model

    @property
    def shown_channels(self) -> int | None:
        """Latent channels of a source that the model sees beside its input, None for none."""
        return self.latent_channels if self.takes_source else None

    def _unsupported(self) -> bool:
        reason = unsupported(self.transformer)
        if reason == UNMERGED and not self._warned:
            self._warned = True
            warnings.warn(f"passes run unfused, which is slower: {reason}", stacklevel=2)
        return reason is not None

    def fused_transformer(self) -> FusedTransformer:
        """The same weights in fewer kernels: one for all streams, made anew when weights have
        changed."""
        with self._watch.lock:
            revision = self.revision()
            if self._fused is None or self._fused[0] != revision:
                self._fused = None  # its copies need not lie beside the new ones
                # the model's weights become views of what is made here: they must be ordinary
                # tensors
                with torch.inference_mode(False), torch.no_grad():
                    made = self.fuse()
                self._watch.settle(self.transformer, self._kernels)
                self._fused = revision, made
            return self._fused[1]

    def fuse(self) -> FusedTransformer:
        """A fresh `FusedTransformer` of the weights."""
        return FusedTransformer(self.transformer)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Use our attention processors within the ``with`` block; the model's return after it.

        Threads that share the model wait for each other.
        """
        with model_turn(self.transformer):
            blocks = self.transformer.blocks
            before = [(block.attn1.processor, block.attn2.processor) for block in blocks]
            try:
                for layer, (block, (own, cross)) in enumerate(zip(blocks, before, strict=True)):
                    block.attn1.processor = _SelfAttention(layer, own)
                    block.attn2.processor = _CrossAttention(layer, cross)
                yield
            finally:
                for block, (own, cross) in zip(blocks, before, strict=True):
                    block.attn1.processor, block.attn2.processor = own, cross

    def text(self, embeds: Tensor) -> TextCache:
        """Project prompt embeddings (B, L, text_dim) once, for all layers, steps and blocks."""
        revision, embeds = self.revision(), embeds.to(self.dtype)
        hidden = self.transformer.condition_embedder.text_embedder(embeds)
        keys, values = [], []
        for block in self.transformer.blocks:
            bring(block)
            attn = block.attn2
            if attn.fused_projections:
                key, value = attn.to_kv(hidden).chunk(2, dim=-1)
            else:
                key, value = attn.to_k(hidden), attn.to_v(hidden)
            keys.append(_heads(attn, attn.norm_k(key)))
            values.append(_heads(attn, value))
        return TextCache(tuple(keys), tuple(values), embeds, revision)

    def __call__(
        self, tokens: Tensor, timestep: Tensor, text: TextCache, block: BlockAttention
    ) -> Tensor:
        """Predict for some tokens of a block. Call within `attached`.

        Args:
            tokens: (B, K, p*p*channels in) latent patches, channels last within a patch.
            timestep: (B,) float, 1000 sigma.
            text: from `text`.
            block: the block's attention, at the right step.

        Returns:
            (B, K, p*p*C): the model's velocity ``v`` for each token.
        """
        model = self.transformer
        # the weights' type, which text came in: to ask the model walks through all its modules
        hidden = self._embed(tokens.to(text.embeds.dtype))
        # one text token is enough here: the text projections are in `text` already
        temb, modulation, _, _ = model.condition_embedder(timestep, text.embeds[:, :1])
        modulation = modulation.unflatten(1, (6, -1))
        expect(model.blocks)
        for layer in model.blocks:
            hidden = layer(hidden, text, modulation, block)
        shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        normed = model.norm_out(hidden.float()) * (1 + scale) + shift
        return model.proj_out(normed.type_as(hidden))

    def _embed(self, tokens: Tensor) -> Tensor:
        """The model's patch embedding of (B, K, p*p*C) tokens, laid side by side as one strip."""
        b, k, _ = tokens.shape
        p = self.patch
        strip = tokens.reshape(b, k, p, p, -1).permute(0, 4, 2, 1, 3).reshape(b, -1, 1, p, k * p)
        return self.transformer.patch_embedding(strip).flatten(2).transpose(1, 2).contiguous()
