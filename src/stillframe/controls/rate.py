"""Rate control: how many tokens a block may have, and which those are.

For every block the cost model (``cost``) says what share of tokens fits the time that a target
leaves it, and a ledger pays back, over the next blocks, what earlier ones took too much or too
little of. The tokens are those that changed most, by ``change.ChangeScore``: nothing that changed
more is pruned while something calmer is kept, but for what other controls force or forbid, which
comes out of the same budget. Time is measured by the engine, or read from the trace of another run,
which makes every decision again. Knows shares, seconds and masks, not what a block is made of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Controls,
    RunningControl,
    StreamFacts,
    register,
)
from stillframe.controls.given import Given
from stillframe.controls.ledger import HORIZON, RateLedger, RateOutcome, RateTarget
from stillframe.controls.masks import GivenMasks
from stillframe.controls.trace import RateTrace, Timing
from stillframe.controls.twopass import Forecast
from stillframe.methods import Method
from stillframe.options import Option
from stillframe.tokens.source import SourceBlock
from stillframe.untrusted.numbers import check_number

__all__ = ["BEHIND", "MODES", "Rate", "RateController", "most_changed"]

#: What `Rate.mode` may be.
MODES = ("constant", "capped")

#: Tolerances beyond which what is shown counts as behind its source.
BEHIND = 2.0
_MOST_TIMINGS = 2**16  # that are kept: hours of video, and no more however long a stream lives


@register("rate")
@dataclass(frozen=True)
class Rate(RateTarget, Control):
    """A target, and how it is to be met.

    Attributes:
        mode: "constant" spends the budget whatever changed; "capped" leaves it to the thresholds
            where they want less.
        limit: patches that changed by more than so many times the thresholds are computed even if
            the target is missed for it; None for no such limit.
        forecast: what a first pass over the whole video found; spends the budget where it says.
        trace: times of another run, to be used instead of measured ones.
        clock: turns a block's share and measured time into the time to go by; for simulations.

    Raises:
        ValueError: for none or several targets, or numbers out of range.
    """

    summary = "as many patches as a speed, a latency or a share allows"
    options: ClassVar = {
        "target_fps": Option(
            "float", "Hold so many frames a second.", least=0.001, most=1000000, metavar="FPS",
            group="Speed and quality", live=True,
        ),
        "target_latency": Option(
            "float", "Hold so many seconds a block, from encoding to decoding.", least=0.001,
            most=3600, metavar="SECONDS", group="Speed and quality", live=True,
        ),
        "target_kept": Option(
            "float", "Recompute this share of the patches.", above=0, most=1, metavar="SHARE",
            group="Speed and quality", live=True,
        ),
        "rate_mode": Option(
            "str",
            "Spend the whole budget (constant, the default), or no more than the tolerance "
            "asks for (capped).", choices=("constant", "capped"), group="Speed and quality",
            live=True,
        ),
        "rate_limit": Option(
            "float",
            "Recompute what changed by so many times the tolerance even if the target is missed.",
            least=1, most=1000000, metavar="TIMES", group="Speed and quality",
        ),
        "rate_trace_in": Option(
            "path", "Decide by the times in this file, not by measured ones.", metavar="FILE",
            group="Speed and quality",
        ),
        "rate_trace_out": Option(
            "path", "Write the times that the rate was decided by.", metavar="FILE",
            group="Speed and quality",
        ),
        "two_pass": Option(
            "bool", "Look at the whole file first.", default=False, group="Speed and quality",
        ),
    }  # fmt: skip
    needs = ("target_fps", "target_latency", "target_kept")
    unused: ClassVar = {"rate": None}
    order = 30
    strict = True

    mode: str = "constant"
    limit: float | None = None
    forecast: Forecast | None = field(default=None, repr=False)
    trace: RateTrace | None = field(default=None, repr=False)
    clock: Callable[[Timing], Timing] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"a rate's mode is 'constant' or 'capped', got {self.mode!r}")
        if self.limit is not None and not self.limit >= 1:
            raise ValueError(f"a rate's limit is at least 1 threshold, got {self.limit}")
        if self.limit is not None and self.limit != float("inf"):
            check_number("a rate's limit in thresholds", self.limit, 1, 10**6)

    @classmethod
    def from_options(cls, given: Given) -> Rate | None:
        fps, latency, kept = (given[name] for name in cls.needs)
        if fps is None and latency is None and kept is None:
            return None
        path = given["rate_trace_in"]
        trace = None if path is None else RateTrace.read(path)
        mode, limit = given["rate_mode"] or "constant", given["rate_limit"]
        return cls(fps, latency, kept, mode, limit, trace=trace)

    def check(self, method: Method, controls: Controls) -> None:
        if not method.prunes or method.score() is None:
            raise ValueError(
                f"method {method.name!r} has no thresholds: only one that prunes by them can be "
                "held to a rate"
            )
        if controls.find(GivenMasks) is not None:
            raise ValueError("given masks leave nothing to hold a rate with: give one of them")

    @property
    def gives_mask(self) -> bool:
        return self.mode == "constant"

    @property
    def replays(self) -> bool:
        """Whether it goes by something else than what is measured, and so by numbers of blocks."""
        return any(x is not None for x in (self.forecast, self.trace, self.clock))

    def start(self, facts: StreamFacts) -> RateController:
        if facts.method is None:
            raise ValueError("a rate is held by a method's thresholds, and there is none")
        return RateController(self, facts.method, facts.timeline.later_frames)


def most_changed(score: Tensor, count: int, forced: Tensor, barred: Tensor) -> Tensor:
    """The ``count`` tokens of largest score, forced ones first and barred ones never.

    Args:
        score: (B, S, h, w), at least 0; of equal scores the first counts as larger.
        count: of each batch row, at least 0.
        forced, barred: (B, S, h, w) bool; all that is forced is kept, even beyond ``count``.

    Returns:
        (B, S, h, w) bool.
    """
    rank = score.masked_fill(forced, float("inf")).masked_fill(barred, -1.0).flatten(1)
    best = rank.argsort(dim=1, descending=True, stable=True)[:, :count]
    kept = torch.zeros_like(rank, dtype=torch.bool).scatter(1, best, True).view_as(score)
    return (kept | forced) & ~barred


class RateController(RunningControl[Rate]):
    """Holds the rate of one stream. For every block but a first one `choose`, and then `note`.

    Args:
        control: what to hold.
        method: whose thresholds changes are measured in.
        frames: pixel frames of a block.

    Attributes:
        ledger: what the target leaves for the next block.
        blocks: so many so far.
        timings: of the latest 65,536 of them, see ``trace``.
    """

    def __init__(self, control: Rate, method: Method, frames: int) -> None:
        super().__init__(control)
        self.ledger = RateLedger(frames)
        self.blocks = 0
        self.timings: list[Timing] = []
        self._method = method
        self._tokens = 0
        self._budget: int | None = None
        self._outside = 0.0
        self.retarget(control)
        self.forget()

    def retarget(self, control: Rate) -> None:
        """Hold something else from the next block on; what the old target was owed is forgotten."""
        self.control = control
        self.ledger.open(control, control.forecast)
        self._behind = 0
        self._stalest: float | None = None
        self._recent_missed: deque[bool] = deque(maxlen=HORIZON)
        self._recent_behind: deque[bool] = deque(maxlen=HORIZON)

    def adopt(self, previous: RunningControl[Any]) -> RunningControl[Any]:
        """The one before, held to the new target: it knows what the machine can do."""
        if not isinstance(previous, RateController) or previous.control == self.control:
            return super().adopt(previous)
        if self.control.replays or previous.control.replays:
            return self
        previous.retarget(self.control)
        return previous

    def use(self, method: Method) -> None:
        """Measure changes in another method's thresholds from here on."""
        if method != self._method:
            self._method = method
            self.forget()

    def forget(self) -> None:
        """Begin to look for changes anew, as after a cut."""
        self._score = self._method.score()

    def outside(self, seconds: float) -> None:
        self._outside += seconds

    def mask(self, block: ControlledBlock, keep: Tensor) -> Tensor:
        assert block.source is not None
        barred, forced, due, spare = block.demands
        mask, score = self.choose(block.source, keep, forced | due, barred, spare, block.lengths)
        # what is due alone is added, and counted, by whoever demands it
        return mask & ~(due & ~forced & (score < 1))

    def choose(
        self,
        block: SourceBlock,
        own: Tensor,
        forced: Tensor,
        barred: Tensor,
        spare: int = 0,
        lengths: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """The keep mask of a block, and the change score that it goes by, (B, S, h, w) each.

        Args:
            block: the source.
            own: the method's mask, (B, S, h, w).
            forced, barred: what must and must not be computed; never both.
            spare: tokens to leave to others.
            lengths: of kept tokens, rising, that the fast path pads to: what lies between costs as
                much as the next.
        """
        score = self._scored(block)
        self._tokens = block.grid.tokens
        if self.control.limit is not None:
            forced = forced | ((score > self.control.limit) & ~barred)
        count = max(round(self.ledger.share(self.blocks) * self._tokens), 0)
        if lengths and self.control.kept is None and count:
            count = next((n for n in lengths if n >= count), self._tokens)
        self._budget = count
        count = max(count - spare, 0)
        chosen = most_changed(score, count, forced, barred)
        if self.control.mode == "capped":
            own = (own | forced) & ~barred
            few = own.flatten(1).sum(1) <= count
            chosen = torch.where(few.view(-1, 1, 1, 1), own, chosen)
        return chosen, score

    def skip(self, block: ControlledBlock) -> None:
        assert block.source is not None
        self._tokens = block.grid.tokens
        self._scored(block.source)

    def _scored(self, block: SourceBlock) -> Tensor:
        if self._score is None:
            raise ValueError(f"method {self._method.name!r} does not rank what changed")
        return self._score(block)

    def end(self, block: ControlledBlock) -> None:
        if block.order.forget:
            self.forget()
        if block.timing is not None:
            self.note(*block.timing, stale=block.staleness)

    def note(
        self, share: float, seconds: float, captured: bool, stale: Tensor | None = None
    ) -> None:
        """Take what a block was: its share of computed tokens, and the stream's seconds for it.

        Args:
            share: 0 to 1.
            seconds: measured.
            captured: whether a graph was captured in it, so that its time says nothing.
            stale: (B, S, h, w) staleness of what it shows, in grey levels.
        """
        number = self.blocks
        outside, self._outside = self._outside, 0.0
        timing = Timing(
            share, seconds + (outside if self.control.fps is not None else 0.0), captured
        )
        if self.control.trace is not None:
            timing = self.control.trace.replayed(number, timing)
        elif self.control.clock is not None:
            timing = self.control.clock(timing)
        self.blocks += 1
        self.timings.append(timing)
        del self.timings[:-_MOST_TIMINGS]
        missed, behind = self.ledger.missed, self._behind
        self.ledger.note(number, timing._replace(share=share), self._budget, self._tokens)
        self._look(stale)
        self._recent_missed.append(self.ledger.missed > missed)
        self._recent_behind.append(self._behind > behind)
        self._budget = None

    def _look(self, stale: Tensor | None) -> None:
        """Whether the picture is behind its source; the block is done, so nothing is waited for."""
        tolerance = getattr(self._method, "tolerance", None)
        if stale is None or tolerance is None:
            return
        worst = float(stale.amax())
        self._stalest = max(worst, self._stalest or 0.0)
        self._behind += worst > BEHIND * tolerance

    def outcome(self) -> RateOutcome:
        """How it went since the latest target."""
        ledger = self.ledger
        return RateOutcome(
            ledger.achieved(ledger.spent, ledger.counted),
            ledger.counted,
            ledger.missed,
            self._behind,
            self._stalest,
            ledger.idle,
            ledger.fastest,
            ledger.cost.fixed,
            ledger.cost.slope,
        )

    def recorded(self) -> RateTrace:
        """The trace of the whole stream; a ValueError if it was longer than what is kept."""
        kept = len(self.timings)
        if self.blocks > kept:
            raise ValueError(f"a trace holds {kept} blocks, and this stream had {self.blocks}")
        return RateTrace(tuple(self.timings))

    def report(self) -> dict[str, Any]:
        rate = self.control
        asked = {
            **{f"target_{name}": value for name, value in rate.target.items()},
            "mode": rate.mode,
            "limit": rate.limit,
            "two_pass": rate.forecast is not None,
            "first_pass_seconds": None if rate.forecast is None else rate.forecast.seconds,
            "replayed": rate.trace is not None,
        }
        return {"rate": {**asked, **self.outcome()._asdict()}}

    def telemetry(self) -> dict[str, Any]:
        """How it does.

        Returns:
            the target as ``target_fps``, ``target_latency`` or ``target_kept``; ``mode``; ``share``
            of tokens that the next block may have; ``achieved``, the target's quantity over its
            latest 8 blocks, None before there are any; ``out_of_reach``, whether most of them took
            longer although as little as possible was computed; ``behind``, whether any of them
            showed what is staler than twice the tolerance; ``limit``, what the target could be
            at most (fps) or at least (latency), None where that is not known.
        """
        missed = self._recent_missed
        outcome, rate = self.outcome(), self.control
        return {
            **{f"target_{name}": v for name, v in rate.target.items() if v is not None},
            "mode": rate.mode,
            "share": self.ledger.share(self.blocks),
            "achieved": self._recent_achieved(outcome.blocks),
            "behind": any(self._recent_behind),
            "out_of_reach": 2 * sum(missed) > len(missed),
            "limit": outcome.fastest,
        }

    def _recent_achieved(self, blocks: int) -> float | None:
        latest = self.timings[-min(blocks, HORIZON) :] if blocks else []
        kept = self.control.kept is not None
        spent = sum(timing.share if kept else timing.seconds for timing in latest)
        return self.ledger.achieved(spent, len(latest))

    def warnings(self) -> list[str]:
        """That the target was out of reach in more than a tenth of the blocks, or that the picture
        fell behind its source."""
        outcome = self.outcome()
        found = self._out_of_reach(outcome)
        if outcome.behind and outcome.stalest is not None:
            tolerance = getattr(self._method, "tolerance", 0)
            blocks = f"{outcome.behind} of {outcome.blocks} blocks"
            found.append(
                f"the picture fell behind its source in {blocks}: what was reused differed from it "
                f"by up to {outcome.stalest:.1f} grey levels, where the tolerance is {tolerance:g}"
            )
        return found

    def _out_of_reach(self, outcome: RateOutcome) -> list[str]:
        if not outcome.blocks or outcome.out_of_reach <= 0.1 * outcome.blocks:
            return []
        name, value = next((k, v) for k, v in self.control.target.items() if v is not None)
        unit = {"fps": " FPS", "latency": " s a block", "kept": " of the tokens"}[name]
        missed = f"{outcome.out_of_reach} of {outcome.blocks} blocks"
        sentence = f"{value:g}{unit} was out of reach in {missed}"
        if outcome.achieved is not None:
            sentence += f": {outcome.achieved:.3g}{unit} was reached"
        if outcome.fastest is not None:
            sentence += f", and {outcome.fastest:.3g}{unit} is the limit with nothing recomputed"
        return [sentence]
