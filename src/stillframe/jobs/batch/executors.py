"""Where tasks are done: in this process, one after another; `on_ray` has the other kind.

Knows neither files nor what a task is about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from stillframe.jobs.batch.work import Outcome, Task, Work, attempt, told

__all__ = ["Executor", "InProcess"]


class Executor(Protocol):
    """Workers, each of which does a task at a time.

    Attributes:
        workers: how many there are, at work or not; 0 once none is left.
        free: how many could begin a task now.
    """

    @property
    def workers(self) -> int: ...

    @property
    def free(self) -> int: ...

    def submit(self, task: Task) -> None:
        """Give a task to a free worker."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """What became of tasks since the last call; waits so long for one to end.

        Raises:
            KeyboardInterrupt: it was asked to stop while it did a task itself.
        """
        ...

    def close(self) -> None:
        """Let the workers go; what they are at is given up."""
        ...


class InProcess:
    """One worker, which is this process.

    Args:
        make_work: makes what does a task, once.
        stop: asked by the work now and then.
    """

    def __init__(self, make_work: Callable[[], Work], stop: Callable[[], bool]) -> None:
        self.workers = 1
        self._make_work, self._stop = make_work, stop
        self._work: Work | None = None
        self._task: Task | None = None

    @property
    def free(self) -> int:
        """See `Executor`."""
        return 0 if self._task is not None else self.workers

    def submit(self, task: Task) -> None:
        """See `Executor`."""
        self._task = task

    def wait(self, seconds: float) -> list[Outcome]:
        """See `Executor`."""
        task, self._task = self._task, None
        if task is None:
            return []
        if self._work is None:
            try:
                self._work = self._make_work()
            except Exception as error:
                self.workers = 0
                return [Outcome(task, error=told(error), blame="worker")]
        return [attempt(self._work, task, self._stop)]

    def close(self) -> None:
        """See `Executor`."""
        self._work = None
