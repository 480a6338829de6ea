"""Who takes part, what each is shown next, and what becomes of a vote. Knows no web framework.

A participant is a name, or a number drawn for who gave none. Nothing that is told here says which
method a side is.
"""

from __future__ import annotations

import math
import secrets
import threading
from pathlib import Path
from typing import Any

from stillframe.errors import StillframeError
from stillframe.study.layout import Clip, Layout
from stillframe.study.plan import Trial, make_plan, trial_id
from stillframe.study.votes import Answer, Vote, VoteFile
from stillframe.untrusted.printable import printable

__all__ = ["LONGEST_NAME", "OutdatedError", "Participants", "named"]

#: Letters of a name.
LONGEST_NAME = 40
_LONGEST_LOOK_S = 86_400.0
_MOST_LOOPS = 1_000_000


class OutdatedError(StillframeError):
    """What a page shows is not what comes next: it was open twice, or open for long."""


def named(name: str) -> str:
    """A participant as votes have it: names that differ in case or spaces are one.

    Raises:
        ValueError: it is too long, or not printable.
    """
    found = " ".join(name.split()).casefold()
    if len(found) > LONGEST_NAME or printable(found) != found:
        raise ValueError(f"a name has at most {LONGEST_NAME} letters, this one has {len(found)}")
    return found or f"visitor {secrets.token_hex(4)}"


class Participants:
    """A study while it runs; any thread may call.

    Args:
        layout: what is compared, as browsers play it.
        votes: where votes are kept.
        checks: trials of each participant that show one file on both sides.
    """

    def __init__(self, layout: Layout, votes: VoteFile, checks: int = 0) -> None:
        self.layout, self._votes, self._checks = layout, votes, checks
        self._clips: dict[str, Clip] = {clip.name: clip for clip in layout.clips}
        self._lock = threading.Lock()
        # refused now and not when the first one comes
        self._plan("")

    def _plan(self, participant: str) -> list[Trial]:
        methods = self.layout.methods
        return make_plan([*self._clips], methods, participant, self._votes.seed, self._checks)

    def _next(self, participant: str) -> tuple[Trial | None, int, int]:
        """What comes next, how many are done, and of how many."""
        plan = self._plan(participant)
        done = {vote.trial.key for vote in self._votes.ballots.of(participant)}
        left = [trial for trial in plan if trial.key not in done]
        return (left[0] if left else None), len(plan) - len(left), len(plan)

    def _id(self, trial: Trial, participant: str) -> str:
        return trial_id(trial, participant, self._votes.seed)

    def state(self, participant: str) -> dict[str, Any]:
        """What the page is told: how far somebody is, and what comes next."""
        with self._lock:
            trial, done, total = self._next(participant)
            shown = None
            if trial is not None:
                clip = self._clips[trial.clip]
                shown = {
                    "id": self._id(trial, participant),
                    "source": clip.source is not None,
                    "fps": round(next(iter(clip.facts.values())).fps, 3),
                }
            return {
                "participant": participant,
                "done": done,
                "total": total,
                "trial": shown,
                "may_undo": self._last(participant) is not None,
            }

    def _last(self, participant: str) -> Vote | None:
        """The vote that may be taken back: the latest, if what it is of is still asked."""
        vote = self._votes.ballots.latest(participant)
        asked = {trial.key for trial in self._plan(participant)}
        return vote if vote is not None and vote.trial.key in asked else None

    def file(self, participant: str, trial: str, side: str) -> tuple[Path, int]:
        """A file that somebody is shown, and bytes that both sides of the pair are made to have.

        Raises:
            KeyError: there is none.
        """
        for each in self._plan(participant):
            if self._id(each, participant) == trial:
                clip = self._clips[each.clip]
                sides = {"left": clip.files[each.left], "right": clip.files[each.right]}
                if side == "source" and clip.source is not None:
                    return clip.source, 0
                return sides[side], max(path.stat().st_size for path in sides.values())
        raise KeyError(trial)

    def vote(self, participant: str, trial: str, vote: Answer, seconds: float, loops: int) -> None:
        """Keep a vote.

        Raises:
            OutdatedError: it is of another trial than the next one.
            OutputError: it cannot be written.
        """
        with self._lock:
            shown = self._next(participant)[0]
            if shown is None or self._id(shown, participant) != trial:
                raise OutdatedError("this pair is not the next one: it may have been judged before")
            looked = min(seconds, _LONGEST_LOOK_S) if math.isfinite(seconds) else 0.0
            self._votes.add(
                Vote(participant, *shown, vote, round(looked, 3), min(loops, _MOST_LOOPS))
            )

    def take_back(self, participant: str) -> None:
        """Take the last vote back.

        Raises:
            OutdatedError: there is none.
            OutputError: that cannot be written.
        """
        with self._lock:
            last = self._last(participant)
            if last is None:
                raise OutdatedError("there is no vote to take back")
            self._votes.take_back(last)
