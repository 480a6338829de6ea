"""The fast path: the same passes in fewer kernels, on buffers that never move, as CUDA graphs."""

from stillframe.backbones.fused.blocks import BlockInputs, LeanBlocks, bucket_lengths
from stillframe.backbones.fused.masks import captured_mask
from stillframe.backbones.fused.transformer import LeanTransformer, lean_twin, unsupported
from stillframe.kernels.linear import takes_fp8

__all__ = [
    "BlockInputs",
    "LeanBlocks",
    "LeanTransformer",
    "bucket_lengths",
    "captured_mask",
    "lean_twin",
    "takes_fp8",
    "unsupported",
]
