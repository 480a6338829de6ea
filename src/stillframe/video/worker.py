"""A thread that does jobs one after another, and that Ctrl-C in another thread cannot break.

Python delivers Ctrl-C to the main thread, between any two of its bytecodes: also between the calls
that take and release a lock, which then stays locked. The queues used here are single C calls.
Knows nothing of what the jobs do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["Worker"]


class Worker:
    """Runs submitted jobs in order.

    Args:
        waiting: how many jobs may be unfinished before `submit` waits.
    """

    def __init__(self, waiting: int) -> None:
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._tickets: SimpleQueue[None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        for _ in range(waiting):
            self._tickets.put(None)
        threading.Thread(target=self._work, name="stillframe-writer", daemon=True).start()

    def submit(self, job: Callable[[], object]) -> None:
        """Have `job`, which must not raise, run after those before it."""
        self._tickets.get()
        self._jobs.put(job)

    def end(self, job: Callable[[], object]) -> None:
        """Run a last job and wait until it is done; a Ctrl-C meanwhile is raised afterwards."""
        self._jobs.put(job)
        self._jobs.put(None)
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                self._ended.get()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._tickets.put(None)
        self._ended.put(None)
