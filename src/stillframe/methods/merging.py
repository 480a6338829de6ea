"""What methods that merge tokens have in common; registers none itself.

They compute every token of the residual stream, cross-attention and feed-forward layers included;
only self-attention runs over fewer rows. So the mask is all true, nothing is pruned or recovered,
and a block's kept share is the share of rows that self-attention ran over, on average over layers
and denoising passes. Merging is off where the engine makes a block whole (the first one, and the
first after a change of prompt), as pruning is, and in the context pass, so that what is committed
to the cache is whole.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from stillframe.methods.base import Method, Selector, check_rate, keep_everything
from stillframe.tokens.merge import Merger, MergeSetup

__all__ = ["TokenMerging"]


@dataclass(frozen=True)
class TokenMerging(Method):
    """Base of the merging baselines.

    Attributes:
        rate: share of the tokens that are merged away before self-attention; the papers compare at
            0.10, 0.20 and 0.32. 0 merges nothing.

    Class attributes:
        most: the largest possible rate, None for anything below 1.
    """

    prunes = False
    most: ClassVar[float | None] = None

    recovery: str = "none"
    rate: float = 0.32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self.rate, self.most)

    def selector(self) -> Selector:
        return keep_everything

    @abstractmethod
    def merger(self, setup: MergeSetup) -> Merger: ...
