"""A thread that does jobs one after another, and that Ctrl-C in another thread cannot break.

Python delivers Ctrl-C to the main thread, between any two of its bytecodes: also between the calls
that take and release a lock, which then stays locked. The queues used here are single C calls.
Where a job may wait for somebody else for ever, a caller can say when to lose patience. Knows
nothing of what the jobs do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

__all__ = ["Worker"]

_LOOK_AGAIN_S = 0.2
_PATIENCE_S = 2.0


class Worker:
    """Runs submitted jobs in order.

    Args:
        waiting: how many jobs may be unfinished before `submit` waits.
        stop: asked while `submit` and `end` wait; once true they wait for 2 seconds more and then
            give up on the jobs, whose thread stays behind. None: they wait for ever.
    """

    def __init__(self, waiting: int, stop: Callable[[], bool] | None = None) -> None:
        self._stop = stop
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._tickets: SimpleQueue[None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        for _ in range(waiting):
            self._tickets.put(None)
        threading.Thread(target=self._work, name="stillframe-writer", daemon=True).start()

    def submit(self, job: Callable[[], object]) -> None:
        """Have `job`, which must not raise, run after those before it.

        Raises:
            TimeoutError: patience was lost; the jobs before it may never end.
        """
        self._await(self._tickets)
        self._jobs.put(job)

    def end(self, job: Callable[[], object]) -> None:
        """Run a last job and wait until it is done; a Ctrl-C meanwhile is raised afterwards.

        Raises:
            TimeoutError: patience was lost; the job may never end.
        """
        self._jobs.put(job)
        self._jobs.put(None)
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                self._await(self._ended)
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _await(self, queue: SimpleQueue[None]) -> None:
        if self._stop is None:
            queue.get()
            return
        deadline: float | None = None
        while True:
            try:
                queue.get(timeout=_LOOK_AGAIN_S)
                return
            except Empty:
                if deadline is None and self._stop():
                    deadline = time.monotonic() + _PATIENCE_S
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"nothing was done for {_PATIENCE_S:g} s") from None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._tickets.put(None)
        self._ended.put(None)
