"""A process of its own for the model, seen from the one that serves people.

`WorkerProcess` starts it, opens sessions in it, and tells all of them when it has gone, whatever it
died of. It does not start another one, and does not know what is done with the frames.
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from stillframe.errors import ModelError
from stillframe.live.inside import serve_line
from stillframe.live.remote import RemoteSession
from stillframe.live.wire import Facts, Line, LineClosedError, Pixels
from stillframe.live.worker import SessionError
from stillframe.pipeline import CausalWanPipeline

__all__ = ["WorkerProcess"]

_STOP_SECONDS = 10.0


class WorkerProcess:
    """A process that runs the model for several sessions, a block at a time, in turn.

    It is spawned, not forked: the main module of a program that uses it needs the usual
    ``if __name__ == "__main__"``. It ends with the program, however that ends.

    Args:
        load: makes the model, in that process; must be picklable, such as
            ``functools.partial(load_pipeline, "tiny")``.

    Attributes:
        facts: of the model, once it was started.
        pid: of the process, once it was started.
    """

    def __init__(self, load: Callable[[], CausalWanPipeline]) -> None:
        self.facts = Facts(0, "")
        self.pid: int | None = None
        self._load = load
        self._sessions: dict[int, RemoteSession] = {}
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._stopping = False
        self._gone = threading.Event()

    def __enter__(self) -> WorkerProcess:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def sessions(self) -> int:
        """How many there are."""
        return len(self._sessions)

    @property
    def reason(self) -> str | None:
        """Why it has gone; None as long as it is there."""
        return self._reason

    def start(self) -> None:
        """Start it and wait until the model is loaded; once.

        Raises:
            ModelError: the model cannot be loaded, or the process died over it.
            ValueError: the model was described wrongly.
        """
        context = multiprocessing.get_context("spawn")
        mine, its = context.Pipe()
        self._process = context.Process(
            target=serve_line, args=(its, self._load), name="stillframe-model", daemon=True
        )
        self._process.start()
        self.pid = self._process.pid
        its.close()  # or this end would never hear that the other one is gone
        self._line = Line(mine)
        try:
            (kind, *said), _ = self._line.receive()
        except LineClosedError as error:
            self._never_began()
            raise ModelError(f"{self._reason} at its start") from error
        if kind == "failed":
            self._never_began()
            name, message, _ = said
            raise (ValueError if name == "ValueError" else ModelError)(message)
        (self.facts,) = said
        self._thread = threading.Thread(target=self._read, name="stillframe-line", daemon=True)
        self._thread.start()

    def _never_began(self) -> None:
        """Give back what `start` took."""
        self._process.join()
        self._line.close()
        self._reason = f"the process that runs the model {self._death()}"
        self._process.close()
        self._gone.set()

    def open(self, prompt: str | None = None, **options: Any) -> RemoteSession:
        """Open a session; arguments are those of `LiveSession`, without a worker and a clock.

        Raises:
            ValueError: for arguments out of range.
            SessionError: the process has gone.
        """
        number = next(self._numbers)
        session = RemoteSession(number, self)
        with self._lock:
            self._sessions[number] = session
        try:
            session.opened(*self.call(number, "open", {"prompt": prompt, **options}))
        except BaseException:
            self.forget(number)
            raise
        return session

    def forget(self, number: int) -> None:
        """A session is over."""
        with self._lock:
            self._sessions.pop(number, None)

    def call(
        self, number: int, verb: str, options: dict[str, Any], pixels: Pixels | None = None
    ) -> Any:
        """Let a session do something, and wait for the answer.

        Raises:
            ValueError: what was asked for is out of range.
            SessionError: the session has failed, or the process has gone.
        """
        call, answer = next(self._numbers), Future[Any]()
        with self._lock:
            self._raise_if_gone()
            self._calls[call] = answer
        try:
            self._line.send((call, number, verb, options), pixels)
        except LineClosedError:
            self._gone.wait()  # whoever reads the line fails the call, with the reason
        return answer.result()

    def tell(self, number: int, verb: str, options: dict[str, Any]) -> None:
        """The same without an answer; nothing happens if the process has gone."""
        try:
            self._line.send((None, number, verb, options))
        except LineClosedError:
            return

    def _raise_if_gone(self) -> None:
        if self._reason is not None:
            raise SessionError(self._reason)

    def _read(self) -> None:
        """Pass on what comes, to the end of the process; a thread's work."""
        try:
            while True:
                (kind, number, *said), pixels = self._line.receive()
                if kind == "answer":
                    self._answered(number, *said)
                    continue
                with self._lock:
                    session = self._sessions.get(number)
                if session is not None:
                    session.heard(kind, said, pixels)
        except LineClosedError:
            pass
        finally:
            self._end()

    def _answered(self, call: int, number: int, problem: Any, value: Any, figures: Any) -> None:
        with self._lock:
            answer = self._calls.pop(call)
            session = self._sessions.get(number)
        if session is not None and figures is not None:
            session.figures = figures
        if problem is None:
            answer.set_result(value)
            return
        name, message, trace = problem
        known = {"ValueError": ValueError(message), "SessionError": SessionError(message, trace)}
        answer.set_exception(known.get(name) or SessionError(f"{name}: {message}", trace))

    def _end(self) -> None:
        """The process has gone: tell everybody who waits."""
        # without a line it is of no use, alive or not
        self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        reason = "the worker was stopped"
        if not self._stopping:
            reason = f"the process that runs the model {self._death()}"
        with self._lock:
            self._reason = reason
            calls, self._calls = list(self._calls.values()), {}
            sessions, self._sessions = list(self._sessions.values()), {}
        for answer in calls:
            answer.set_exception(SessionError(reason))
        for session in sessions:
            session.heard("ended", [(reason, "")], None)
        self._line.close()
        self._process.close()
        self._gone.set()

    def _death(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has gone; false if it is still there after so many seconds."""
        return self._gone.wait(timeout)

    def stop(self) -> None:
        """End it after the block that runs; sessions that are left fail."""
        self._stopping = True
        if not self._gone.is_set():
            self._line.hang_up()
        self._gone.wait()
