"""The fast path: the same passes in fewer kernels, on buffers that never move, as CUDA graphs."""

from stillframe.lean.blocks import BlockInputs, LeanBlocks, bucket_lengths
from stillframe.lean.linear import takes_fp8
from stillframe.lean.masks import captured_mask
from stillframe.lean.transformer import LeanTransformer, lean_twin, unsupported

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
