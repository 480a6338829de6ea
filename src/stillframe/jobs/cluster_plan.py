"""How long a batch will take on so many cards, from a measured rate; nothing is run."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stillframe.jobs.bench_result import BenchResult

__all__ = ["CostPoint", "Rate", "cost_curve", "doublings", "rate_of"]


class Rate(NamedTuple):
    """Frames a second of one card.

    Attributes:
        fps: of frames of this size.
        width, height: in pixels; 0 where it is that of whatever is edited.
        told: where it is from.
    """

    fps: float
    width: int
    height: int
    told: str

    def seconds(self, frames: float, width: float, height: float) -> float:
        """Of a card, for frames of a size; time goes with pixels."""
        scale = width * height / (self.width * self.height) if self.width else 1.0
        return frames * scale / self.fps


def rate_of(result: BenchResult, kept: float | None) -> Rate:
    """What ``stillframe bench`` measured, at the share of kept tokens that is nearest.

    Args:
        result: of a run.
        kept: None for the largest share, which is the slowest.
    """
    row = max(result.rows, key=lambda row: row.share)
    if kept is not None:
        row = min(result.rows, key=lambda row: abs(row.share - kept))
    settings: Mapping[str, object] = result.settings
    whole = "frames to frames" if settings.get("pixels") else "passes alone, without autoencoder"
    told = f"{result.device}, {settings.get('model')}, {row.share:.0%} kept, {whole}"
    width, height = (settings.get(side) for side in ("width", "height"))
    if not isinstance(width, int) or not isinstance(height, int) or not row.fps > 0:
        raise ValueError("the result of the bench has no size or no rate")
    return Rate(row.fps, width, height, told)


class CostPoint(NamedTuple):
    """A number of cards.

    Attributes:
        cards: of them.
        hours: until the last clip is done.
        card_hours: of all cards until then, idle ones included.
        busy: share of that in which they edit, 0 to 1.
    """

    cards: int
    hours: float
    card_hours: float
    busy: float


def doublings(most: int) -> list[int]:
    """1, 2, 4 and so on, and the number itself."""
    return sorted({most, *(2**n for n in range(most.bit_length()) if 2**n <= most)})


def cost_curve(
    seconds: Sequence[tuple[float, int]], cards: Sequence[int], load_seconds: float
) -> list[CostPoint]:
    """What a batch costs on each number of cards: the longest clip to the first free one.

    Args:
        seconds: of a card, for a clip, and how many clips there are of that kind.
        cards: numbers to try.
        load_seconds: until a card can begin.
    """
    kinds = sorted(seconds, reverse=True)
    work = sum(each * count for each, count in kinds)
    points = []
    for number in cards:
        span = load_seconds + _span(kinds, number)
        hours = span / 3600
        points.append(CostPoint(number, hours, hours * number, work / (span * number)))
    return points


def _span(kinds: Sequence[tuple[float, int]], cards: int) -> float:
    """Seconds until the last of the clips is done, the longest first."""
    ends = [(0.0, cards)]  # when cards are free, and how many of them then
    for each, count in kinds:
        while count:
            free, there = heapq.heappop(ends)
            used = min(there, count)
            if there == cards and count > cards:
                # all are free together: as many rounds at once as are full
                rounds = count // cards
                heapq.heappush(ends, (free + rounds * each, cards))
                count -= rounds * cards
                continue
            heapq.heappush(ends, (free + each, used))
            if there > used:
                heapq.heappush(ends, (free, there - used))
            count -= used
    return max(end for end, _ in ends) if kinds else math.nan
