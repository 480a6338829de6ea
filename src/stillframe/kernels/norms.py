"""Residual addition, layer norm and modulation in one kernel, and its reference in torch.

Wan's blocks add a gated branch to the residual stream, normalise the sum in float32 and modulate
it, three times a block; apart these are memory-bound kernels over the same rows. Where products are
in FP8, the same kernels write rows in one byte a number. It knows rows, not models. Kernels are
compiled where there is a GPU; the references are what they are tested against.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels.rows import FP8

try:
    import triton
    import triton.language as tl
except ImportError:  # no triton, no GPU kernels: the torch code serves
    triton = None

__all__ = [
    "Affine",
    "Rows8",
    "gelu8",
    "gelu8_reference",
    "quantise",
    "residual_norm",
    "residual_norm8",
    "residual_norm_reference",
]

#: The largest number that FP8 holds; every row is scaled to it.
_MOST = 448.0
#: GELU is nowhere below minus this.
_LEAST_GELU = 0.171


class Rows8(NamedTuple):
    """Rows in one byte a number.

    Attributes:
        rows: (K, C) float8_e4m3fn.
        scale: (K, 1) float32, what they are to be multiplied by.
    """

    rows: Tensor
    scale: Tensor


class Affine:
    """What follows a normalisation: ``x * (one + scale) + shift``, with ``one`` 0 or 1.

    Args:
        scale, shift: (C,) any float dtype.
        one: 1 where ``scale`` is a modulation, 0 where it is a plain weight.
    """

    __slots__ = ("one", "scale", "shift")

    def __init__(self, scale: Tensor, shift: Tensor, one: int) -> None:
        self.scale, self.shift, self.one = scale, shift, one


def quantise(x: Tensor) -> Rows8:
    """Rows (K, C), each scaled to what FP8 holds; a row of zeros stays one."""
    scale = x.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / _MOST
    return Rows8((x.float() / scale).to(FP8), scale)


def residual_norm_reference(
    hidden: Tensor, added: Tensor | None, gate: Tensor | None, affine: Affine | None, eps: float
) -> Tensor:
    """The slow reference of `residual_norm`, in Wan's own order of roundings."""
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
    if not _compiled(hidden):
        return residual_norm_reference(hidden, added, gate, affine, eps)
    out = torch.empty_like(hidden)
    _launch(hidden, added, gate, affine, eps, out, None)
    return out


def residual_norm8(
    hidden: Tensor, added: Tensor | None, gate: Tensor | None, affine: Affine | None, eps: float
) -> Rows8:
    """`residual_norm` with the result in one byte a number."""
    if not _compiled(hidden):
        return quantise(residual_norm_reference(hidden, added, gate, affine, eps))
    out = torch.empty(hidden.shape, device=hidden.device, dtype=FP8)
    scale = torch.empty((len(hidden), 1), device=hidden.device)
    _launch(hidden, added, gate, affine, eps, out, scale)
    return Rows8(out, scale)


def _compiled(rows: Tensor) -> bool:
    return triton is not None and (rows.is_cuda or _INTERPRETED)


def _launch(
    hidden: Tensor,
    added: Tensor | None,
    gate: Tensor | None,
    affine: Affine | None,
    eps: float,
    out: Tensor,
    scale: Tensor | None,
) -> None:
    width = hidden.shape[1]
    some = hidden  # stands in for pointers that the kernel does not read
    _residual_norm[(hidden.shape[0],)](
        hidden,
        some if added is None else added,
        some if gate is None else gate,
        some if affine is None else affine.scale,
        some if affine is None else affine.shift,
        out,
        some if scale is None else scale,
        width,
        eps,
        ADD=added is not None,
        GATE=gate is not None,
        AFFINE=affine is not None,
        ONE=affine.one if affine is not None else 0,
        QUANTISE=scale is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4 if width <= 2048 else 8,
    )


def gelu8_reference(x: Tensor) -> Rows8:
    """The slow reference of `gelu8`."""
    y = F.gelu(x.float(), approximate="tanh")
    scale = y.amax(1, keepdim=True).clamp(min=_LEAST_GELU) / _MOST
    return Rows8((y / scale).to(FP8), scale)


def gelu8(x: Tensor) -> Rows8:
    """GELU of rows (K, C), in its tanh form, in one byte a number."""
    if not _compiled(x):
        return gelu8_reference(x)
    out = torch.empty(x.shape, device=x.device, dtype=FP8)
    scale = torch.empty((len(x), 1), device=x.device)
    _gelu8[(len(x),)](
        x, out, scale, LEAST=_LEAST_GELU, WIDTH=x.shape[1], BLOCK=_COLUMNS, num_warps=4
    )
    return Rows8(out, scale)


_COLUMNS = 2048
_INTERPRETED = False
if triton is not None:
    _INTERPRETED = bool(triton.knobs.runtime.interpret)
    _TWICE = tl.constexpr(2 * (2 / 3.141592653589793) ** 0.5)

    @triton.jit
    def _residual_norm(
        hidden, added, gate, scale, shift, out, row_scale, width, eps,
        ADD: tl.constexpr, GATE: tl.constexpr, AFFINE: tl.constexpr, ONE: tl.constexpr,
        QUANTISE: tl.constexpr, BLOCK: tl.constexpr,
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
        if QUANTISE:
            # as the stock model has it before a product
            y = tl.where(inside, y.to(hidden.dtype.element_ty).to(tl.float32), 0.0)
            most = tl.maximum(tl.max(tl.abs(y), 0), 1e-12)
            tl.store(row_scale + tl.program_id(0), most / 448.0)
            y = y * (448.0 / most)
        tl.store(out + at, y.to(out.dtype.element_ty), inside)

    @triton.jit
    def _gelu8(
        rows, out, row_scale, LEAST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
    ):  # fmt: skip
        begin = tl.program_id(0).to(tl.int64) * WIDTH
        columns = tl.arange(0, BLOCK)
        # GELU rises where it is positive, so the largest result is the largest number's
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        for start in range(0, WIDTH, BLOCK):
            inside = columns < WIDTH - start
            x = tl.load(rows + begin + start + columns, inside, float("-inf"))
            largest = tl.maximum(largest, x.to(tl.float32))
        top = tl.max(largest, 0)
        most = tl.maximum(top * tl.sigmoid(_TWICE * (top + 0.044715 * top * top * top)), LEAST)
        tl.store(row_scale + tl.program_id(0), most / 448.0)
        factor = 448.0 / most
        for start in range(0, WIDTH, BLOCK):
            inside = columns < WIDTH - start
            x = tl.load(rows + begin + start + columns, inside, 0.0).to(tl.float32)
            # x * (1 + tanh(u)) / 2 is x * sigmoid(2u)
            y = x * tl.sigmoid(_TWICE * (x + 0.044715 * x * x * x)) * factor
            tl.store(out + begin + start + columns, y.to(out.dtype.element_ty), inside)
