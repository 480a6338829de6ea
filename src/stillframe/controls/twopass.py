"""What a first pass over a whole video foretells, and how the second one spends its budget by it.

The error of reusing a patch grows with how much it changed, so at a given number of computed tokens
the summed change of what is reused is least if one level holds for the whole video: compute what
changed by more. How many tokens of each block that is, is found for a ladder of levels at once,
since what counts as changed depends on what was recomputed before. Knows shares and levels, not
latents: ``survey`` fills it in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVELS", "Forecast"]

#: Levels of change that are tried, in units of the thresholds.
LEVELS = tuple(float(x) for x in np.geomspace(0.15, 12.0, 14))


@dataclass(frozen=True)
class Forecast:
    """Shares of tokens that lie above each of `LEVELS`, block by block.

    Attributes:
        shares: one tuple a block, as long as `LEVELS`, 0 to 1; all 1 for a block that is whole.
        seconds: that the first pass took.

    Raises:
        ValueError: a row has another length, or there is none.
    """

    shares: tuple[tuple[float, ...], ...]
    seconds: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if not self.shares or any(len(row) != len(LEVELS) for row in self.shares):
            raise ValueError(f"a forecast has blocks of {len(LEVELS)} levels each")

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self.shares)

    @cached_property
    def _table(self) -> NDArray[np.float64]:
        """(blocks, levels + 2): between computing all and computing nothing."""
        inner = np.minimum.accumulate(np.array(self.shares, np.float64), 1)
        whole = inner[:, -1:] >= 1
        return np.concatenate([np.ones_like(inner[:, :1]), inner, whole.astype(np.float64)], 1)

    @cached_property
    def _rest(self) -> NDArray[np.float64]:
        """(blocks, levels + 2): the same summed from each block to the last."""
        return self._table[::-1].cumsum(0)[::-1]

    def share(self, number: int, total: float) -> float:
        """What a block gets if it and all after it may have ``total`` blocks' worth of tokens.

        Between two levels all blocks are taken as equally far from either.
        """
        rest = self._rest[number]
        place = float(np.interp(-total, -rest, np.arange(len(rest))))
        return float(np.interp(place, np.arange(len(rest)), self._table[number]))
