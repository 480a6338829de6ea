"""What a block costs: seconds = fixed + slope x share of tokens computed, fitted as blocks go by.

Recursive least squares with directional forgetting: a new block makes the model forget only what it
can replace, so a stream that stays at one share does not lose its slope. A block that is far off is
taken for an accident unless the next is off the same way. Knows numbers, neither clocks nor masks.

Source: L. Cao and H. Schwartz, "A directional forgetting algorithm based on the decomposition of
the information matrix", Automatica 36 (2000).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CostModel"]

_GUESS = 0.35  # of a whole block's time, what does not depend on its tokens
_GUESS_SPREAD = 0.3  # standard deviation of that guess
_NOISE = 0.04  # of a block's time, what it varies by at first, standard deviation
_LEAST_NOISE = 0.01
_LEAST_SLOPE = 0.05  # of a whole block's time
_LEAST_FIXED = 0.02  # likewise: no block is free
_OUTLYING = 3.5  # standard deviations


@dataclass
class CostModel:
    """The line of one stream; call `note` after every block whose time says something.

    Attributes:
        forgetting: weight that each block leaves to the one before it, 0 to 1.
        fixed: seconds of a block of which nothing is computed.
        slope: what computing all of it costs beyond that; both are 0 before the first block.
        known: blocks noted, outliers left out.
    """

    forgetting: float = 0.85
    fixed: float = 0.0
    slope: float = 0.0
    known: int = 0

    def __post_init__(self) -> None:
        # information, in units of the noise's variance: ((1, share), (share, share^2)) summed up
        self._information = (0.0, 0.0, 0.0)
        self._noise = 0.0
        self._odd = 0.0

    def seconds(self, share: float) -> float:
        """What a block of a share, 0 to 1, is expected to take."""
        return self.fixed + self.slope * share

    def share(self, seconds: float) -> float:
        """The share that takes so long, 0 to 1; 1 as long as nothing is known."""
        if not self.known:
            return 1.0
        return min(max((seconds - self.fixed) / self.slope, 0.0), 1.0)

    def note(self, share: float, seconds: float) -> None:
        """Take a block's share and time.

        Raises:
            ValueError: for a share that is none, or a time that is not above 0.
        """
        if not 0 <= share <= 1 or not seconds > 0:
            raise ValueError(f"a block has a share in [0, 1] and a time, got {share}, {seconds}")
        if not self.known:
            self._begin(share, seconds)
            return
        error = seconds - self.seconds(share)
        limit = _OUTLYING * self._noise * (1 + self._doubt(share)) ** 0.5
        if abs(error) > limit and error * self._odd <= 0:
            # one alone is an accident; if the next is off the same way, that one counts
            self._odd = error
            return
        self._odd = 0.0
        self._learn(share, seconds)

    def _begin(self, share: float, seconds: float) -> None:
        whole = seconds / (_GUESS + (1 - _GUESS) * share)
        self.fixed, self.slope = _GUESS * whole, (1 - _GUESS) * whole
        self._noise = _NOISE * seconds
        prior = (self._noise / (_GUESS_SPREAD * whole)) ** 2
        self._information = (1 + prior, share, share * share + prior)
        self.known = 1

    def _doubt(self, share: float) -> float:
        """Variance of what is expected at a share, in units of the noise's."""
        a, b, c = self._information
        return float((c - 2 * b * share + a * share * share) / (a * c - b * b))

    def _learn(self, share: float, seconds: float) -> None:
        a, b, c = self._information
        # information along the new block's direction is what it can replace
        u, v = a + b * share, b + c * share
        forgotten = (1 - self.forgetting) / (u + v * share)
        a, b, c = (
            a - forgotten * u * u + 1,
            b - forgotten * u * v + share,
            c - forgotten * v * v + share * share,
        )
        self._information = (a, b, c)
        determinant = a * c - b * b
        error = seconds - self.seconds(share)
        self.fixed += (c - b * share) / determinant * error
        self.slope += (a * share - b) / determinant * error
        self.known += 1
        left = abs(seconds - self.seconds(share))
        self._noise += 0.1 * (1.25 * min(left, 4 * self._noise) - self._noise)
        self._noise = max(self._noise, _LEAST_NOISE * seconds)
        self._bound()

    def _bound(self) -> None:
        """Keep the line one that a block can have: it neither falls nor begins at nothing."""
        whole = max(self.fixed + self.slope, 1e-9)
        self.slope = max(self.slope, _LEAST_SLOPE * whole)
        self.fixed = max(self.fixed, _LEAST_FIXED * whole)
