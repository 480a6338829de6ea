"""Linear layers of the fused passes: in the model's own numbers, or in FP8.

FP8 (e4m3) products take a row's and a weight's scale each, so neither a token nor an output that is
far larger than the rest costs the others their precision. Weights are rounded once; the model's own
stay where they are, unless the model has been packed: then there are no others (`pack_linear`).
Hopper's tensor cores, and later ones, multiply so at twice the rate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillframe.kernels.norms import Rows8, quantise
from stillframe.kernels.rows import FP8

__all__ = [
    "Linear8",
    "PackedLinear",
    "gelu_linear",
    "is_packed",
    "multiply8_reference",
    "pack_linear",
    "takes_fp8",
]

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
        weight: (N, C); in FP8 already, it is not copied.
        bias: (N,), of the dtype of what comes out.

    Raises:
        ValueError: C or N is no multiple of 16.
    """

    def __init__(self, weight: Tensor | Rows8, bias: Tensor) -> None:
        shape = weight.rows.shape if isinstance(weight, Rows8) else weight.shape
        if shape[0] % _SIDES or shape[1] % _SIDES:
            raise ValueError(
                f"products in FP8 need sides in multiples of {_SIDES}, got {tuple(shape)}"
            )
        self.weight = weight if isinstance(weight, Rows8) else quantise(weight)
        self.bias = bias

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


class PackedLinear(nn.Module):
    """``nn.Linear`` with weights in one byte a number, unpacked whenever they are multiplied.

    Scales are powers of two, so that unpacking is exact in any format of 16 bits or more.

    Args:
        packed: weights (N, C) and their rows' scales.
        bias: (N,), of the format of what comes out.

    Attributes:
        rows: (N, C) FP8 as uint8, which no change of a model's format touches.
        scale: (N, 1) float32.
    """

    def __init__(self, packed: Rows8, bias: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.rows.shape
        self.rows = nn.Parameter(packed.rows.view(torch.uint8), requires_grad=False)
        self.scale = nn.Parameter(packed.scale, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def packed(self) -> Rows8:
        """Weights and scales as they lie."""
        return Rows8(self.rows.data.view(FP8), self.scale.data.float())

    @property
    def weight(self) -> Tensor:
        """(N, C) in the format of the bias, made anew."""
        unpacked = self.rows.data.view(FP8).to(self.bias.dtype)
        return unpacked.mul_(self.scale.data.to(self.bias.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., N)."""
        return F.linear(x, self.weight, self.bias)


def pack_linear(layer: nn.Linear) -> PackedLinear:
    """A linear layer with a bias, packed where it lies; its weights are rounded to 3 bits."""
    weight = layer.weight.data
    most = weight.abs().amax(1, keepdim=True).float() / torch.finfo(FP8).max
    # float16 has smaller numbers than its `tiny`, and loses digits of them
    scale = torch.exp2(torch.ceil(torch.log2(most.clamp(min=torch.finfo(weight.dtype).tiny))))
    # dividing by a power of two is exact, so there is no need for wider numbers
    return PackedLinear(Rows8((weight / scale.to(weight.dtype)).to(FP8), scale), layer.bias.data)


def is_packed(model: nn.Module) -> bool:
    """Whether any of a model's layers has been packed."""
    return any(isinstance(module, PackedLinear) for module in model.modules())
