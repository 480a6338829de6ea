"""Quality guard: how wrong is what is reused, estimated from a random sample computed anyway.

In every block a few of the tokens that would be pruned are drawn at random and computed; the square
of the difference between their result and what reuse would have shown estimates the error made. The
tokens are drawn by a generator of its own, so a stream's noise is what it was.

Blocks resemble each other, and so do neighbours within one, but the interval does not rest on the
contrary: what is estimated is the error of the very blocks that were made, and the only chance in
it is the drawing, which is independent from block to block and without replacement within. So the
variance is that of a stratified sample (Cochran, Sampling Techniques, 5.3), and nothing is said of
blocks to come. Tokens that are reused from another place are not drawn, and nothing is said of
them.

Two things a sample cannot see. A token computed alone *leans* towards the reused ones that it
attends to. And a block computed whole after reused ones *drifts*: what it attends to is not what it
would be in a dense edit. Error and drift are independent: in copies of streams, their squares add
up to the square of the true error. The interval's upper end takes in both, as measured beforehand
on other clips. Knows masks and results, not how they are made.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Controls,
    Demands,
    RunningControl,
    StreamFacts,
    register,
)
from stillframe.controls.estimate import Stratum, estimate
from stillframe.methods import Method
from stillframe.options import Option
from stillframe.tokens.restore import predecessor_rows, restore
from stillframe.tokens.source import SourceBlock
from stillframe.untrusted.numbers import check_number

__all__ = ["Guard", "Watch"]

_RECENT = 4  # blocks that thresholds are set by
_REMEMBERED = 2**14  # blocks that the estimate is over, the latest: a stream may live for days
_BOUNDS = 0.25, 4.0  # of what thresholds are multiplied by
_OFTEN = 1024  # blocks after which telemetry estimates less often: it takes all blocks anew
_STEP = 1.25  # most that it changes in a block
_LEAST = 8  # tokens drawn in a block
# Of the bundled model, over 17 training clips: about the 95th of 100 of drifts, and a lean with
# which all of them were covered.
DRIFT, LEAN = 0.15, 1.5
_GAIN = 0.3  # exponent of target / error by which it does


@register("guard")
@dataclass(frozen=True)
class Guard(Control):
    """How the error of reuse is watched.

    Attributes:
        share: of a block's tokens that are computed for it, above 0 up to 0.5; at least 8 tokens.
        target: root mean square error of reused tokens, in latent standard deviations, that the
            thresholds are multiplied towards, between a quarter and four times; None to only watch.
        confidence: of the interval, above 0 and below 1.
        seed: of the drawing.
        drift: most that a block computed whole after reused ones is expected to be off the dense
            edit, root mean square in latent standard deviations; 0 leaves it out.
        lean: most that a block computed whole errs more than tokens computed alone, as a factor; 1
            leaves it out. Both defaults are the bundled model's, see `benchmarks.drift`.

    Raises:
        ValueError: for numbers out of range.
    """

    summary = "a random sample that tells how wrong reuse is"
    options: ClassVar = {
        "guard": Option(
            "float",
            "Recompute this share of the patches at random to see how wrong reuse is: 0.02.",
            above=0, most=0.5, metavar="SHARE", group="Speed and quality", live=True,
        ),
        "guard_target": Option(
            "float", "Move the tolerance towards this error of reused patches.", above=0,
            most=1000000, metavar="ERROR", group="Speed and quality",
        ),
    }  # fmt: skip
    unused: ClassVar = {"guard": None}
    order = 70

    share: float = 0.02
    target: float | None = None
    confidence: float = 0.95
    seed: int = 0
    drift: float = DRIFT
    lean: float = LEAN

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5:
            raise ValueError(f"a guard computes a share in (0, 0.5] of the tokens: {self.share}")
        if self.target is not None and not 0 < self.target < math.inf:
            raise ValueError(f"a guard's target is an error above 0, got {self.target}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"a confidence lies between 0 and 1, got {self.confidence}")
        if not 0 <= self.drift < math.inf:
            raise ValueError(f"a drift is 0 or more, got {self.drift}")
        if not 1 <= self.lean < math.inf:
            raise ValueError(f"a lean is a factor from 1, got {self.lean}")
        for value in (self.target or 0, self.drift, self.lean):
            check_number("a number of a guard", value, 0, 10**6)

    def check(self, method: Method, controls: Controls) -> None:
        if not method.prunes:
            raise ValueError(f"method {method.name!r} reuses nothing that a guard could watch")
        fixed = any(each.gives_mask for each in controls)
        if self.target is not None and (fixed or method.score() is None):
            raise ValueError("a guard's target needs thresholds to move: masks come from elsewhere")

    def start(self, facts: StreamFacts) -> Watch:
        return Watch(self)

    def sampled(self, tokens: int) -> int:
        """Tokens drawn of a block of so many."""
        return max(_LEAST, round(self.share * tokens))


class Watch(RunningControl[Guard]):
    """The guard of one stream.

    Args:
        control: how.

    Attributes:
        factor: what the method's thresholds are multiplied by now.
    """

    def __init__(self, control: Guard) -> None:
        super().__init__(control)
        self.factor = 1.0
        self._generator = torch.Generator().manual_seed(control.seed)
        self._strata: deque[Stratum] = deque(maxlen=_REMEMBERED)
        self._recent: deque[list[Stratum]] = deque(maxlen=_RECENT)
        self._asked: Tensor | None = None
        self._drawn: Tensor | None = None
        self._free: Tensor | None = None
        self._waiting: Tensor | None = None
        self._late: Tensor | None = None
        self._telemetry: dict[str, Any] = {}
        self._asked_for = self._next_estimate = 0

    def demands(self, block: ControlledBlock) -> Demands:
        return block.no_demands()._replace(spare=self.control.sampled(block.grid.tokens))

    def view(self, source: SourceBlock) -> SourceBlock:
        """A block as it must look to a detector for its thresholds to be ``factor`` times as high:
        distances are linear."""
        by = 1 / self.factor
        if self.factor == 1:
            return source
        return source._replace(
            tokens=source.tokens * by,
            previous=source.previous * by,
            reference=source.reference * by,
            leniency=source.leniency * self.factor,
        )

    def mask(self, block: ControlledBlock, keep: Tensor) -> Tensor:
        untold = block.demands.barred
        followed = None if block.source is None else block.source.motion
        if followed is not None:
            untold = untold | followed.moved(keep)
        return self.sample(keep, untold)

    def sample(self, keep: Tensor, untold: Tensor) -> Tensor:
        """A keep mask (B, S, h, w) with the tokens that are drawn; none of ``untold`` are."""
        flat = keep.flatten(1)
        ranks = torch.rand(flat.shape, generator=self._generator).to(keep.device)
        taken = flat | untold.flatten(1)
        count = self.control.sampled(flat.shape[1])
        best = ranks.masked_fill(taken, 2.0).argsort(1)[:, :count]
        drawn = torch.zeros_like(flat).scatter(1, best, True) & ~taken
        self._asked, self._drawn = keep.flatten(2), drawn
        self._free = (~taken).sum(1)
        return keep | drawn.view_as(keep)

    def result(self, result: Tensor, previous: Tensor | None) -> None:
        asked, drawn = self._asked, self._drawn
        self._asked = self._drawn = None
        if asked is None or drawn is None or self._free is None or previous is None:
            return
        # what a drawn token would have shown depends only on tokens that were not drawn
        shown = restore(result, previous, predecessor_rows(asked))
        error = (result - shown).double().square().mean(2)
        count = drawn.sum(1)
        mean = (error * drawn).sum(1) / count.clamp(min=1)
        spread = ((error - mean.unsqueeze(1)).square() * drawn).sum(1)
        variance = spread / (count - 1).clamp(min=1)
        self._waiting = torch.stack([self._free.double(), count.double(), mean, variance], 1)

    def end(self, block: ControlledBlock) -> None:
        self.next_block()

    def next_block(self) -> None:
        """A block is done. Reads what the one before it left, which is there without waiting."""
        self._read()
        self._late, self._waiting = self._waiting, None

    def _read(self) -> None:
        late, self._late = self._late, None
        if late is None:
            return
        rows = [Stratum(int(n), int(m), mean, var) for n, m, mean, var in late.tolist()]
        self._strata.extend(rows)
        self._recent.append(rows)
        if self.control.target is not None:
            self._adjust(self.control.target)

    def _adjust(self, target: float) -> None:
        """Move the thresholds towards the target."""
        recent = estimate([row for rows in self._recent for row in rows], self.control.confidence)
        if not recent.error:
            # nothing reused of late says nothing of what reuse would cost
            return
        step = min(max((target / recent.error) ** _GAIN, 1 / _STEP), _STEP)
        self.factor = min(max(self.factor * step, _BOUNDS[0]), _BOUNDS[1])

    def report(self) -> dict[str, Any]:
        """Asks also for the estimate over the latest 16,384 blocks; waits for the device."""
        return {"guard": self._estimated()}

    def telemetry(self) -> dict[str, Any]:
        """How it does; call it when the block's frames are there already.

        Returns:
            ``share`` drawn; ``error`` with ``low`` and ``high``, its interval at ``confidence``, in
            standard deviations of the latents, None before anything was drawn; ``drawn`` of
            ``tokens``. For a guard with a target only ``share``, ``target`` and the ``factor`` of
            the thresholds: to read its estimate early would move them early. After a thousand
            blocks the estimate is made anew every other block, after two every third, and so on.
        """
        guard = self.control
        if guard.target is not None:
            return {"share": guard.share, "target": guard.target, "factor": self.factor}
        if self._asked_for == self._next_estimate:
            names = ("share", "error", "low", "high", "confidence", "drawn", "tokens")
            found = self._estimated()
            self._telemetry = {name: _finite(found[name]) for name in names}
            self._next_estimate += 1 + self._asked_for // _OFTEN
        self._asked_for += 1
        return self._telemetry

    def _estimated(self) -> dict[str, Any]:
        self._read()
        self._late, self._waiting = self._waiting, None
        self._read()
        guard = self.control
        told = estimate(list(self._strata), guard.confidence, guard.drift, guard.lean)
        asked = {name: getattr(guard, name) for name in ("share", "target", "drift", "lean")}
        return {**asked, **told._asdict(), "factor": self.factor}


def _finite(value: Any) -> Any:
    """None for a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
