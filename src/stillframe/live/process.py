"""The process that runs the model, seen from the server's.

`WorkerProcess` starts it, opens sessions in it, and ends all of them when it has gone, whatever it
died of; it does not start another one.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import pickle
import signal
import threading
import time
import traceback
from concurrent.futures import Future
from functools import partial
from typing import Any

from stillframe.errors import ModelError
from stillframe.live.client import RemoteSession
from stillframe.live.ipc import Channel, ChannelClosedError, ModelInfo, Pixels
from stillframe.live.worker import SessionError
from stillframe.live.worker_main import Load, run_worker
from stillframe.loading.devices import environment_of
from stillframe.loading.host import not_interrupted, run_with

__all__ = ["WorkerProcess"]

_STOP_SECONDS = 10.0
_HEARTBEAT_SECONDS = 1.0
_START_SECONDS, _LOAD_SECONDS = 600.0, 3600.0
"""Without a word while it loads the model, which may keep it from saying any; and for all of it."""


class WorkerProcess:
    """A process that runs the model for several sessions, a block at a time, in turn.

    It is spawned, not forked: the main module of a program that uses it needs the usual
    ``if __name__ == "__main__"``. It ends with the program, however that ends.

    One that hangs is killed: it sends a heartbeat once a second (``worker_main``).

    Args:
        load: makes the model, in that process, or a context manager that has it while sessions
            are served; must be picklable, such as ``functools.partial(load_pipeline, "tiny")``.
        device: a name of ``loading.devices``: of CUDA devices the process sees this one alone, as
            its first. By default it sees all.
        starts_others: the model runs in processes that that one starts, and ends.
        silence_seconds: without a word from it after which it counts as hung.
        turn_seconds: a session's turn, a block or a prompt, may take.

    Attributes:
        model: of the model, once it was started.
        pid: of the process, once it was started.
    """

    def __init__(
        self,
        load: Load,
        device: str | None = None,
        *,
        starts_others: bool = False,
        silence_seconds: float = 30.0,
        turn_seconds: float = 600.0,
    ) -> None:
        self.model = ModelInfo(0, "")
        self.pid: int | None = None
        self._load, self._device, self._starts_others = load, device, starts_others
        self._silence_seconds, self._turn_seconds = silence_seconds, turn_seconds
        self._silent = 0.0
        self._hung: str | None = None
        self._sessions: dict[int, RemoteSession] = {}
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._begun = self._loaded = self._stopping = False
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
            ModelError: the model cannot be loaded, or the process died over it or was stopped.
            ValueError: the model was described wrongly.
        """
        context = multiprocessing.get_context("spawn")
        run = pickle.dumps(partial(run_worker, load=self._load))
        with self._lock:
            if self._stopping:
                raise ModelError("the worker was stopped")
            mine, its = context.Pipe()
            self._process = context.Process(
                target=run_with,
                args=(environment_of(self._device), run, its),
                name="stillframe-model",
                # one that is may start none; it ends with its channel either way
                daemon=not self._starts_others,
            )
            with not_interrupted():
                self._process.start()
            self._begun, self.pid = True, self._process.pid
        its.close()  # or this end would never hear that the other one is gone
        self._channel = Channel(mine)
        try:
            kind, *content = self._await_model()
        except ChannelClosedError as error:
            self._clean_up_start()
            raise ModelError(f"{self._reason} at its start") from error
        if kind == "failed":
            self._clean_up_start()
            name, message, _ = content
            raise (ValueError if name == "ValueError" else ModelError)(message)
        (self.model,) = content
        if self._device is not None:  # which it knows as its first
            self.model = self.model._replace(device=self._device)
        self._loaded = True
        for work, name in (
            (self._read, "stillframe-reader"),
            (self._watchdog, "stillframe-watchdog"),
        ):
            threading.Thread(target=work, name=name, daemon=True).start()

    def _await_model(self) -> tuple[Any, ...]:
        """What it says when the model is loaded, or is not.

        Raises:
            ChannelClosedError: it has gone, or was silent for too long.
        """
        end = time.monotonic() + _LOAD_SECONDS
        while True:
            if not self._channel.poll(min(_START_SECONDS, end - time.monotonic())):
                self._kill(f"had not loaded the model after {_LOAD_SECONDS:g} s, or was silent")
            content, _ = self._channel.receive()
            if content[0] != "heartbeat":
                return content

    def _clean_up_start(self) -> None:
        """Give back what `start` took."""
        self._process.join()
        self._channel.close()
        self._reason = f"the process that runs the model {self._exit_reason()}"
        self._process.close()
        self._gone.set()

    def open(self, prompt: str | None = None, **options: Any) -> RemoteSession:
        """Open a session; arguments are those of `LiveSession`, without a worker and a clock.

        Raises:
            ValueError: for arguments out of range.
            SessionError: the process has gone.
        """
        number = next(self._numbers)
        session = RemoteSession(number, self, self.model.device)
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
        content = pickle.dumps(options, protocol=5)
        call, answer = next(self._numbers), Future[Any]()
        with self._lock:
            self._raise_if_gone()
            self._calls[call] = answer
        try:
            self._channel.send((call, number, verb, content), pixels)
        except ChannelClosedError:
            self._gone.wait()  # the reading thread fails the call, with the reason
        return answer.result()

    def tell(self, number: int, verb: str, options: dict[str, Any]) -> None:
        """The same without an answer; nothing happens if the process has gone."""
        try:
            self._channel.send((None, number, verb, pickle.dumps(options, protocol=5)))
        except ChannelClosedError:
            return

    def _raise_if_gone(self) -> None:
        if self._reason is not None:
            raise SessionError(self._reason)

    def _read(self) -> None:
        """Pass on what comes, to the end of the process; a thread's work."""
        try:
            while True:
                (kind, number, *content), pixels = self._channel.receive()
                self._silent = 0.0
                if kind == "answer":
                    self._resolve(number, *content)
                elif kind == "heartbeat":
                    self._check_turn(*content)
                else:
                    self._dispatch(number, kind, content, pixels)
        except ChannelClosedError:
            pass
        finally:
            self._end()

    def _dispatch(self, number: int, kind: str, content: list[Any], pixels: Pixels | None) -> None:
        """Tell a session; what goes wrong with it ends that one."""
        with self._lock:
            session = self._sessions.get(number)
        if session is None:
            return
        try:
            session.handle(kind, content, pixels)
        except Exception as error:
            why = f"the session failed with {type(error).__name__}: {error}"
            content = [(why, traceback.format_exc())]
            session.handle("ended", content, None)

    def _check_turn(self, seconds: float) -> None:
        if seconds > self._turn_seconds:
            self._kill(f"had been at one block for {seconds:.0f} s")

    def _watchdog(self) -> None:
        """Kill the process if it says nothing any more; a thread's work.

        Counts its own steps: where both processes were stopped for a while, nobody hangs.
        """
        while not self._gone.wait(_HEARTBEAT_SECONDS):
            self._silent += _HEARTBEAT_SECONDS
            if self._silent > self._silence_seconds:
                self._kill(f"gave no sign of life for {self._silence_seconds:g} s")

    def _kill(self, why: str) -> None:
        """End a process that hangs; the reading thread notices."""
        self._hung = self._hung or why
        with contextlib.suppress(ValueError):  # it has ended, and was given back
            self._process.kill()

    def _resolve(self, call: int, number: int, problem: Any, value: Any, counters: Any) -> None:
        with self._lock:
            answer = self._calls.pop(call)
            session = self._sessions.get(number)
        if session is not None and counters is not None:
            session.counters = counters
        if problem is None:
            answer.set_result(value)
            return
        name, message, trace = problem
        known = {"ValueError": ValueError(message), "SessionError": SessionError(message, trace)}
        answer.set_exception(known.get(name) or SessionError(f"{name}: {message}", trace))

    def _end(self) -> None:
        """The process has gone: tell everybody who waits."""
        # without a channel it is of no use, alive or not
        self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        reason = "the worker was stopped"
        if not self._stopping:
            reason = f"the process that runs the model {self._exit_reason()}"
        with self._lock:
            self._reason = reason
            calls, self._calls = list(self._calls.values()), {}
            sessions, self._sessions = list(self._sessions.values()), {}
        for answer in calls:
            answer.set_exception(SessionError(reason))
        for session in sessions:
            session.handle("ended", [(reason, "")], None)
        self._channel.close()
        self._process.close()
        self._gone.set()

    def _exit_reason(self) -> str:
        if self._hung is not None:
            return f"was killed: it {self._hung}"
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has gone; false if it is still there after so many seconds."""
        return self._gone.wait(timeout)

    def stop(self) -> None:
        """End it after the block that runs; sessions that are left fail. While it loads the model
        it is killed."""
        with self._lock:
            self._stopping = True
            if not self._begun:
                return
        if not self._loaded:
            self._kill("was stopped while it loaded the model")
        elif not self._gone.is_set():
            self._channel.shut_down()
        self._gone.wait()
