"""Votes as lines of JSON: on the disk before the participant is told so, and never rewritten.

What is taken back is another line. A last line that was torn by a kill is left out.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from stillframe.errors import InputError
from stillframe.study.plan import Trial
from stillframe.untrusted.small_files import parse_json
from stillframe.whole_file import LineFile, whole_lines

__all__ = ["Answer", "Ballots", "Vote", "VoteFile", "read_votes"]

Answer = Literal["left", "same", "right"]
_ANSWERS: tuple[str, ...] = get_args(Answer)

_LONGEST_LINE = 1 << 16
_EVENTS = ("study", "vote", "taken back")


@dataclass(frozen=True)
class Vote:
    """What somebody said of a pair.

    Attributes:
        participant: who.
        clip, left, right: what was shown where, see `Trial`.
        vote: which side is better.
        seconds: for which the pair was looked at.
        loops: how often it was seen to its end.
        time: when, UTC.
    """

    participant: str
    clip: str
    left: str
    right: str
    vote: Answer
    seconds: float = 0.0
    loops: int = 0
    time: str = ""

    @property
    def trial(self) -> Trial:
        """What was shown."""
        return Trial(self.clip, self.left, self.right)


class Ballots:
    """Votes that count, by participant, in the order in which they were given.

    Attributes:
        seed: of the study's plans, None if none was drawn yet.
    """

    def __init__(self) -> None:
        self.seed: int | None = None
        self._votes: dict[str, dict[tuple[str, str, str], Vote]] = {}
        self._latest: dict[str, Vote] = {}

    @property
    def all(self) -> list[Vote]:
        """All votes that count."""
        return [vote for votes in self._votes.values() for vote in votes.values()]

    def of(self, participant: str) -> list[Vote]:
        """Those of a participant."""
        return list(self._votes.get(participant, {}).values())

    def latest(self, participant: str) -> Vote | None:
        """The vote that a participant gave last, None if none or if one was taken back since."""
        return self._latest.get(participant)

    def take(self, entry: dict[str, Any]) -> None:
        """Take in an entry of the file.

        Raises:
            ValueError: it is none.
        """
        event = entry.pop("event", None)
        if event not in _EVENTS:
            raise ValueError(f"event is study, vote or taken back, got {event!r}")
        if event == "study":
            self.seed = int(entry["seed"])
            return
        try:
            vote = Vote(**entry)
        except TypeError as error:
            raise ValueError("it lacks something, or has too much") from error
        texts = (vote.participant, vote.clip, vote.left, vote.right)
        if not all(isinstance(text, str) for text in texts) or vote.vote not in _ANSWERS:
            raise ValueError(f"vote is left, same or right, got {vote.vote!r}")
        # one that is given anew is the latest
        own = self._votes.setdefault(vote.participant, {})
        own.pop(vote.trial.key, None)
        self._latest.pop(vote.participant, None)
        if event == "vote":
            own[vote.trial.key] = self._latest[vote.participant] = vote


def read_votes(path: Path) -> Ballots:
    """The votes of a file.

    Raises:
        InputError: it cannot be read, or a line other than the last is no entry.
    """
    ballots = Ballots()
    try:
        for number, line in enumerate(whole_lines(path, _LONGEST_LINE), 1):
            _take(ballots, line, f"{path} line {number}")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return ballots


def _take(ballots: Ballots, line: bytes, name: str) -> None:
    try:
        entry = parse_json(line)
        if not isinstance(entry, dict):
            raise ValueError("it is no object")
        ballots.take(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name} is not of a study: {error}") from error


class VoteFile:
    """The file of a study's votes, open for this process alone.

    Args:
        path: of the file; made if need be, with a new seed.
        seed: for a new file; None draws one.

    Attributes:
        ballots: what is in it.
        seed: of the study's plans.

    Raises:
        InputError: a line of it is no entry.
        OutputError: it cannot be written, or another process has it.
    """

    def __init__(self, path: Path, seed: int | None = None) -> None:
        self.path, self.ballots = path, Ballots()
        numbers = count(1)
        try:
            self._file = LineFile(
                path,
                _LONGEST_LINE,
                "study",
                lambda line: _take(self.ballots, line, f"{path} line {next(numbers)}"),
            )
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        try:
            if self.ballots.seed is None:
                self._append(event="study", seed=secrets.randbits(63) if seed is None else seed)
                self._sync_folder()
        except BaseException:
            self._file.close()
            raise
        assert self.ballots.seed is not None
        self.seed = self.ballots.seed

    def _sync_folder(self) -> None:
        """Have the new file's name on the disk, too, where a folder can be synced."""
        try:
            folder = os.open(self.path.parent, os.O_RDONLY)
        except OSError:
            return
        try:
            os.fsync(folder)
        except OSError:
            pass
        finally:
            os.close(folder)

    def add(self, vote: Vote) -> None:
        """Keep a vote; it is on the disk when this returns.

        Raises:
            OutputError: it cannot be written; then it does not count.
        """
        self._append(event="vote", **asdict(replace(vote, time=_now())))

    def take_back(self, vote: Vote) -> None:
        """Let a vote count no more.

        Raises:
            OutputError: that cannot be written; then it does.
        """
        self._append(event="taken back", **asdict(replace(vote, time=_now())))

    def _append(self, **entry: Any) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        try:
            self._file.append(line, sync=True)
        except OSError as error:
            raise self._file.explained(error) from error
        self.ballots.take(entry)

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
