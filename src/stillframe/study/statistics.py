"""Shares with intervals, of votes that are not independent; the sign test.

Of a few people and clips both are drawn at random: votes of one person belong together, and so do
votes on one clip. Written out, because what serves a study brings no scipy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Share", "resampled_shares", "share", "sign_test", "wilson"]

Numbers = NDArray[np.float64]

_DRAWS = 10_000
_Z95 = 1.959963984540054  # of the normal distribution, 97.5%


class Share(NamedTuple):
    """A share and how sure it is.

    Attributes:
        number: how many there are.
        of: of how many.
        low, high: ends of the 95% interval; nan where there is nothing to count.
    """

    number: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share, 0 to 1; nan of nothing."""
        return self.number / self.of if self.of else math.nan


def wilson(count: int, of: int) -> Share:
    """A share of independent votes, with the score interval of Wilson (1927)."""
    if not of:
        return Share(0, 0, math.nan, math.nan)
    p, z2 = count / of, _Z95**2
    centre = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z95 / (1 + z2 / of) * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    # rounding must not leave 0 and 1 out where they belong
    low = 0.0 if count == 0 else centre - half
    return Share(count, of, low, 1.0 if count == of else centre + half)


def share(votes: Sequence[tuple[str, str, bool]]) -> Share:
    """The share of votes that are true, with its 95% interval.

    With several people and clips: people and clips are drawn anew, each with replacement, 10,000
    times (the pigeonhole bootstrap, Owen 2007), and the interval holds at least Wilson's, because
    of a few people who agree every draw gives the same. With one person: Wilson's. The same votes
    give the same interval.

    Args:
        votes: (participant, clip, whether).
    """
    known = wilson(sum(hit for _, _, hit in votes), len(votes))
    people = sorted({person for person, _, _ in votes})
    clips = sorted({clip for _, clip, _ in votes})
    if len(people) < 2:
        return known
    hits, seen = np.zeros((2, len(people), len(clips)))
    for person, clip, hit in votes:
        at = people.index(person), clips.index(clip)
        seen[at] += 1
        hits[at] += hit
    found = resampled_shares(hits, seen, _DRAWS, np.random.default_rng(0))
    low, high = np.percentile(found, [2.5, 97.5])
    return known._replace(low=min(known.low, float(low)), high=max(known.high, float(high)))


def resampled_shares(
    hits: Numbers, seen: Numbers, draws: int, draw: np.random.Generator
) -> Numbers:
    """Shares of as many resamples of people and of clips; those without a vote are left out.

    Args:
        hits, seen: (people, clips): votes that are true, and all.
    """
    people, clips = seen.shape
    drawn_people = draw.multinomial(people, [1 / people] * people, draws).astype(float)
    drawn_clips = draw.multinomial(clips, [1 / clips] * clips, draws).astype(float)
    of = ((drawn_people @ seen) * drawn_clips).sum(1)
    counts = ((drawn_people @ hits) * drawn_clips).sum(1)
    return np.asarray(counts[of > 0] / of[of > 0])


def sign_test(differences: Iterable[int]) -> float:
    """Two-sided p of as many differences above as below zero; those of zero do not count.

    Exact, by the binomial distribution; 1 where none counts.
    """
    signs = [difference > 0 for difference in differences if difference]
    least = min(sum(signs), len(signs) - sum(signs))
    tail = sum(math.comb(len(signs), k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2 ** len(signs))
