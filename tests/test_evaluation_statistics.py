"""Statistics against definitions: every resample enumerated, sums written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable

import numpy as np
import pytest

from stillframe.evaluation.statistics import (
    bootstrap_mean,
    by_group,
    paired_difference,
    pearson,
)


def exact_means(values: list[float]) -> np.ndarray:
    """The bootstrap distribution itself: the mean of every one of the n^n resamples, sorted."""
    resamples = itertools.product(values, repeat=len(values))
    return np.sort([sum(sample) / len(values) for sample in resamples])


@pytest.mark.parametrize("values", [[1.0, 4.0, 2.0, 8.0, 3.5], [-1.0, 0.0, 10.0, 0.5, 0.1, 0.2]])
def test_intervals_are_those_of_all_resamples(values: list[float]) -> None:
    found = bootstrap_mean(values)
    means, tail = exact_means(values), 0.025
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.size == len(values)
    # of a distribution of steps: no more than the tail lies beyond, and with the end not less
    for end, beyond, reaching in (
        (found.low, means < found.low - 1e-9, means <= found.low + 1e-9),
        (found.high, means > found.high + 1e-9, means >= found.high - 1e-9),
    ):
        assert beyond.mean() <= tail + 0.005, end
        assert reaching.mean() >= tail - 0.005, end


def test_the_same_numbers_give_the_same_interval_and_scale_with_them() -> None:
    values = [0.3, 0.1, 0.9, 0.4]
    found = bootstrap_mean(values)
    assert bootstrap_mean(values) == found
    moved = bootstrap_mean([10 * v - 3 for v in values])
    assert moved[:3] == pytest.approx([10 * v - 3 for v in found[:3]])


def test_what_is_no_number_is_left_out_and_few_numbers_have_no_interval() -> None:
    found = bootstrap_mean([1.0, math.nan, 3.0])
    assert (found.mean, found.size) == (2.0, 2)
    one = bootstrap_mean([math.nan, 7.0])
    assert (one.mean, one.size) == (7.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(bootstrap_mean([]).mean)
    with pytest.raises(ValueError, match="infinite"):
        bootstrap_mean([1.0, math.inf])


def test_groups_are_averaged_and_empty_ones_left_out() -> None:
    pairs = [("a", 1.0), ("b", math.nan), ("a", 2.0), ("c", 5.0), ("a", math.nan)]
    assert by_group(pairs) == {"a": 1.5, "c": 5.0}


def test_differences_are_of_pairs_and_clips_count_once() -> None:
    generator = np.random.default_rng(3)
    # each clip has its own level, which only a comparison of pairs takes out
    level = {clip: 100 * clip for clip in range(6)}
    keys: list[Hashable] = [(clip, seed) for clip in range(6) for seed in range(3)]
    b = {(c, s): level[c] + generator.normal() for c, s in itertools.product(range(6), range(3))}
    a = {key: value + 2 + generator.normal() * 0.1 for key, value in b.items()}
    first: dict[Hashable, float] = dict(a)
    second: dict[Hashable, float] = dict(b)
    second["elsewhere"] = 0.0
    found = paired_difference(first, second, {key: key[0] for key in a})
    by_clip = [np.mean([a[c, s] - b[c, s] for s in range(3)]) for c in range(6)]
    assert found == bootstrap_mean(float(x) for x in by_clip)
    assert found.size == 6
    assert 1.8 < found.low < found.mean < found.high < 2.2
    back = paired_difference(second, first, {key: key[0] for key in a})
    assert back.mean == pytest.approx(-found.mean)
    assert paired_difference(first, second).size == len(keys)


def test_correlation_is_the_sum_over_deviations() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=50).tolist()
    y = [0.7 * v + w for v, w in zip(x, generator.normal(size=50), strict=True)]
    mx, my = sum(x) / 50, sum(y) / 50
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    bottom = sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)
    assert pearson(x, y) == pytest.approx(top / math.sqrt(bottom))
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert pearson(x, [5 - 2 * v for v in x]) == pytest.approx(-1)
    assert math.isnan(pearson(x, [1.0] * 50))
    with pytest.raises(ValueError, match=r"got \(1,\) and \(1,\)"):
        pearson([1.0], [2.0])
    with pytest.raises(ValueError, match="two rows"):
        pearson([1.0, 2.0], [2.0, 3.0, 4.0])
