"""Which lengths a block's tokens are padded to, and when a length is worth a CUDA graph.

Without one a pass runs eagerly, which gives the same numbers and takes no less than launching its
kernels does: 42 ms for a 1.3B model on an H100, where replaying takes 8 to 40. Capturing takes as
long as an eager block does, so what comes up once is not captured, and what is computed never
depends on which graphs there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import NamedTuple

from stillframe.kernels.graphs import Graphs

__all__ = ["LengthGraphs", "Passes", "bucket_lengths"]

#: Blocks of a length that run eagerly before it is captured.
_EAGER = 1


def bucket_lengths(tokens: int) -> list[int]:
    """Lengths that kept tokens are padded to, rising; the last is ``tokens``.

    In steps of 1/32 of a block, rounded to what matrix products like.
    """
    step = max(64, tokens // 32 // 64 * 64)
    return [*range(step, tokens, step), tokens]


class Passes(NamedTuple):
    """What makes other graphs of the same length, for either kind of pass of a block."""

    denoise: Hashable
    context: Hashable


class LengthGraphs:
    """Graphs of a block's passes, of some lengths."""

    def __init__(self) -> None:
        self._graphs = Graphs()
        self._came: Counter[tuple[Passes, int]] = Counter()
        self._captures = False
        self._texts = 0

    def begin(self, passes: Passes, length: int, *, capture: bool = False) -> None:
        """A block begins; ``capture``: whether its passes are captured at once."""
        self._captures = capture or self._came[passes, length] >= _EAGER
        self._came[passes, length] += 1

    def captured(self, passes: Passes, length: int) -> bool:
        """Whether there are graphs of both kinds of passes."""
        return all((kind, length) in self._graphs for kind in passes)

    def run(self, kind: Hashable, length: int, work: Callable[[], None]) -> bool:
        """Run a pass of the block, from its graph if there is one.

        Returns:
            whether it was captured.
        """
        new = (kind, length) not in self._graphs
        if new and not self._captures:
            work()
            return False
        self._graphs.run((kind, length), work)
        return new

    def forget(self) -> None:
        """Drop all graphs."""
        self._graphs.forget()

    def read(self, texts: int) -> None:
        """Drop all graphs if the buffers of the prompt have moved since; see `Buffers.texts`."""
        if texts != self._texts:
            self.forget()
            self._texts = texts
