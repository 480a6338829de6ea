"""Residual addition, layer norm and modulation in one kernel, and its twin in torch.

Wan's blocks add a gated branch to the residual stream, normalise the sum in float32 and modulate
it, three times a block; apart these are memory-bound kernels over the same rows. It knows rows, not
models. Kernels are compiled where there is a GPU; the twins are what they are tested against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the twins serve
    triton = None

__all__ = ["Affine", "residual_norm", "residual_norm_twin"]


class Affine:
    """What follows a normalisation: ``x * (one + scale) + shift``, with ``one`` 0 or 1.

    Args:
        scale, shift: (C,) any float dtype.
        one: 1 where ``scale`` is a modulation, 0 where it is a plain weight.
    """

    __slots__ = ("one", "scale", "shift")

    def __init__(self, scale: Tensor, shift: Tensor, one: int) -> None:
        self.scale, self.shift, self.one = scale, shift, one


def residual_norm_twin(
    hidden: Tensor, added: Tensor | None, gate: Tensor | None, affine: Affine | None, eps: float
) -> Tensor:
    """The slow twin of `residual_norm`, in Wan's own order of roundings."""
    if added is not None:
        branch = added.float() if gate is None else added.float() * gate.float()
        hidden.copy_((hidden.float() + branch).type_as(hidden))
    out = F.layer_norm(hidden.float(), hidden.shape[-1:], eps=eps)
    if affine is not None:
        out = out * (affine.one + affine.scale.float()) + affine.shift.float()
    return out.type_as(hidden)


def residual_norm(
    hidden: Tensor, added: Tensor | None, gate: Tensor | None, affine: Affine | None, eps: float
) -> Tensor:
    """Add a branch to the residual stream and normalise the sum.

    Args:
        hidden: (K, C) contiguous; changed in place where something is added.
        added: (K, C) output of a branch, None for none.
        gate: (C,) factor of the branch, None for 1.
        affine: what follows the norm, None for nothing.
        eps: of the norm.

    Returns:
        (K, C), as ``hidden``.
    """
    if triton is None or not (hidden.is_cuda or _INTERPRETED):
        return residual_norm_twin(hidden, added, gate, affine, eps)
    out = torch.empty_like(hidden)
    width = hidden.shape[1]
    some = hidden  # stands in for pointers that the kernel does not read
    _residual_norm[(hidden.shape[0],)](
        hidden,
        some if added is None else added,
        some if gate is None else gate,
        some if affine is None else affine.scale,
        some if affine is None else affine.shift,
        out,
        width,
        eps,
        ADD=added is not None,
        GATE=gate is not None,
        AFFINE=affine is not None,
        ONE=affine.one if affine is not None else 0,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4 if width <= 2048 else 8,
    )
    return out


_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit
    def _residual_norm(
        hidden, added, gate, scale, shift, out, width, eps,
        ADD: tl.constexpr, GATE: tl.constexpr, AFFINE: tl.constexpr, ONE: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        columns = tl.arange(0, BLOCK)
        inside = columns < width
        at = tl.program_id(0).to(tl.int64) * width + columns
        x = tl.load(hidden + at, inside, 0.0).to(tl.float32)
        if ADD:
            branch = tl.load(added + at, inside, 0.0).to(tl.float32)
            if GATE:
                branch *= tl.load(gate + columns, inside, 0.0).to(tl.float32)
            rounded = (x + branch).to(hidden.dtype.element_ty)
            tl.store(hidden + at, rounded, inside)
            x = rounded.to(tl.float32)
        centred = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
        y = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
        if AFFINE:
            factor = tl.load(scale + columns, inside, 0.0).to(tl.float32) + ONE
            y = y * factor + tl.load(shift + columns, inside, 0.0).to(tl.float32)
        tl.store(out + at, y.to(out.dtype.element_ty), inside)
