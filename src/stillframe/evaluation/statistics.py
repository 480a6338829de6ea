"""Means with intervals, paired differences and correlation, of a few numbers each.

Clips are what is drawn at random here: numbers of one clip (its prompts, its seeds) belong together
and are averaged first.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Interval", "bootstrap_mean", "by_group", "paired_difference", "pearson"]

Numbers = NDArray[np.float64]

_DRAWS = 10_000
_AT_ONCE = 1000  # resamples in memory


class Interval(NamedTuple):
    """A mean and how sure it is.

    Attributes:
        mean: of the numbers; nan where there are none.
        low, high: ends of the 95% interval; nan where there are fewer than two numbers.
        size: how many numbers.
    """

    mean: float
    low: float
    high: float
    size: int


def bootstrap_mean(values: Iterable[float]) -> Interval:
    """The mean, with the 95% percentile interval of its bootstrap distribution (Efron 1979).

    The same numbers give the same interval.

    Args:
        values: independent numbers; nan is left out.

    Raises:
        ValueError: if a number is infinite.
    """
    numbers = np.array([v for v in values if not math.isnan(v)], dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"an infinite number has no mean, got {numbers.tolist()}")
    count = len(numbers)
    if count < 2:
        return Interval(float(numbers[0]) if count else math.nan, math.nan, math.nan, count)
    found = stats.bootstrap(
        (numbers,),
        np.mean,
        n_resamples=_DRAWS,
        batch=_AT_ONCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(numbers.mean()), float(found.low), float(found.high), count)


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
) -> Interval:
    """The mean of ``a - b`` over what both have, with its interval.

    Args:
        a, b: numbers by what they were measured on (clip, prompt and seed).
        group: the clip of each, where several numbers belong to one clip: differences are averaged
            within a clip, and clips are drawn. None: everything is a clip of its own.
    """
    clip = {key: key for key in a} if group is None else group
    differences = by_group((clip[key], a[key] - b[key]) for key in a if key in b)
    return bootstrap_mean(differences.values())


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of constant rows
        return float(stats.pearsonr(a, b).statistic)
