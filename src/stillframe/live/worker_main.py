"""The process that runs the model: opens, feeds and closes sessions as the server asks.

One thread reads, one runs the model for all sessions (``worker``), and of each session one passes
edited frames on and one waits for room for new ones. Another one sends a heartbeat once a second.
What goes wrong in one session ends that one. The process ends when the channel does, so that it
never outlives the one that started it.
"""

from __future__ import annotations

import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from stillframe.errors import StillframeError
from stillframe.live.ipc import Channel, ChannelClosedError, Counters, ModelInfo, Pixels
from stillframe.live.session import LiveSession
from stillframe.live.worker import SessionError, Worker
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["Load", "run_worker"]

#: Makes the model, or a context manager that has it while sessions are served.
Load = Callable[[], "CausalWanPipeline | AbstractContextManager[CausalWanPipeline]"]

_HEARTBEAT_SECONDS = 1.0

# pixels follow their message
_NO_PIXELS = np.empty((0, 0, 3), np.uint8)


def run_worker(
    connection: Connection[Any, Any], load: Load
) -> None:  # pragma: no cover - runs in a process of its own
    """Load the model, say so, and serve until the channel ends."""
    # Ctrl-C reaches every process of a terminal; when to end is for the other one to say
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel, worker = Channel(connection), Worker()
    threading.Thread(
        target=_send_heartbeats, args=(channel, worker), name="stillframe-heartbeat", daemon=True
    ).start()
    with ExitStack() as stack:
        try:
            made = load()
            pipe = made if isinstance(made, CausalWanPipeline) else stack.enter_context(made)
        except Exception as error:
            known = isinstance(error, StillframeError | ValueError)
            content = str(error) if known else f"{type(error).__name__}: {error}"
            channel.send(("failed", type(error).__name__, content, traceback.format_exc()))
            return
        try:
            info = ModelInfo(pipe.config.default_height, str(pipe.compute_device))
            channel.send(("ready", info))
            _RequestHandler(channel, pipe, worker).run()
        except ChannelClosedError:
            return


def _send_heartbeats(channel: Channel, worker: Worker) -> None:  # pragma: no cover - as above
    """Say once a second that the process runs, and for how long the model has been at a block."""
    pause = threading.Event()
    try:
        while not pause.wait(_HEARTBEAT_SECONDS):
            channel.send(("heartbeat", 0, worker.busy))
    except ChannelClosedError:
        return


class _RequestHandler:
    """Does what is asked for, and answers."""

    def __init__(self, channel: Channel, pipe: CausalWanPipeline, worker: Worker) -> None:
        self._channel, self._pipe, self._worker = channel, pipe, worker
        self._hosted: dict[int, _HostedSession] = {}
        # a session that is closed waits for its block, and nobody else shall
        self._closing = ThreadPoolExecutor(4, "stillframe-close")

    def run(self) -> None:
        """Serve until the channel ends."""
        self._worker.start()
        try:
            while True:
                (call, number, verb, options), pixels = self._channel.receive()
                asked = call, number, verb, options, pixels
                thread = self._thread_for(verb, number)
                try:
                    if thread is not None:
                        thread.submit(self._answer, *asked)
                        continue
                except RuntimeError:  # the session is being closed
                    pass
                self._answer(*asked)
        finally:
            for hosted in list(self._hosted.values()):
                hosted.give(1)
            self._worker.stop()
            self._closing.shutdown()

    def _thread_for(self, verb: str, number: int) -> ThreadPoolExecutor | None:
        """Where to do what may wait, so that nobody else does."""
        hosted = self._hosted.get(number)
        if verb == "push" and hosted is not None:
            return hosted.pushing
        return self._closing if verb == "close" else None

    def _answer(
        self, call: int | None, number: int, verb: str, options: bytes, pixels: Pixels | None
    ) -> None:
        problem = value = counters = None
        try:
            # here, where what cannot be read is the caller's fault only
            value = self._do(number, verb, pickle.loads(options), pixels)
            hosted = self._hosted.get(number)
            counters = None if hosted is None else hosted.counters
        except Exception as error:
            trace = error.trace if isinstance(error, SessionError) else traceback.format_exc()
            problem = type(error).__name__, str(error), trace
        if call is not None:
            self._channel.send(("answer", call, number, problem, value, counters))

    def _do(self, number: int, verb: str, options: Any, pixels: Pixels | None) -> Any:
        if verb == "open":
            return self._open(number, options)
        if verb == "close":
            hosted = self._hosted.pop(number, None)
            if hosted is not None:
                hosted.close()
            return None
        hosted = self._hosted.get(number)
        if verb == "push":
            # closed meanwhile: as by a session that is
            assert pixels is not None
            return hosted is not None and hosted.session.push(pixels, **options)
        if hosted is None:
            raise SessionError("the session is closed: nothing can be changed")
        if verb == "read":
            return hosted.give(options["frames"])
        return getattr(hosted.session, verb)(**options)

    def _open(self, number: int, options: dict[str, Any]) -> tuple[int, int]:
        session = LiveSession(self._pipe, worker=self._worker, **options)
        hosted = self._hosted[number] = _HostedSession(number, session, self._channel)
        hosted.start()
        return session.patch, session.block_frames


class _HostedSession:
    """A session, and the thread that passes its frames on.

    No more frames are on their way than the reader has room for, so that one who stops reading
    stops his own session, as if both were in one process.

    Attributes:
        session: the one.
        pushing: a thread for frames that come in; of a session they come one by one.
    """

    def __init__(self, number: int, session: LiveSession, channel: Channel) -> None:
        self.session = session
        self.pushing = ThreadPoolExecutor(1, f"stillframe-in-{number}")
        self._number, self._channel = number, channel
        self._room = threading.Semaphore(session.block_frames)
        self._thread = threading.Thread(
            target=self._pass_on, name=f"stillframe-out-{number}", daemon=True
        )

    def start(self) -> None:
        """Pass frames on from now on."""
        self._thread.start()

    def give(self, frames: int) -> None:
        """So many frames were read at the other end."""
        self._room.release(frames)

    def close(self) -> None:
        """Close the session; waits for a block that runs."""
        self.session.close()
        self._room.release()
        self._thread.join()
        self.pushing.shutdown()

    @property
    def counters(self) -> Counters:
        """The session's counters."""
        session = self.session
        memory = tuple(session.memory.items())
        return Counters(session.state, session.paused, session.dropped, session.waiting, memory)

    def _pass_on(self) -> None:
        error: tuple[str, str] | None = None
        reported = -1
        try:
            while True:
                self._room.acquire()
                frame = self.session.get()
                if frame is None:
                    break
                for block in self.session.telemetry.blocks:
                    if reported < block.block <= frame.block:
                        self._channel.send(("block", self._number, block, self.counters))
                reported = frame.block
                self._channel.send(
                    ("frame", self._number, frame._replace(pixels=_NO_PIXELS)), frame.pixels
                )
        except SessionError as failure:
            error = str(failure), failure.trace
        except ChannelClosedError:
            return
        except Exception as failure:  # of this session; its client must not wait for more
            content = f"the session failed with {type(failure).__name__}: {failure}"
            error = content, traceback.format_exc()
        try:
            self._channel.send(("ended", self._number, error))
        except ChannelClosedError:
            return
