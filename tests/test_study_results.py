"""What votes come to, against scipy and against every resample there is."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from scipy import stats

from stillframe.study.results import count_votes
from stillframe.study.statistics import resampled_shares, share, sign_test, wilson
from stillframe.study.votes import Answer, Vote


@pytest.mark.parametrize(("count", "of"), [(0, 7), (3, 7), (7, 7), (26, 51), (1, 1), (0, 1)])
def test_wilson_is_scipys(count: int, of: int) -> None:
    ours = wilson(count, of)
    theirs = stats.binomtest(count, of).proportion_ci(0.95, "wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == count / of


@pytest.mark.parametrize(("up", "down"), [(0, 0), (1, 0), (5, 0), (3, 4), (4, 4), (30, 17)])
def test_the_sign_test_is_scipys(up: int, down: int) -> None:
    ours = sign_test([3] * up + [-1] * down + [0] * 9)
    assert ours == pytest.approx(stats.binomtest(up, up + down).pvalue if up + down else 1.0)
    assert ours == sign_test([-1] * up + [1] * down)


def test_resamples_are_spread_as_all_that_there_are() -> None:
    """Each of people and clips drawn with replacement: 27 x 4 draws, all as likely."""
    hits = np.array([[1, 0], [0, 0], [1, 1]], dtype=float)
    seen = np.array([[1, 1], [1, 0], [1, 1]], dtype=float)
    exact = []
    for people, clips in product(product(range(3), repeat=3), product(range(2), repeat=2)):
        of = sum(seen[p, c] for p in people for c in clips)
        if of:
            exact.append(sum(hits[p, c] for p in people for c in clips) / of)
    drawn = resampled_shares(hits, seen, 40_000, np.random.default_rng(1))
    for value in sorted(set(exact)):
        expected = np.mean(np.array(exact) <= value + 1e-9)
        assert np.mean(drawn <= value + 1e-9) == pytest.approx(expected, abs=0.012)


def test_votes_of_one_person_count_less_than_votes_of_many() -> None:
    """Four people of whom each always says the same know less than votes that have no owner."""
    clips = [f"clip{number}" for number in range(20)]
    owned = [(who, clip, who in "ab") for who in "abcd" for clip in clips]
    mixed = [(who, clip, (i + j) % 2 == 0) for i, who in enumerate("abcd")
             for j, clip in enumerate(clips)]  # fmt: skip
    together, apart = share(owned), share(mixed)
    assert together.value == apart.value == 0.5
    assert together.high - together.low > 2 * (apart.high - apart.low)
    # and as much as Wilson's at least
    plain = wilson(40, 80)
    assert apart.low <= plain.low < plain.high <= apart.high
    assert share(owned) == together


def test_few_who_agree_are_not_certain() -> None:
    found = share([(who, clip, True) for who in "ab" for clip in "xy"])
    assert found == wilson(4, 4)
    assert found.low == pytest.approx(0.51, abs=0.01)


def test_of_one_person_the_interval_is_wilsons() -> None:
    votes = [("anna", str(number), number < 3) for number in range(10)]
    assert share(votes) == wilson(3, 10)


def vote(who: str, clip: str, left: str, right: str, said: Answer, seconds: float = 1.0) -> Vote:
    return Vote(who, clip, left, right, said, seconds)


VOTES = [
    vote("anna", "a", "pruned", "dense", "left"),
    vote("anna", "b", "dense", "pruned", "left", 3.0),
    vote("anna", "c", "dense", "pruned", "same"),
    vote("anna", "a", "dense", "dense", "same"),
    vote("ben", "a", "dense", "pruned", "right", 2.0),
    vote("ben", "b", "dense", "pruned", "right", 9.0),
    vote("ben", "c", "dense", "dense", "left", 9.0),
]


def test_wins_follow_the_method_and_not_the_side() -> None:
    results = count_votes(VOTES)
    (found,) = results.comparisons
    assert (found.first, found.second) == ("dense", "pruned")
    assert (found.votes, found.clips, found.participants) == (5, 3, 2)
    assert [s.number for s in (found.wins, found.ties, found.losses)] == [1, 1, 3]
    assert (found.preferred.number, found.preferred.of) == (1, 4)
    assert (found.on_left.number, found.on_left.of) == (4, 5)
    # clip a: two for pruned; b: one each; c: none. anna: one each; ben: two for pruned
    assert found.p_clips == found.p_participants == 1.0
    assert (results.left.number, results.left.of) == (3, 5)
    assert (results.checks.number, results.checks.of) == (1, 2)
    assert results.participants == {"anna": 4, "ben": 3}
    assert results.seconds == 2.0


def test_turning_all_sides_changes_nothing_but_the_left() -> None:
    turned: dict[Answer, Answer] = {"left": "right", "same": "same", "right": "left"}
    other = [vote(v.participant, v.clip, v.right, v.left, turned[v.vote]) for v in VOTES]
    before, after = count_votes(VOTES), count_votes(other)
    for name in ("wins", "ties", "losses", "preferred", "p_clips", "p_participants"):
        assert getattr(before.comparisons[0], name) == getattr(after.comparisons[0], name)
    assert after.comparisons[0].on_left.number == 1
    assert after.left.number == before.left.of - before.left.number


def test_three_methods_are_three_comparisons() -> None:
    votes = [vote("anna", "a", *pair, "left") for pair in (("x", "y"), ("z", "x"), ("y", "z"))]
    found = count_votes(votes).comparisons
    assert [(each.first, each.second, each.wins.number) for each in found] == [
        ("x", "y", 1), ("x", "z", 0), ("y", "z", 1),
    ]  # fmt: skip


def test_results_are_json_also_where_nothing_is_known() -> None:
    nothing = count_votes([])
    assert nothing.to_json()["seconds"] is None
    assert nothing.to_json()["left"] == {
        "number": 0, "of": 0, "low": None, "high": None, "share": None,
    }  # fmt: skip
    same = count_votes([vote("anna", "a", "x", "y", "same")])
    again = json.loads(json.dumps(same.to_json(), allow_nan=False))
    assert again["comparisons"][0]["preferred"]["share"] is None
    assert again["comparisons"][0]["ties"]["share"] == 1.0
