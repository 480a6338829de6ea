"""The error of reused tokens from a sample: a mean over strata, with an interval."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

__all__ = ["Estimate", "Stratum", "estimate"]

# Squared errors of patches have a tail that a small sample may not have met: until there is more
# to go by, they are taken to vary by so many times their mean, as if from so many tokens.
_TAIL, _TAIL_TOKENS = 2.0, 12


class Stratum(NamedTuple):
    """What was drawn in a block.

    Attributes:
        tokens: it was drawn from.
        drawn: tokens.
        mean, variance: of their squared errors; variance with ``drawn - 1`` degrees of freedom.
    """

    tokens: int
    drawn: int
    mean: float
    variance: float


class Estimate(NamedTuple):
    """Root mean square error of reused tokens, in latent standard deviations.

    Attributes:
        error: the sample's; None before anything was drawn.
        low, high: the interval; the upper end takes in lean and drift.
        confidence: of the interval.
        drawn, tokens: tokens sampled, and tokens they stand for.
    """

    error: float | None
    low: float | None
    high: float | None
    confidence: float
    drawn: int
    tokens: int


def estimate(
    strata: list[Stratum], confidence: float, drift: float = 0.0, lean: float = 1.0
) -> Estimate:
    """Error over all strata with an interval, symmetric in its logarithm but for drift and lean.

    Squared errors are skewed and cannot be negative, which the logarithm respects; the quantile is
    Student's with Satterthwaite's degrees of freedom. Small samples get a wider interval than their
    own variance gives, for the tail that they may have missed.
    """
    used = [s for s in strata if s.drawn]
    tokens, drawn = sum(s.tokens for s in used), sum(s.drawn for s in used)
    if not tokens:
        return Estimate(None, None, None, confidence, 0, 0)
    mean = sum(s.tokens * s.mean for s in used) / tokens
    freedom = sum(s.drawn - 1 for s in used)
    pooled = sum((s.drawn - 1) * s.variance for s in used) / freedom if freedom else 0.0
    parts = []
    for s in used:
        spread = s.variance if s.drawn > 1 else pooled
        rest = 1 - s.drawn / s.tokens
        parts.append(((s.tokens / tokens) ** 2 * rest * spread / s.drawn, max(s.drawn - 1, 1)))
    variance = sum(part for part, _ in parts)
    if not variance or not mean:
        error = math.sqrt(mean)
        return Estimate(error, error, math.hypot(lean * error, drift), confidence, drawn, tokens)
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    # relative, and drawn towards what is expected of a tail; nothing is in doubt of tokens drawn
    rest = 1 - drawn / tokens
    expected = rest * _TAIL**2 / drawn
    relative = (drawn * variance / mean**2 + _TAIL_TOKENS * expected) / (drawn + _TAIL_TOKENS)
    width = _student(confidence, degrees) * math.sqrt(relative)
    low, high = (math.sqrt(mean * math.exp(sign * width)) for sign in (-1, 1))
    return Estimate(math.sqrt(mean), low, math.hypot(lean * high, drift), confidence, drawn, tokens)


def _student(confidence: float, degrees: float) -> float:
    """Two-sided quantile of Student's distribution (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + g1 / degrees + g2 / degrees**2
