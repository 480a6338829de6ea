"""Linear layers of the fused passes: in the model's own numbers, or in FP8.

FP8 (e4m3) products take a row's and a weight's scale each, so neither a token nor an output that is
far larger than the rest costs the others their precision. Weights are rounded once; the model's own
stay where they are. Hopper's tensor cores, and later ones, multiply so at twice the rate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillframe.kernels.norms import Rows8, quantise

__all__ = ["Linear8", "gelu_linear", "multiply8_reference", "takes_fp8"]

_SIDES = 16  # what both sides of a matrix must be multiples of


def takes_fp8(device: torch.device) -> bool:
    """Whether a device multiplies FP8, row by row scaled."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer (K, C) -> (K, N) and GELU in its tanh form."""
    if x.is_cuda:
        # in the matrix product's epilogue
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def multiply8_reference(x: Rows8, weight: Rows8, bias: Tensor) -> Tensor:
    """The slow reference of `Linear8`: the same roundings, products in float32."""
    rows, columns = x.rows.float() * x.scale, weight.rows.float() * weight.scale
    return F.linear(rows, columns, bias.float()).to(bias.dtype)


class Linear8:
    """A linear layer on rows in FP8.

    Args:
        weight: (N, C).
        bias: (N,), of the dtype of what comes out.

    Raises:
        ValueError: C or N is no multiple of 16.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        if weight.shape[0] % _SIDES or weight.shape[1] % _SIDES:
            raise ValueError(
                f"products in FP8 need sides in multiples of {_SIDES}, got {tuple(weight.shape)}"
            )
        self.weight, self.bias = quantise(weight), bias

    def __call__(self, x: Rows8) -> Tensor:
        if not x.rows.is_cuda:
            return multiply8_reference(x, self.weight, self.bias)
        return torch._scaled_mm(
            x.rows,
            self.weight.rows.t(),
            scale_a=x.scale,
            scale_b=self.weight.scale.t(),
            bias=self.bias,
            out_dtype=self.bias.dtype,
            use_fast_accum=True,
        )
