"""One thread that runs the model for several sessions, a block at a time, in turn.

The session served least recently goes first among those that have a block to run, so a session
waits for at most one block of every other. Sessions that always have work get the same number of
blocks, give or take one, whatever theirs cost. The weights are used by this thread alone.

"""

from __future__ import annotations

import threading
import time
import traceback
from typing import Protocol

import torch

from stillframe.errors import StillframeError

__all__ = ["Runnable", "SessionError", "Worker"]


class SessionError(StillframeError):
    """A live session that cannot be opened, or that has failed.

    Attributes:
        trace: of the exception behind it, as text; empty if there is none. The exception itself
            would hold on to the stream's memory.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class Runnable(Protocol):
    """What the worker asks of a session."""

    @property
    def has_work(self) -> bool:
        """Whether a block could be run now."""
        ...

    def serve(self) -> None:
        """Run a block, on the thread of the caller; must not raise for what the model does."""
        ...

    def fail(self, message: str, trace: str = "") -> None:
        """End with an error."""
        ...


class Worker:
    """Serves sessions, from a thread of its own (`start`) or one that calls `run` or `step`.

    Args:
        max_sessions: how many there may be at a time; None for no limit.
    """

    def __init__(self, max_sessions: int | None = None) -> None:
        self.max_sessions = max_sessions
        # sessions in the order in which they were last served, least recently first
        self._sessions: list[Runnable] = []
        self._changed = threading.Condition()
        self._signals = 0
        self._stopped = False
        self._began: float | None = None
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def add(self, session: Runnable) -> None:
        """Serve a session from now on; sessions do this themselves when they are opened.

        Raises:
            SessionError: if there are as many as there may be, or the worker was stopped.
        """
        with self._changed:
            if self._stopped:
                raise SessionError("the worker was stopped: it takes no more sessions")
            if self.max_sessions is not None and len(self._sessions) >= self.max_sessions:
                raise SessionError(
                    f"{len(self._sessions)} sessions are open, and there may be "
                    f"{self.max_sessions} at a time"
                )
            self._sessions.append(session)
        self.notify()

    def remove(self, session: Runnable) -> None:
        """Serve a session no more; nothing happens if it is not there."""
        with self._changed:
            self._sessions = [other for other in self._sessions if other is not session]

    def notify(self) -> None:
        """A session may have work now."""
        with self._changed:
            self._signals += 1
            self._changed.notify_all()

    @property
    def busy(self) -> float:
        """Seconds for which the turn has taken that runs now; 0 if none does."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def start(self) -> None:
        """Start a thread that serves until `stop`; nothing happens if there is one."""
        with self._changed:
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(
                    target=self.run, name="stillframe-live", daemon=True
                )
                self._thread.start()

    def step(self) -> bool:
        """Run one block of the session whose turn it is; false if none has work."""
        with self._changed:
            waiting = tuple(self._sessions)
        for session in waiting:
            if session.has_work:
                self._to_the_end(session)
                self._began = time.monotonic()
                try:
                    session.serve()
                finally:
                    self._began = None
                return True
        return False

    def _to_the_end(self, session: Runnable) -> None:
        with self._changed:
            if any(other is session for other in self._sessions):
                self._sessions = [other for other in self._sessions if other is not session]
                self._sessions.append(session)

    def run(self) -> None:
        """Serve until `stop`, on the thread of the caller. However it ends, no session waits on."""
        reason, trace = "the worker was stopped", ""
        # asked once, torch tells this thread's libraries: else they use threads of their own number
        torch.get_num_threads()
        try:
            while self._await_work():
                pass
        except BaseException as error:
            reason = f"the worker failed with {type(error).__name__}: {error}"
            trace = traceback.format_exc()
            raise
        finally:
            self._end(reason, trace)

    def _await_work(self) -> bool:
        """Run a block, or wait until there may be one; false if the worker was stopped."""
        with self._changed:
            seen = self._signals
            if self._stopped:
                return False
        if not self.step():
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._signals != seen)
        return True

    def dismiss(self) -> None:
        """Take no more sessions and end the thread after the block that it runs; does not wait."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread, waiting for the block that it runs; sessions that are left fail."""
        self.dismiss()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._end("the worker was stopped")

    def _end(self, reason: str, trace: str = "") -> None:
        """Take no more sessions and fail those that are left."""
        with self._changed:
            self._stopped = True
            left, self._sessions = self._sessions, []
        for session in left:
            session.fail(reason, trace)
