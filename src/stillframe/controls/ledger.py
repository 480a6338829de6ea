"""What a target leaves for the next block: a cost model, and a ledger of what was spent.

Times and shares are what is booked; what is over or under the target is settled over the next
blocks. A forecast of a first pass spends what the rest of the video may take where it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from stillframe.controls.cost import CostModel
from stillframe.controls.trace import Timing
from stillframe.controls.twopass import Forecast
from stillframe.untrusted.numbers import check_number

__all__ = ["HORIZON", "RateLedger", "RateOutcome", "RateTarget"]

#: Blocks over which the ledger is settled.
HORIZON = 8
_RESERVE = 4.0  # blocks' worth that the ledger holds at most, either way
_LATENCY_RESERVE = 0.5  # the same for a latency: a block that is late makes no other one early
_FIRST_SHARE = 0.5  # until a block has been timed


@dataclass(frozen=True)
class RateTarget:
    """What is to be held; exactly one is given.

    Attributes:
        fps: pixel frames a second, everything between two blocks included.
        latency: seconds of a block, from encoding to decoding.
        kept: share of tokens computed, above 0 up to 1.

    Raises:
        ValueError: for none or several of them, or numbers out of range.
    """

    fps: float | None = None
    latency: float | None = None
    kept: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in self.target.items() if v is not None}
        if len(given) != 1:
            raise ValueError(f"one of fps, latency and kept is held, got {len(given)} of them")
        (name, value), *_ = given.items()
        if not value > 0 or (name == "kept" and value > 1) or value == float("inf"):
            most = " up to 1" if name == "kept" else ""
            raise ValueError(f"a target {name} lies above 0{most}, got {value}")
        check_number(f"a target {name}", value, 0, 10**6)

    @property
    def target(self) -> dict[str, float | None]:
        """The three targets by name, two of them None."""
        return {"fps": self.fps, "latency": self.latency, "kept": self.kept}

    def quantity(self, frames: int) -> float:
        """What a block may take: seconds of its ``frames`` pixel frames, or a share."""
        if self.fps is not None:
            return frames / self.fps
        target = self.latency if self.latency is not None else self.kept
        assert target is not None
        return target


class RateOutcome(NamedTuple):
    """How a rate was held.

    Attributes:
        achieved: the target's quantity over all blocks that count: frames a second, mean seconds a
            block, or mean share.
        blocks: so many; the first of a stream is always whole and does not count.
        out_of_reach: blocks in which even the least that had to be computed took longer than the
            target left.
        behind: blocks that showed something staler than twice the method's tolerance.
        stalest: most that a reused patch differed from its source by, in grey levels; None where
            nothing says.
        dense_in_reach: blocks that were computed whole and still left time.
        fastest: what the target could be at most (fps) or at least, by the cost model, with nothing
            computed; None for a share, and before anything is known.
        fixed, slope: of the cost model, seconds.
    """

    achieved: float | None
    blocks: int
    out_of_reach: int
    behind: int
    stalest: float | None
    dense_in_reach: int
    fastest: float | None
    fixed: float
    slope: float


class RateLedger:
    """The ledger of one stream; `open` it before anything else.

    Args:
        frames: pixel frames of a block.

    Attributes:
        cost: what a block of a share takes.
        spent: quantity of the blocks that count.
        counted, missed, idle: see ``blocks``, ``out_of_reach`` and ``dense_in_reach`` of
            `RateOutcome`.
    """

    def __init__(self, frames: int) -> None:
        self.cost = CostModel()
        self._frames = frames

    def open(self, target: RateTarget, forecast: Forecast | None) -> None:
        """Hold a target from here on; what another one was owed is forgotten."""
        self._target, self._forecast = target, forecast
        self._goal = target.quantity(self._frames)
        self._owed = self.spent = 0.0
        self.counted = self.missed = self.idle = 0

    def share(self, number: int) -> float:
        """What share of a block's tokens the target pays for, 0 to 1; all before it are noted."""
        forecast = self._forecast
        if forecast is not None and number < forecast.blocks:
            return self._forecast_share(forecast, number)
        left = max(self._goal - self._owed / HORIZON, 0.0)
        if self._target.kept is not None:
            return min(left, 1.0)
        return self.cost.share(left) if self.cost.known else _FIRST_SHARE

    def _forecast_share(self, forecast: Forecast, number: int) -> float:
        """What the block gets of all that the rest of the video may take."""
        rest = forecast.blocks - number
        if self._target.kept is not None:
            total = self._goal * (self.counted + rest) - self.spent
        elif not self.cost.known:
            return _FIRST_SHARE
        else:
            seconds = self._goal * (self.counted + rest) - self.spent
            total = (seconds - rest * self.cost.fixed) / self.cost.slope
        return forecast.share(number, total)

    def note(self, number: int, timing: Timing, budget: int | None, tokens: int) -> None:
        """Take what a block was.

        Args:
            number: of the block; a stream's first one is whole and does not count.
            timing: the time to go by.
            budget: tokens that the target paid for; None if nobody asked.
            tokens: of the block.
        """
        self._judge(timing, budget, tokens)
        if number == 0:
            return
        if not timing.captured and timing.seconds > 0:
            self.cost.note(timing.share, timing.seconds)
        self._book(timing.share if self._target.kept is not None else timing.seconds, budget)

    def _judge(self, timing: Timing, budget: int | None, tokens: int) -> None:
        """Whether the target could have been met, and whether it left anything to do."""
        if budget is None or not self.cost.known:
            return
        starved = budget == 0 and self.cost.seconds(0.0) > self._goal
        if round(timing.share * tokens) > budget or (self._target.kept is None and starved):
            self.missed += 1
        elif budget >= tokens and timing.seconds < 0.95 * self._goal:
            self.idle += self._target.kept is None

    def _book(self, spent: float, budget: int | None) -> None:
        """Put a block's excess on the ledger, within what may be owed or saved."""
        self.counted += 1
        self.spent += spent
        excess = spent - self._goal
        if excess > 0 and budget == 0:
            # nothing was to be computed: it cannot be paid back
            return
        reserve = (_LATENCY_RESERVE if self._target.latency is not None else _RESERVE) * self._goal
        self._owed = min(max(self._owed + excess, -reserve), reserve)

    def achieved(self, spent: float, blocks: int) -> float | None:
        """The target's quantity, if so many blocks spent so much; None for none."""
        mean = spent / blocks if blocks else None
        return self._frames / mean if self._target.fps is not None and mean else mean

    @property
    def fastest(self) -> float | None:
        """See `RateOutcome`."""
        if self._target.kept is not None or not self.cost.known:
            return None
        fixed = max(self.cost.fixed, 1e-9)
        return self._frames / fixed if self._target.fps is not None else fixed
