"""Runs the model for all sessions, and starts it again if it fails.

`ProcessSupervisor` runs it in a process of its own: if that dies, the server goes on.
`ThreadSupervisor` runs it on a thread of the server's process, which is slower and less safe:
pictures, sockets and model wait for each other, and what kills one kills all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from stillframe.live import LiveSession, Session, SessionError, Worker, WorkerProcess
from stillframe.live.worker_main import Load
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.server.limits import RefusedError

__all__ = ["ModelSupervisor", "ProcessSupervisor", "ThreadSupervisor", "WorkerStatus"]

_log = logging.getLogger(__name__)
_LONGEST_PAUSE = 30.0


class WorkerStatus(NamedTuple):
    """How a worker does.

    Attributes:
        device: where it computes; "" as long as nobody knows.
        ready: whether it takes sessions: its model is loaded.
        sessions: that it serves.
        failures: how often it has ended though it should not have.
    """

    device: str
    ready: bool
    sessions: int
    failures: int


class ModelSupervisor(Protocol):
    """What the server needs of either of them, or of several (``pool``)."""

    @property
    def workers(self) -> list[WorkerStatus]:
        """How its workers do."""
        ...

    @property
    def default_height(self) -> int:
        """Of the edited frames if nobody asks for a size, in pixels."""
        ...

    def start(self) -> None:
        """Serve from now on, once the model is there; again, this does nothing."""
        ...

    def stop(self) -> None:
        """End after the block that runs; sessions that are left fail."""
        ...

    def open(self, prompt: str | None, **options: Any) -> Session:
        """Open a session, see `LiveSession`."""
        ...


class ThreadSupervisor:
    """Runs a worker on a thread from `start` to `stop`.

    If the worker fails, its sessions have ended with a message (`Worker.run`) and the next one
    takes its place.

    Args:
        pipe: the model, or what loads it.
    """

    def __init__(self, pipe: CausalWanPipeline | Callable[[], CausalWanPipeline]) -> None:
        self._source = pipe
        self._pipe: CausalWanPipeline | None = None
        self._worker = Worker()
        self._lock = threading.Lock()
        self._stopped = False
        self._failures = 0
        self._thread = threading.Thread(
            target=self._supervise, name="stillframe-worker", daemon=True
        )

    @property
    def worker(self) -> Worker:
        """The one that serves now."""
        with self._lock:
            return self._worker

    @property
    def workers(self) -> list[WorkerStatus]:
        """How the one that serves now does, with the failures of those before."""
        pipe = self._pipe
        device = "" if pipe is None else str(pipe.compute_device)
        return [WorkerStatus(device, pipe is not None, len(self.worker), self._failures)]

    @property
    def default_height(self) -> int:
        """Of the edited frames if nobody asks for a size, in pixels."""
        assert self._pipe is not None
        return int(self._pipe.config.default_height)

    def start(self) -> None:
        """Load the model, and serve from now on; once."""
        source = self._source
        self._pipe = source if isinstance(source, CausalWanPipeline) else source()
        self._thread.start()

    def stop(self) -> None:
        """End after the block that runs; sessions that are left fail."""
        with self._lock:
            self._stopped = True
            worker = self._worker
        worker.stop()
        if self._thread.is_alive():
            self._thread.join()

    def open(self, prompt: str | None, **options: Any) -> Session:
        """Open a session, see `LiveSession`."""
        assert self._pipe is not None
        return LiveSession(self._pipe, prompt, worker=self.worker, **options)

    def _supervise(self) -> None:
        while True:
            try:
                self.worker.run()
            except BaseException:  # even one that asks the thread to end must not end the service
                _log.exception("the worker failed; another one takes its place")
            with self._lock:
                if self._stopped:
                    return
                self._failures += 1
                self._worker = Worker()


class ProcessSupervisor:
    """Runs the model in a process from `start` to `stop`.

    If it ends, its sessions end with a message that says how, and another one is started. Until
    that has loaded the model, who wants a session waits for it.

    Args:
        load: makes the model, in that process; picklable, see `WorkerProcess`.
        device, starts_others: of that process, see there.
        patience: seconds that `open` waits for a process.
    """

    def __init__(
        self,
        load: Load,
        device: str | None = None,
        *,
        starts_others: bool = False,
        patience: float = 60.0,
    ) -> None:
        self._load, self._device, self._patience = load, device, patience
        self._starts_others = starts_others
        self._process: WorkerProcess | None = None
        self._starting: WorkerProcess | None = None
        self._changed = threading.Condition()
        self._stopped = False
        self._failures = 0
        self._height = 0
        self._thread: threading.Thread | None = None

    @property
    def process(self) -> WorkerProcess | None:
        """The one that serves now; None if there is none."""
        return self._process

    @property
    def pid(self) -> int | None:
        """Of that process."""
        process = self._process
        return None if process is None else process.pid

    @property
    def ready(self) -> bool:
        """Whether there is a process that serves."""
        process = self._process
        return process is not None and process.reason is None

    @property
    def workers(self) -> list[WorkerStatus]:
        """How the process that serves now does, with the failures of those before."""
        process = self._process
        device = self._device or ("" if process is None else process.model.device)
        sessions = 0 if process is None else process.sessions
        return [WorkerStatus(device, self.ready, sessions, self._failures)]

    @property
    def default_height(self) -> int:
        """Of the edited frames if nobody asks for a size, in pixels."""
        return self._height

    def start(self) -> None:
        """Start the process and wait for the model; nothing happens the second time.

        Raises:
            ModelError: the model cannot be loaded, or this was stopped.
            ValueError: it was described wrongly.
        """
        if self._thread is not None:
            return
        self._start_process()
        self.keep_going()

    def keep_going(self) -> None:
        """Start a process whenever there is none, also where `start` has failed; does not wait."""
        self._thread = threading.Thread(
            target=self._supervise, name="stillframe-supervisor", daemon=True
        )
        self._thread.start()

    def _start_process(self) -> None:
        """Start a process, and wait until it serves; see `start`."""
        process = WorkerProcess(self._load, self._device, starts_others=self._starts_others)
        with self._changed:
            if self._stopped:
                process.stop()  # so that it does not start
            self._starting = process
        try:
            process.start()
        except Exception:
            if not self._stopped:
                self._failures += 1
            raise
        with self._changed:
            self._height = process.model.default_height
            self._process, self._starting = process, None
            self._changed.notify_all()

    def stop(self) -> None:
        """End after the block that runs; sessions that are left fail."""
        with self._changed:
            self._stopped = True
            process = self._process or self._starting
            self._changed.notify_all()
        if process is not None:
            process.stop()
        if self._thread is not None:
            self._thread.join()

    def open(self, prompt: str | None, **options: Any) -> Session:
        """Open a session, see `WorkerProcess.open`.

        Raises:
            RefusedError: there is no process, and none came in time.
        """
        end = time.monotonic() + self._patience
        while True:
            process = self._present(end - time.monotonic())
            try:
                return process.open(prompt, **options)
            except SessionError:
                if process.reason is None:
                    raise
                # it had just gone, and nobody had noticed yet

    def _present(self, seconds: float) -> WorkerProcess:
        """The process that serves, waiting for one if there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready or self._stopped, seconds)
            process = self._process
            if process is None or process.reason is not None:
                raise RefusedError("the model is not there at the moment; try again later")
            return process

    def _supervise(self) -> None:
        """Start a process whenever one has ended, or there is none; a thread's work."""
        pause = 1.0
        if self._process is None:
            self._process_again(pause)
        while (process := self._process) is not None:
            begun = time.monotonic()
            process.wait()
            with self._changed:
                if self._stopped:
                    return
                self._process = None
                self._failures += 1
            _log.error("%s; another one takes its place", process.reason)
            if time.monotonic() - begun > _LONGEST_PAUSE:
                pause = 1.0
            self._process_again(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _process_again(self, pause: float) -> None:
        """Start processes until one stays, each after a longer pause than the one before."""
        while True:
            try:
                self._start_process()
                return
            except Exception:
                if self._stopped:
                    return
                _log.exception("the process of the model did not start; again in %g s", pause)
            with self._changed:
                if self._changed.wait_for(lambda: self._stopped, pause):
                    return
            pause = min(2 * pause, _LONGEST_PAUSE)
