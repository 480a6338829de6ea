"""Wan's transformer in less memory: matrices of its layers in FP8, layers on the CPU.

The other weights, a tenth of a 1.3B model's and a thirtieth of a 14B one's, stay as they are. It
does not know how much memory there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from stillframe.backbones.fused.transformer import join_projections
from stillframe.backbones.meter import typed
from stillframe.backbones.wan import empty_transformer
from stillframe.errors import ModelError
from stillframe.kernels.linear import PackedLinear, pack_linear
from stillframe.kernels.offload import Offloaded, bring, is_offloaded, offloaded_bytes
from stillframe.kernels.weights import MOVED

__all__ = [
    "bytes_offloaded",
    "offload_transformer",
    "pack_transformer",
    "planned_transformer",
    "unread_transformer",
]


def planned_transformer(
    config: Mapping[str, Any], dtype: torch.dtype, weights: str
) -> WanTransformer3DModel:
    """The transformer of a configuration on the meta device, its weights "exact" or in "fp8".

    Raises:
        ModelError: see `empty_transformer`.
    """
    transformer = typed(empty_transformer(config), dtype)
    return pack_transformer(transformer) if weights == "fp8" else transformer


def unread_transformer(
    config: Mapping[str, Any], dtype: torch.dtype, weights: str
) -> WanTransformer3DModel:
    """The same with zeros for weights, which take no memory before they are read.

    Raises:
        ModelError: see `empty_transformer`.
    """
    transformer = planned_transformer(config, dtype, weights)
    zeros = {
        name: torch.zeros(weight.shape, dtype=weight.dtype)
        for name, weight in transformer.state_dict().items()
        if weight.is_meta
    }
    transformer.load_state_dict(zeros, strict=False, assign=True)
    return transformer.requires_grad_(False)


def pack_transformer(
    transformer: WanTransformer3DModel, device: torch.device | None = None
) -> WanTransformer3DModel:
    """Replace the linear layers of all blocks by packed ones, in place; what was there is released.

    Adapters (LoRA) have to be merged before: what is rounded once can be changed no more.

    Args:
        transformer: its layers are plain; packed ones stay as they are.
        device: where to compute, one layer at a time; None: where the weights lie, and stay.

    Returns:
        the same transformer.
    """
    where = transformer.device
    for block in transformer.blocks:
        for module in list(block.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is nn.Linear and layer.bias is not None:
                    packed = pack_linear(layer if device is None else layer.to(device)).to(where)
                    setattr(module, name, packed.eval())
    return transformer


def bytes_offloaded(transformer: WanTransformer3DModel, count: int) -> int:
    """Bytes that a device is spared if so many layers are offloaded; below 0 if it is not."""
    weights = [_matrices(transformer.blocks[i]) for i in _chosen(transformer, count)]
    return sum(x.nbytes for layer in weights for x in layer) - offloaded_bytes(weights)


def offload_transformer(
    transformer: WanTransformer3DModel, device: torch.device, count: int
) -> WanTransformer3DModel:
    """Keep the matrices of some layers on the CPU, and bring each to ``device`` before it runs.

    They are spread among the others, so that copying and computing overlap. All else has to be
    moved to ``device`` by the caller. From then on these layers cannot be changed or saved.

    Args:
        transformer: on any device; packed or not.
        device: where it computes.
        count: of layers.

    Returns:
        the same transformer.

    Raises:
        ValueError: there are not so many layers.
    """
    if not 0 <= count <= len(transformer.blocks):
        raise ValueError(f"the model has {len(transformer.blocks)} layers to offload, got {count}")
    layers = [transformer.blocks[i] for i in _chosen(transformer, count)]
    if not layers:
        return transformer
    # what is joined later would be copied, and stay on the device
    join_projections(transformer)
    for layer in layers:
        for module in layer.modules():
            if _matrix(module) is not None:
                module.__dict__[MOVED] = True
        layer.register_forward_pre_hook(_brought)
    Offloaded(layers, [_matrices(layer) for layer in layers], device)
    transformer.register_state_dict_pre_hook(_refuse)
    transformer.register_load_state_dict_pre_hook(_refuse)
    return transformer


def _chosen(transformer: WanTransformer3DModel, count: int) -> list[int]:
    """Layers, as far from each other as can be; the first one comes as late as can be."""
    layers = len(transformer.blocks)
    return [-(-(i + 1) * layers // count) - 1 for i in range(count)]


def _matrix(module: nn.Module) -> Tensor | None:
    """The parameter that takes a linear layer's memory."""
    if isinstance(module, PackedLinear):
        return module.rows
    return module.weight if isinstance(module, nn.Linear) else None


def _matrices(layer: nn.Module) -> Sequence[Tensor]:
    found = map(_matrix, layer.modules())
    return [x for x in found if x is not None]


def _brought(layer: nn.Module, _: Any) -> None:
    bring(layer)


def _refuse(module: Any, *_: Any) -> None:
    count = sum(is_offloaded(layer) for layer in module.blocks)
    raise ModelError(f"the weights of {count} layers are offloaded: they cannot be read or changed")
