"""The fast path: the same passes in fewer kernels, on buffers that never move, as CUDA graphs."""

from stillframe.backbones.fused.blocks import BlockInputs, FusedBlocks, bucket_lengths
from stillframe.backbones.fused.masks import captured_mask
from stillframe.backbones.fused.transformer import FusedTransformer, fused_transformer, unsupported
from stillframe.kernels.linear import takes_fp8

__all__ = [
    "BlockInputs",
    "FusedBlocks",
    "FusedTransformer",
    "bucket_lengths",
    "captured_mask",
    "fused_transformer",
    "takes_fp8",
    "unsupported",
]
