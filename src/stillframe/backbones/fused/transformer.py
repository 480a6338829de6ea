"""Wan's transformer in as few kernels as pay, over rows of tokens and a cache written in place.

The weights are the stock model's: queries, keys and values are projected at once from one matrix of
which the model's own three become views, so weights are there once and both ways of running stay
possible. Text keys and values come from a `TextCache`, modulation is one row a layer, and what
surrounds the matrix products is fused (``norms``, ``placing``). It does not know blocks of video,
noise or graphs: ``blocks.py`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from stillframe.kernels.attention import Cut, attend, best_cut
from stillframe.kernels.linear import Linear8, PackedLinear, gelu_linear
from stillframe.kernels.norms import (
    Affine,
    Rows8,
    gelu8,
    quantise,
    residual_norm,
    residual_norm8,
)
from stillframe.kernels.offload import bring, expect
from stillframe.kernels.placing import place, rotated_queries
from stillframe.kernels.rows import Displaced, Entries, Sources, Table
from stillframe.kernels.weights import has_hooks

__all__ = [
    "UNMERGED",
    "FusedTransformer",
    "LayerRows",
    "PassInputs",
    "Projected",
    "join_projections",
    "unsupported",
]


class LayerRows(NamedTuple):
    """What a layer of a pass reads and writes beside its tokens.

    Attributes:
        keys, values: (R, C) rows of the cache; the block's own come first.
        taken, kept, displaced: see `placing.place`.
    """

    keys: Tensor
    values: Tensor
    taken: Entries | None
    kept: Entries | None
    displaced: Displaced | None = None


@dataclass(frozen=True)
class PassInputs:
    """What a pass is given beside its tokens.

    Attributes:
        table: rotations of the block's S*N slots.
        slots: (K,) int32 slot of each token.
        sources: where each slot's key and value come from.
        visible: rows of the cache that attention reads.
        layer_rows: the rows of a layer.
        after: called with the layer's number after its attention.
        only_keys: whether the result is not wanted, only what is placed: the context pass.
        fp8: multiply in FP8 where it pays; the model has been prepared for it.
        hidden: rows among the visible ones that attention leaves out.
    """

    table: Table
    slots: Tensor
    sources: Sources
    visible: int
    layer_rows: Callable[[int], LayerRows]
    after: Callable[[int], None] | None = None
    only_keys: bool = False
    fp8: bool = False
    hidden: slice = field(default_factory=lambda: slice(0, 0))


#: Why adapters that are not merged are not run this way.
UNMERGED = "the model has adapters that are active and not merged; fuse_lora() merges them"


def unsupported(transformer: WanTransformer3DModel) -> str | None:
    """Why a transformer cannot be run this way, None if it can."""
    modules = list(transformer.modules())
    if any(has_hooks(module) for module in modules):
        return "its layers have hooks, as offloaded ones do"
    adapted = [m for m in modules if _is_adapted(m)]
    if not all(map(_adds_nothing, adapted)):
        return UNMERGED
    linear = [m for m in transformer.blocks.modules() if hasattr(m, "in_features")]
    linear = [m for m in linear if not _is_adapted(m)]
    if not all(map(_is_plain, linear)):
        return "its projections are not plain linear layers"
    if len({p.device for p in transformer.parameters()}) > 1:
        return "its weights lie on several devices"
    if any(block.attn1.fused_projections for block in transformer.blocks):
        return "its projections are fused already"
    return None


def _is_adapted(module: nn.Module) -> bool:
    """Whether peft has wrapped a layer: it calls that one, and adds to its result."""
    return "merged_adapters" in module.__dict__


def _adds_nothing(layer: Any) -> bool:
    """Whether a wrapped layer does what the one within it does: peft's own order of questions."""
    if layer.disable_adapters:
        return not layer.merged  # else it takes out what is merged when it is called
    if layer.merged:
        return True
    known = getattr(layer, "lora_A", None)
    return known is not None and not any(name in known for name in layer.active_adapters)


def join_projections(transformer: WanTransformer3DModel) -> None:
    """Have the weights that are multiplied at once lie one behind the other."""
    with torch.inference_mode(False), torch.no_grad():
        for block in transformer.blocks:
            _joined(block.attn1)


def _is_plain(layer: Any) -> bool:
    return isinstance(layer, PackedLinear) or (
        type(layer) is nn.Linear and type(layer.weight.data) is Tensor
    )


class Projected(NamedTuple):
    """Queries, keys and values (K, C) before rotation, and the norms that queries and keys have yet
    to go through, if any."""

    query: Tensor
    key: Tensor
    value: Tensor
    norm_query: Tensor | None
    norm_key: Tensor | None


class _Joined(NamedTuple):
    """Weight and bias of several projections."""

    weight: Tensor
    bias: Tensor


def _joined(attn: WanAttention) -> _Joined | PackedLinear:
    """All three projections as one; the module's own weights become views of it."""
    layers = [attn.to_q, attn.to_k, attn.to_v]
    bias = _one([x.bias for x in layers])
    if not isinstance(attn.to_q, PackedLinear):
        return _Joined(_one([x.weight for x in layers]), bias)
    rows, scale = _one([x.rows for x in layers]), _one([x.scale for x in layers])
    return PackedLinear(Rows8(rows, scale), bias)


def _linear8(layer: Any) -> Linear8:
    """A layer in FP8; of a packed one, its own weights."""
    packed = isinstance(layer, PackedLinear)
    return Linear8(layer.packed if packed else layer.weight.data, layer.bias.data)


def _one(parts: list[nn.Parameter]) -> Tensor:
    """Parameters one below the other, which become views of the whole; as they are if they lie so.

    A model that two pipelines share is thus joined once.
    """
    rows, after = sum(len(x) for x in parts), parts[0].storage_offset()
    storage = parts[0].untyped_storage().data_ptr()
    for x in parts:
        if not x.is_contiguous() or (x.untyped_storage().data_ptr(), x.storage_offset()) != (
            storage,
            after,
        ):
            break
        after += x.numel()
    else:
        first = parts[0].data
        return first.as_strided((rows, *first.shape[1:]), first.stride())
    whole = torch.cat([x.data for x in parts])
    for x, view in zip(parts, whole.split([len(x) for x in parts]), strict=True):
        x.data = view
    return whole


class _Layer8(NamedTuple):
    """The products of a layer that are worth doing in FP8: their inputs come out of a kernel."""

    qkv: Linear8
    text_query: Linear8
    first: Linear8
    second: Linear8

    @classmethod
    def of(cls, block: WanTransformerBlock, qkv: _Joined | PackedLinear) -> _Layer8:
        layers = qkv, block.attn2.to_q, block.ffn.net[0].proj, block.ffn.net[2]
        return cls(*map(_linear8, layers))


class _Layer(NamedTuple):
    """The products of a layer, in the model's numbers or in FP8, on rows that are in the same."""

    block: WanTransformerBlock
    qkv: _Joined | PackedLinear
    in8: _Layer8 | None

    def project(self, x: Any) -> Tensor:
        """Queries, keys and values (K, 3C)."""
        if self.in8 is not None:
            return self.in8.qkv(x)
        return F.linear(x, self.qkv.weight, self.qkv.bias)

    def text_query(self, x: Any) -> Tensor:
        """Queries to the text (K, C)."""
        query: Tensor = self.block.attn2.to_q(x) if self.in8 is None else self.in8.text_query(x)
        return query

    def feed(self, x: Any) -> Tensor:
        """The feed-forward branch (K, C)."""
        if self.in8 is not None:
            return self.in8.second(gelu8(self.in8.first(x)))
        first, second = self.block.ffn.net[0].proj, self.block.ffn.net[2]
        fed: Tensor = second(gelu_linear(x, first.weight, first.bias))
        return fed


class FusedTransformer:
    """A stock model in few kernels, sharing its weights as they are now.

    What is copied (modulation, patch embedding, FP8) follows no change of them: make another one.

    Args:
        transformer: `unsupported` says nothing about it.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        config = transformer.config
        self.model = transformer
        self.heads: int = config.num_attention_heads
        self.layers: int = config.num_layers
        self.head_dim: int = config.attention_head_dim
        self.eps: float = config.eps
        self._qkv = [_joined(block.attn1) for block in transformer.blocks]
        self._in8: list[_Layer8] = []
        # (C, in, 1, p, p) to tokens' order, channels last within a patch
        patch = transformer.patch_embedding.weight.data
        self._embedding = patch.squeeze(2).permute(0, 2, 3, 1).flatten(1).contiguous()
        self._tables = torch.cat([block.scale_shift_table.float() for block in transformer.blocks])
        # what the user chose among diffusers' kernels, if anything
        self._chosen = transformer.blocks[0].attn1.processor._attention_backend
        self._kernels = _fastest(transformer)
        # cutting is worked out for cuDNN's kernel
        self._processors = 0
        if self._kernels == [SDPBackend.CUDNN_ATTENTION]:
            device = torch.cuda.get_device_properties(self._embedding.device)
            self._processors = device.multi_processor_count

    def prepare_fp8(self) -> None:
        """Have weights in FP8 ready, for passes that ask for it.

        Raises:
            ValueError: a layer's sides are no multiples of 16.
        """
        if not self._in8:
            pairs = zip(self.model.blocks, self._qkv, strict=True)
            self._in8 = [_Layer8.of(block, qkv) for block, qkv in pairs]

    def __call__(
        self,
        tokens: Tensor,
        timestep: Tensor,
        text: tuple[Tensor, Tensor],
        inputs: PassInputs,
    ) -> Tensor | None:
        """One pass over some tokens.

        Args:
            tokens: (K, p*p*channels in) latent patches.
            timestep: (1,) float.
            text: keys and values of the prompt, (L, T, C) each.
            inputs: the rest.

        Returns:
            (K, p*p*channels out) velocity; None where only keys and values were wanted.
        """
        model = self.model
        hidden = F.linear(tokens.to(model.dtype), self._embedding, model.patch_embedding.bias)
        temb, modulation = self._modulation(timestep, hidden)
        branch: Tensor | None = None
        gate: Tensor | None = None
        norm: Any = residual_norm8 if inputs.fp8 else residual_norm
        expect(model.blocks)
        for number, block in enumerate(model.blocks):
            bring(block)
            layer = _Layer(block, self._qkv[number], self._in8[number] if inputs.fp8 else None)
            shift, scale, gate_self, shift_ff, scale_ff, gate_ff = modulation[number].unbind(0)
            normed = norm(hidden, branch, gate, Affine(scale, shift, 1), self.eps)
            attended = self._attend(number, layer, normed, inputs)
            if attended is None:
                return None
            branch = _project(attended, block.attn1)
            normed = _before_text(norm, layer, hidden, branch, gate_self, self.eps)
            branch = self._attend_text(layer, normed, (text[0][number], text[1][number]))
            normed = norm(hidden, branch, None, Affine(scale_ff, shift_ff, 1), self.eps)
            branch, gate = layer.feed(normed), gate_ff
        shift, scale = (model.scale_shift_table[0] + temb).float().unbind(0)
        normed = residual_norm(hidden, branch, gate, Affine(scale, shift, 1), self.eps)
        velocity: Tensor = model.proj_out(normed)
        return velocity

    def _modulation(self, timestep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The time embedding (1, C), and every layer's six rows (L, 6, C) in float32."""
        embedder = self.model.condition_embedder
        frequencies = embedder.timesteps_proj(timestep)
        weight = embedder.time_embedder.linear_1.weight
        temb = embedder.time_embedder(frequencies.to(weight.dtype)).type_as(hidden)
        projected = embedder.time_proj(embedder.act_fn(temb)).view(1, 6, -1)
        return temb, self._tables + projected.float()

    def _attend(self, number: int, layer: _Layer, normed: Any, inputs: PassInputs) -> Tensor | None:
        """Self-attention (K, C) of a layer, None where nobody needs it."""
        rows, attn = inputs.layer_rows(number), layer.block.attn1
        query, key, value, norm_query, norm_key = self.projected(layer, normed)
        place(
            key,
            value,
            norm_key,
            attn.norm_k.eps,
            inputs.table,
            inputs.sources,
            (rows.keys, rows.values),
            rows.taken,
            rows.kept,
            rows.displaced,
        )
        last = number == self.layers - 1
        out = None
        if not (inputs.only_keys and last):
            eps = attn.norm_q.eps
            query = rotated_queries(query, norm_query, inputs.table, inputs.slots, eps)
            seen = (_seen(x, inputs) for x in (rows.keys, rows.values))
            out = self.returned(self._attention(query, *seen))
        if inputs.after is not None:
            inputs.after(number)
        return out

    def projected(self, layer: Any, normed: Any) -> Projected:
        """What self-attention of a layer is made of: of these tokens, or of more of them and fewer
        heads."""
        attn = layer.block.attn1
        query, key, value = layer.project(normed).chunk(3, dim=1)
        return Projected(query, key, value, attn.norm_q.weight, attn.norm_k.weight)

    def returned(self, attended: Tensor) -> Tensor:
        """What self-attention gives (K, C), for the tokens and heads that `projected` was given."""
        return attended

    def _attend_text(self, layer: _Layer, normed: Any, text: tuple[Tensor, Tensor]) -> Tensor:
        attn = layer.block.attn2
        norm = attn.norm_q
        query = rotated_queries(layer.text_query(normed), norm.weight, None, None, norm.eps)
        return _project(self._attention(query, *text), attn)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of rows (K, C) over rows (R, C)."""
        heads = query.shape[1] // self.head_dim
        if self._chosen is not None:
            q, k, v = (x.view(1, len(x), heads, -1) for x in (query, key, value))
            out: Any = dispatch_attention_fn(q, k, v, backend=self._chosen)
            return torch.as_tensor(out).reshape(len(query), -1)
        cut = Cut(len(query), 1)
        if self._processors:
            cut = best_cut(len(query), len(key), heads, self._processors)
        q, k, v = (x.unflatten(1, (heads, -1)) for x in (query, key, value))
        return attend(q, k, v, cut, self._kernels)


def _seen(rows: Tensor, inputs: PassInputs) -> Tensor:
    """The rows (R, C) that attention reads."""
    visible, hidden = rows[: inputs.visible], inputs.hidden
    if hidden.start == hidden.stop:
        return visible
    return torch.cat([visible[: hidden.start], visible[hidden.stop :]])


def _project(x: Tensor, attn: WanAttention) -> Tensor:
    projected: Tensor = attn.to_out[0](x)
    return projected


def _before_text(
    norm: Any, layer: _Layer, hidden: Tensor, branch: Tensor, gate: Tensor, eps: float
) -> Any:
    """What queries to the text are made of; some models do not normalise it."""
    affine = _weights_of(layer.block.norm2)
    if affine is not None:
        return norm(hidden, branch, gate, affine, eps)
    added = hidden.add_(branch * gate)
    return added if layer.in8 is None else quantise(added)


def _weights_of(norm: nn.Module) -> Affine | None:
    """Weights of the norm before cross-attention, None where the model has no such norm."""
    if not isinstance(norm, nn.LayerNorm):
        return None
    return Affine(norm.weight, norm.bias, 0)


def _fastest(transformer: WanTransformer3DModel) -> list[SDPBackend]:
    """torch's attention kernels to allow: on Hopper cuDNN's alone, where it takes the dtype."""
    weight = next(transformer.parameters())
    half = weight.is_cuda and transformer.dtype != torch.float32
    if half and torch.cuda.get_device_capability(weight.device) >= (9, 0):
        return [SDPBackend.CUDNN_ATTENTION]
    return [
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
        SDPBackend.CUDNN_ATTENTION,
    ]
