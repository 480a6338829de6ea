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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BlockStats", "StageClock"]

Displacements = NDArray[np.float32]


class BlockStats(NamedTuple):
    """What was computed of one block.

    Attributes:
        block: number of the block, from 0.
        kept, tokens: computed tokens and all tokens, summed over the batch. For a method that
            merges tokens, ``kept`` counts the rows that self-attention ran over, on average over
            layers and denoising passes; everything else was computed for all tokens.
        keep: (B, S, h, w) bool mask; all true for a method that merges.
        seconds: wall time by stage: encode, mask, denoise, context, decode.
        moved: (B, S, h, w) bool, patches that were reused from another place; none that ``keep``
            has. None where nothing moved.
        motion: (B, S, h, w, 2) float32, displacement (x, y) in pixels of what was reused since the
            latent frame before: where it comes from less where it is; 0 elsewhere. None where
            nothing moved.
    """

    block: int
    kept: int
    tokens: int
    keep: Tensor
    seconds: dict[str, float]
    moved: Tensor | None = None
    motion: Tensor | None = None

    @property
    def kept_share(self) -> float:
        """0 to 1."""
        return self.kept / self.tokens

    def patches(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None, Displacements | None]:
        """``keep``, ``moved`` and ``motion`` of the first row of the batch, as arrays."""
        keep, moved, motion = (
            None if each is None else each[0].cpu().numpy().copy()
            for each in (self.keep, self.moved, self.motion)
        )
        assert keep is not None
        return keep, moved, motion

    @property
    def moved_share(self) -> float:
        """Patches that were reused from another place / all, 0 to 1; waits for the device."""
        return 0.0 if self.moved is None else int(self.moved.sum()) / self.tokens


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
