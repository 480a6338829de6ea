"""Means with intervals, paired differences and correlation, of a few numbers each.

Clips are what is drawn at random here: numbers of one clip (its prompts, its seeds) belong together
and are averaged first. Knows numbers only; not where they come from nor what is better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "bootstrap_mean", "by_group", "paired_difference", "pearson"]

Numbers = NDArray[np.float64]

_AT_ONCE = 1000  # resamples held in memory


class Interval(NamedTuple):
    """A mean and how sure it is.

    Attributes:
        mean: of the numbers; nan where there are none.
        low, high: ends of the interval; nan where there are fewer than two numbers.
        size: how many numbers.
    """

    mean: float
    low: float
    high: float
    size: int


def bootstrap_mean(
    values: Iterable[float], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """The mean, with the percentile interval of its bootstrap distribution (Efron 1979).

    Args:
        values: independent numbers; nan is left out.
        level: share of the distribution within the interval, between 0 and 1.
        draws: resamples.
        seed: of the draws: the same numbers give the same interval.

    Raises:
        ValueError: if ``level`` or ``draws`` is out of range, or a number is infinite.
    """
    if not 0 < level < 1 or draws < 1:
        raise ValueError(
            f"level must be between 0 and 1 and draws positive, got {level} and {draws}"
        )
    numbers = np.array([v for v in values if not math.isnan(v)], dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"an infinite number has no mean, got {numbers.tolist()}")
    count = len(numbers)
    if count < 2:
        return Interval(float(numbers[0]) if count else math.nan, math.nan, math.nan, count)
    means = _resampled_means(numbers, draws, np.random.default_rng(seed))
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(numbers.mean()), float(low), float(high), count)


def _resampled_means(numbers: Numbers, draws: int, generator: np.random.Generator) -> Numbers:
    parts = []
    for start in range(0, draws, _AT_ONCE):
        size = (min(_AT_ONCE, draws - start), len(numbers))
        parts.append(numbers[generator.integers(0, len(numbers), size)].mean(1))
    return np.concatenate(parts)


def by_group(pairs: Iterable[tuple[Hashable, float]]) -> dict[Hashable, float]:
    """The mean of each group's numbers, nan left out; groups without a number are left out."""
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for group, value in pairs:
        if not math.isnan(value):
            groups[group].append(value)
    return {group: float(np.mean(values)) for group, values in groups.items()}


def paired_difference(
    a: Mapping[Hashable, float],
    b: Mapping[Hashable, float],
    group: Mapping[Hashable, Hashable] | None = None,
    **options: float,
) -> Interval:
    """The mean of ``a - b`` over what both have, with its interval.

    Args:
        a, b: numbers by what they were measured on (clip, prompt and seed).
        group: the clip of each, where several numbers belong to one clip: differences are averaged
            within a clip, and clips are drawn. None: everything is a clip of its own.
        options: see `bootstrap_mean`.
    """
    common = [key for key in a if key in b]
    clip = (lambda key: key) if group is None else group.__getitem__
    differences = by_group((clip(key), a[key] - b[key]) for key in common)
    return bootstrap_mean(differences.values(), **options)  # type: ignore[arg-type]


def pearson(x: Sequence[float] | Numbers, y: Sequence[float] | Numbers) -> float:
    """Pearson's correlation of two rows of numbers, -1 to 1; nan where one of them is constant.

    Raises:
        ValueError: if they differ in length or there are fewer than two.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"correlation needs two rows of 2 or more numbers, got {a.shape} and {b.shape}"
        )
    a, b = a - a.mean(), b - b.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread else math.nan
