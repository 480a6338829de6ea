"""The worker that all sessions share, and another one if it fails.

It is a thread of the server's process: what kills the process ends the server. It knows neither
sockets nor sessions.
"""

from __future__ import annotations

import logging
import threading

from stillframe.live import Worker

__all__ = ["Keeper"]

_log = logging.getLogger(__name__)


class Keeper:
    """Runs a worker on a thread from `start` to `stop`.

    If the worker fails, its sessions have ended with a message (`Worker.run`) and the next one
    takes its place.
    """

    def __init__(self) -> None:
        self._worker = Worker()
        self._lock = threading.Lock()
        self._stopped = False
        self._failures = 0
        self._thread = threading.Thread(target=self._keep, name="stillframe-worker", daemon=True)

    @property
    def worker(self) -> Worker:
        """The one that serves now."""
        with self._lock:
            return self._worker

    @property
    def failures(self) -> int:
        """How many workers have failed."""
        return self._failures

    def start(self) -> None:
        """Serve from now on; once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the block that runs; sessions that are left fail."""
        with self._lock:
            self._stopped = True
            worker = self._worker
        worker.stop()
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
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
