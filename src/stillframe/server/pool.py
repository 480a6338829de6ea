"""Several devices behind one door: a process for each, and sessions where there is room."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stillframe.live import Session
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.server.limits import RefusedError
from stillframe.server.supervisor import ProcessSupervisor, WorkerStatus

__all__ = ["WorkerPool"]

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.1
"""Between two looks for room: neither sessions that close nor processes that come say so."""


class WorkerPool:
    """Runs the model on several devices from `start` to `stop`, in a process for each.

    A session goes to the ready one with the fewest. A process that ends takes its own sessions with
    it, and is started again while the others go on.

    Args:
        loads: what makes the model, by device; see `ProcessSupervisor`.
        max_sessions: that each of them may have at a time.
        patience: seconds that `open` waits for room.

    Raises:
        ValueError: there is no device, or no session may be open.
    """

    def __init__(
        self,
        loads: Mapping[str, Callable[[], CausalWanPipeline]],
        max_sessions: int,
        *,
        patience: float = 60.0,
    ) -> None:
        if not loads or max_sessions < 1:
            raise ValueError(
                f"a pool has 1 device and 1 session of each or more, got {len(loads)} and "
                f"{max_sessions}"
            )
        self._members = [_Member(load, device) for device, load in loads.items()]
        self._max_sessions, self._patience = max_sessions, patience
        self._changed = threading.Condition()
        self._errors: list[Exception] = []
        self._begun = self._open = self._stopped = False

    @property
    def workers(self) -> list[WorkerStatus]:
        """How the processes do, in the order of the devices."""
        return [status for member in self._members for status in member.supervisor.workers]

    @property
    def default_height(self) -> int:
        """Of the edited frames if nobody asks for a size, in pixels."""
        return max(member.supervisor.default_height for member in self._members)

    def start(self) -> None:
        """Start all processes and wait for the first to be ready; nothing happens the second time.

        The others go on loading, and one that cannot load the model tries again.

        Raises:
            ModelError: none can load the model.
            ValueError: it was described wrongly.
        """
        if self._begun:
            return
        self._begun = True
        try:
            for member in self._members:
                threading.Thread(
                    target=self._start, args=(member,), name="stillframe-start", daemon=True
                ).start()
            with self._changed:
                self._changed.wait_for(
                    lambda: self._open or len(self._errors) == len(self._members)
                )
            if not self._open:
                raise self._errors[0]
        except BaseException:
            self.stop()
            raise

    def _start(self, member: _Member) -> None:
        """Start a process; a thread's work."""
        try:
            member.supervisor.start()
        except Exception as error:
            with self._changed:
                self._errors.append(error)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._open or self._stopped)
                if not self._stopped:
                    _log.error("%s: %s; it is tried again", member.device, error)
                    member.supervisor.keep_going()
            return
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End after the blocks that run; sessions that are left fail."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        with ThreadPoolExecutor(len(self._members)) as threads:
            list(threads.map(lambda member: member.supervisor.stop(), self._members))

    def open(self, prompt: str | None, **options: Any) -> Session:
        """Open a session where there are fewest, see `WorkerProcess.open`.

        Raises:
            RefusedError: there is no room, and none came in time.
        """
        end = time.monotonic() + self._patience
        while True:
            member, session = self._room(end), None
            try:
                session = member.supervisor.open(prompt, **options)
                return session
            except RefusedError:  # its process has just gone
                continue
            finally:
                with self._changed:
                    member.opened(session)

    def _room(self, end: float) -> _Member:
        """The device that a session goes to, which is counted as being opened there."""
        with self._changed:
            while True:
                ready = [member for member in self._members if member.supervisor.ready]
                free = [member for member in ready if member.sessions < self._max_sessions]
                if free:
                    found = min(free, key=lambda member: member.sessions)
                    found.opening()
                    return found
                if self._stopped or time.monotonic() > end:
                    raise RefusedError(
                        f"there is no room: {len(ready)} of {len(self._members)} devices are "
                        f"ready, and each has up to {self._max_sessions} sessions; try again later"
                    )
                self._changed.wait(_LOOK_SECONDS)


class _Member:
    """A device, and the sessions on it."""

    def __init__(self, load: Callable[[], CausalWanPipeline], device: str) -> None:
        self.device, self.supervisor = device, ProcessSupervisor(load, device, patience=0.0)
        self._open: list[Session] = []
        self._opening = 0

    @property
    def sessions(self) -> int:
        """How many there are, or are about to be."""
        self._open = [session for session in self._open if session.state != "closed"]
        return self._opening + len(self._open)

    def opening(self) -> None:
        """One is about to be."""
        self._opening += 1

    def opened(self, session: Session | None) -> None:
        """It is there, or could not be opened."""
        self._opening -= 1
        if session is not None:
            self._open.append(session)
