"""What was computed of a block, and how long each stage took.

Knows neither models nor streams: the block loop fills it in.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BlockStats", "StageClock"]


class BlockStats(NamedTuple):
    """What was computed of one block.

    Attributes:
        block: number of the block, from 0.
        kept, tokens: computed tokens and all tokens, summed over the batch. For a method that
            merges tokens, ``kept`` counts the rows that self-attention ran over, on average over
            layers and denoising passes; everything else was computed for all tokens.
        keep: (B, S, h, w) bool mask; all true for a method that merges.
        seconds: wall time by stage: encode, mask, denoise, context, decode.
    """

    block: int
    kept: int
    tokens: int
    keep: Tensor
    seconds: dict[str, float]

    @property
    def kept_share(self) -> float:
        """0 to 1."""
        return self.kept / self.tokens


@dataclass
class StageClock:
    """Wall time by stage; on a GPU every stage ends with a synchronisation if ``exact``."""

    exact: bool = True
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.exact and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[stage] += time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap, by stage."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds
