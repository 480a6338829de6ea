"""What votes come to: win, tie and lose of every two methods, and whether they can be trusted."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stillframe.study.statistics import Share, share, sign_test, wilson
from stillframe.study.votes import Vote

__all__ = ["Comparison", "Results", "count_votes"]


@dataclass(frozen=True)
class Comparison:
    """Two methods.

    Attributes:
        first, second: their names.
        votes, clips, participants: how many.
        wins, ties, losses: of the first one, among all votes.
        preferred: the first one, among votes that are no tie.
        p_clips, p_participants: of a sign test over clips, or people: whether one method is
            preferred in more of them, by the sum of the votes in each.
        on_left: how often the first one was on the left.
    """

    first: str
    second: str
    votes: int
    clips: int
    participants: int
    wins: Share
    ties: Share
    losses: Share
    preferred: Share
    p_clips: float
    p_participants: float
    on_left: Share


@dataclass(frozen=True)
class Results:
    """All of a study.

    Attributes:
        comparisons: of every two methods that were compared.
        left: how often the left side was chosen, among votes that are no tie.
        checks: how often "same" was said where both sides were the same file.
        participants: votes of each.
        seconds: median for which a pair was looked at; nan where there is no vote.
    """

    comparisons: tuple[Comparison, ...]
    left: Share
    checks: Share
    participants: dict[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON has it, what is not known as null."""
        return {
            "comparisons": [_as_json(vars(each)) for each in self.comparisons],
            "left": _as_json(self.left),
            "checks": _as_json(self.checks),
            "participants": self.participants,
            "seconds": _as_json(self.seconds),
        }


def count_votes(votes: Iterable[Vote]) -> Results:
    """Count votes; ties and checks are kept apart."""
    every = list(votes)
    by_pair: dict[tuple[str, str], list[Vote]] = defaultdict(list)
    people: dict[str, int] = defaultdict(int)
    for vote in every:
        people[vote.participant] += 1
        if not vote.trial.is_check:
            by_pair[vote.trial.key[1:]].append(vote)
    chosen = [vote for vote in every if vote.vote != "same"]
    checks = [vote for vote in every if vote.trial.is_check]
    return Results(
        tuple(_compare(*pair, by_pair[pair]) for pair in sorted(by_pair)),
        wilson(sum(vote.vote == "left" for vote in chosen), len(chosen)),
        wilson(sum(vote.vote == "same" for vote in checks), len(checks)),
        dict(sorted(people.items())),
        statistics.median(vote.seconds for vote in every) if every else math.nan,
    )


def _score(vote: Vote, first: str) -> int:
    """1 if the first method was preferred, -1 if the other one, 0 if neither."""
    if vote.vote == "same":
        return 0
    return 1 if (vote.left if vote.vote == "left" else vote.right) == first else -1


def _compare(first: str, second: str, votes: Sequence[Vote]) -> Comparison:
    scored = [(vote.participant, vote.clip, _score(vote, first)) for vote in votes]

    def shared(score: int, among: Callable[[int], bool] = lambda score: True) -> Share:
        return share([(who, clip, each == score) for who, clip, each in scored if among(each)])

    def p(unit: int) -> float:
        sums: dict[Any, int] = defaultdict(int)
        for each in scored:
            sums[each[unit]] += each[2]
        return sign_test(sums.values())

    return Comparison(
        first,
        second,
        len(votes),
        len({vote.clip for vote in votes}),
        len({vote.participant for vote in votes}),
        wins=shared(1),
        ties=shared(0),
        losses=shared(-1),
        preferred=shared(1, bool),
        p_clips=p(1),
        p_participants=p(0),
        on_left=wilson(sum(vote.left == first for vote in votes), len(votes)),
    )


def _as_json(value: Any) -> Any:
    if isinstance(value, Share):
        return _as_json({**value._asdict(), "share": value.value})
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
