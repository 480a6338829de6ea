"""Who is shown what a session makes without having made it: a picture is edited once for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stillframe.live import EditedFrame, Session

__all__ = ["Watcher", "Watchers"]

_STEP = 0.1
"""Seconds from the last frame of a session to the first of the next, for who watches both."""


@dataclass
class Watcher:
    """One of them.

    Attributes:
        session: what is watched, by its id; None for the newest.
        take: called with each frame and its time, in seconds that rise, on a session's thread.
    """

    session: str | None
    take: Callable[[EditedFrame, float], None]
    shown: str | None = field(default=None, init=False)
    _shift: float = field(default=0.0, init=False)
    _last: float = field(default=0.0, init=False)

    def show(self, session: str, frame: EditedFrame) -> None:
        """Hand on a frame of a session."""
        if session != self.shown:
            self.shown, self._shift = session, self._last + _STEP - frame.timestamp
        time = frame.timestamp + self._shift
        if time > self._last:
            self._last = time
            self.take(frame, time)


class Watchers:
    """All of them. Any thread may call.

    Args:
        sessions: open sessions by id, the newest last.
    """

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._sessions = sessions
        self._watchers: list[Watcher] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._watchers)

    def add(self, watcher: Watcher) -> None:
        """Show frames from now on."""
        with self._lock:
            self._watchers.append(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Show none any more."""
        with self._lock:
            self._watchers.remove(watcher)

    def publish(self, session: str, frame: EditedFrame) -> None:
        """Show a session's frame to those who watch it."""
        if not self._watchers:
            return
        with self._lock:
            newest = next(reversed(list(self._sessions)), None)
            for watcher in self._watchers:
                if session == watcher.session or (watcher.session is None and session == newest):
                    watcher.show(session, frame)
