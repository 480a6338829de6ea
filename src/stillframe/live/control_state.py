"""The controls of a stream that runs: changed between blocks, and told of after each.

What did not change goes on as it was: a guard keeps what it has drawn, a rate what it knows of the
machine, and refreshes stay in turn. Knows controls and their states; not where frames come from or
who is told.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import fields
from typing import Any

from stillframe.controls import Control, Cuts, Gop, Refresh, StreamControl
from stillframe.controls.guard import Watch
from stillframe.controls.rate import Rate, RateController
from stillframe.methods import Method

__all__ = ["Lately", "followed"]

_LATELY = 8  # blocks, the horizon over which a rate settles what it owes
_ASKED = 1024  # blocks after which a guard is asked less often: its estimate takes all blocks anew
_LIVELY = ("rate", "guard")


def followed(
    before: StreamControl | None, control: Control | None, method: Method, frames: int
) -> StreamControl | None:
    """The state with which a stream goes on under another control.

    Args:
        before: the state so far.
        method: that the next block is made with.
        frames: pixel frames of a block.
    """
    if control is None:
        return None
    after = control.start(method, frames)
    if before is None:
        return after
    rate, watch = _same_rate(before, after), _same_watch(before, after)
    if _alike(before.control, control):
        before.control, after = control, before
    after.rate, after.watch = rate, watch
    return after


def _alike(one: Control, other: Control) -> bool:
    """Whether two controls ask for the same but for a rate and a guard."""
    names = [each.name for each in fields(Control) if each.name not in _LIVELY]
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    # of regions and masks, which hold tensors, only the very same ones
    return all(a is b or (isinstance(a, Gop | Refresh | Cuts) and a == b) for a, b in pairs)


def _same_rate(before: StreamControl, after: StreamControl) -> RateController | None:
    """What holds the rate from here on."""
    old, new = before.rate, after.rate
    if old is None or new is None or _replays(old.rate) or _replays(new.rate):
        return new
    if new.rate != old.rate:
        old.retarget(new.rate)
    return old


def _replays(rate: Rate) -> bool:
    """Whether it goes by something else than what is measured, and so by numbers of blocks."""
    return any(x is not None for x in (rate.forecast, rate.trace, rate.clock))


def _same_watch(before: StreamControl, after: StreamControl) -> Watch | None:
    same = before.control.guard == after.control.guard
    return before.watch if same else after.watch


class Lately:
    """How a session's rate and guard do, as plain values; ask once after every block.

    Args:
        frames: pixel frames of a block.
    """

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._missed: deque[bool] = deque(maxlen=_LATELY)
        self._behind: deque[bool] = deque(maxlen=_LATELY)
        self._counted = self._fell = 0
        self._rate: Rate | None = None
        self._watch: Watch | None = None
        self._watched = self._next = 0
        self._told: dict[str, Any] = {}

    def rate(self, controlled: StreamControl | None) -> dict[str, Any] | None:
        """Of the rate, None without one.

        Returns:
            the target as ``target_fps``, ``target_latency`` or ``target_kept``; ``mode``; ``share``
            of tokens that the next block may have; ``achieved``, the target's quantity over its
            latest 8 blocks, None before there are any; ``out_of_reach``, whether most of them took
            longer although as little as possible was computed; ``behind``, whether any of them
            showed what is staler than twice the tolerance; ``limit``, what the target could be
            at most (fps) or at least (latency), None where that is not known.
        """
        controller = None if controlled is None else controlled.rate
        if controller is None:
            self._rate = None
            return None
        report, rate = controller.report(), controller.rate
        if rate is not self._rate:
            self._rate, self._counted = rate, 0
            self._fell = 0
            self._missed.clear()
            self._behind.clear()
        self._missed.append(report.out_of_reach > self._counted)
        self._counted = report.out_of_reach
        self._behind.append(report.behind > self._fell)
        self._fell = report.behind
        target = {f"target_{name}": v for name, v in rate.target.items() if v is not None}
        return {
            **target,
            "mode": rate.mode,
            "share": controller.share(),
            "achieved": self._achieved(controller, report.blocks),
            "behind": any(self._behind),
            "out_of_reach": 2 * sum(self._missed) > len(self._missed),
            "limit": report.fastest,
        }

    def _achieved(self, controller: RateController, blocks: int) -> float | None:
        latest = controller.timings[-min(blocks, _LATELY) :] if blocks else []
        if not latest:
            return None
        if controller.rate.kept is not None:
            return sum(timing.share for timing in latest) / len(latest)
        seconds = sum(timing.seconds for timing in latest) / len(latest)
        if controller.rate.fps is None:
            return seconds
        return self._frames / seconds if seconds > 0 else None

    def guard(self, controlled: StreamControl | None) -> dict[str, Any] | None:
        """Of the guard, None without one; call it when the block's frames are there already.

        Returns:
            ``share`` drawn; ``error`` with ``low`` and ``high``, its interval at ``confidence``, in
            standard deviations of the latents, None before anything was drawn; ``drawn`` of
            ``tokens``. For a guard with a target only ``share``, ``target`` and the ``factor`` of
            the thresholds: to read its estimate early would move them early. After a thousand
            blocks the estimate is made anew every other block, after two every third, and so on.
        """
        watch = None if controlled is None else controlled.watch
        if watch is not self._watch:
            self._watch, self._watched, self._next = watch, 0, 0
        if watch is None:
            return None
        guard = watch.guard
        if guard.target is not None:
            return {"share": guard.share, "target": guard.target, "factor": watch.factor}
        if self._watched == self._next:
            told = watch.report()
            names = ("share", "error", "low", "high", "confidence", "drawn", "tokens")
            self._told = {name: _finite(told[name]) for name in names}
            self._next += 1 + self._watched // _ASKED
        self._watched += 1
        return self._told


def _finite(value: Any) -> Any:
    """None for a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
