"""The fast path: the same passes in fewer kernels, on buffers that never move, as CUDA graphs."""

from stillframe.lean.blocks import BlockInputs, LeanBlocks, bucket_lengths
from stillframe.lean.transformer import LeanTransformer, lean_twin, unsupported

__all__ = [
    "BlockInputs",
    "LeanBlocks",
    "LeanTransformer",
    "bucket_lengths",
    "lean_twin",
    "unsupported",
]
