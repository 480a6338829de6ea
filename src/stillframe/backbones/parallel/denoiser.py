"""A transformer of which a process runs some of the tokens, and some heads of self-attention."""

from __future__ import annotations

from typing import Any

from diffusers import WanTransformer3DModel

from stillframe.attention.block import BlockAttention
from stillframe.backbones.parallel.fused import ShardedBlocks, ShardedTransformer
from stillframe.backbones.parallel.group import Group
from stillframe.backbones.wan import WanDenoiser
from stillframe.errors import ModelError

__all__ = ["ShardedDenoiser", "check_heads"]


def check_heads(heads: int, processes: int) -> None:
    """Raise a ModelError if heads of self-attention cannot be divided among processes."""
    if heads % processes:
        raise ModelError(
            f"the model has {heads} heads of attention, which {processes} processes cannot share "
            f"evenly"
        )


class ShardedDenoiser(WanDenoiser):
    """A transformer in one of several processes that run it together.

    Args:
        transformer: the model, with the same weights in all of them.
        group: the processes.

    Attributes:
        heads: of self-attention, in this process.

    Raises:
        ModelError: the heads cannot be divided among the processes, and see `WanDenoiser`.
    """

    def __init__(self, transformer: WanTransformer3DModel, group: Group) -> None:
        super().__init__(transformer)
        check_heads(self.heads, group.size)
        self.heads //= group.size
        self.group = group

    def fuse(self) -> ShardedTransformer:
        """See `WanDenoiser.fuse`."""
        return ShardedTransformer(self.transformer, self.group)

    def blocks(self, attention: BlockAttention, *, fp8: bool, **told: Any) -> ShardedBlocks:
        """Fused passes of a stream; ``told`` as `ShardedBlocks` is."""
        model = self.prepared(fp8)
        assert isinstance(model, ShardedTransformer)
        return ShardedBlocks(model, attention, self.shown_channels, self.group, fp8=fp8, **told)
