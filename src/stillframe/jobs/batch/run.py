"""The loop over a batch: the costliest file to the first free worker, once more what failed.

Knows neither models nor where workers are.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from stillframe.jobs.batch.executors import Executor
from stillframe.jobs.batch.plan import Failure, Item
from stillframe.jobs.batch.record import Record
from stillframe.jobs.batch.work import Outcome, Task

__all__ = ["BatchProgress", "BatchResult", "run_batch"]

_ATTEMPTS = 2
# how long Ctrl-C may go unheard while workers are busy
_PATIENCE_S = 0.2


class BatchProgress(NamedTuple):
    """How far a batch is.

    Attributes:
        done, failed, total: files; those done before are not counted.
        share: of the expected work that is done, 0 to 1.
        fps: frames a second of all workers so far.
        left: seconds that it will take, None before anybody can know.
        workers: that are left.
    """

    done: int
    failed: int
    total: int
    share: float
    fps: float
    left: float | None
    workers: int


class BatchResult(NamedTuple):
    """What became of a batch.

    Attributes:
        done: files edited.
        failures: files that were not.
        left: how many were not tried to the end: it was interrupted, or there were no workers.
        frames: edited.
        seconds: that it took.
        work_seconds: of all workers together.
        retried: how many attempts were made again.
        interrupted: whether it was.
        worker_errors: why workers could not work, a sentence each.
    """

    done: int
    failures: list[Failure]
    left: int
    frames: int
    seconds: float
    work_seconds: float
    retried: int
    interrupted: bool
    worker_errors: tuple[str, ...]


def run_batch(
    items: list[Item],
    executor: Executor,
    record: Record,
    *,
    split: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[BatchProgress], None] | None = None,
    on_failure: Callable[[Failure], None] | None = None,
) -> BatchResult:
    """Edit files; returns when all are done or have failed twice.

    Args:
        items: the files; the list is emptied.
        executor: the workers.
        record: what becomes of files is written there, one by one.
        split: seconds of a piece of a file that is half as long again; None leaves them whole.
        stop: asked several times a second; true gives up what is under way.
        on_progress: called after every task.
        on_failure: called with every file that has failed for good, and every worker.
    """
    loop = _Loop(items, executor, record, split, on_progress, on_failure)
    interrupted = False
    try:
        while loop.advance():
            if stop():
                interrupted = True
                break
    except KeyboardInterrupt:
        interrupted = True
    return loop.result(interrupted)


class _Pieces:
    """A file in pieces: those that are still to be edited."""

    def __init__(self, pieces: tuple[Any, ...]) -> None:
        self.pieces = pieces
        self.left = len(pieces)


class _Loop:
    """The state of `run_batch`."""

    def __init__(
        self,
        items: list[Item],
        executor: Executor,
        record: Record,
        split: float | None,
        on_progress: Callable[[BatchProgress], None] | None,
        on_failure: Callable[[Failure], None] | None,
    ) -> None:
        self._executor, self._record, self._split = executor, record, split
        self._on_progress, self._on_failure = on_progress, on_failure
        self._total, self._work = len(items), sum(item.cost for item in items) or 1.0
        self._done = self._frames = self._retried = 0
        self._work_done = self._work_seconds = 0.0
        self._failures: list[Failure] = []
        self._worker_errors: dict[str, None] = {}
        self._attempts: dict[tuple[str, str, int], int] = {}
        self._split_files: dict[str, _Pieces] = {}
        self._started = time.perf_counter()
        self._running = 0
        self._order = iter(range(1 << 62))
        # the first of equals goes first, and tasks themselves are never compared
        self._heap = [(-item.cost, next(self._order), self._task(item)) for item in items]
        heapq.heapify(self._heap)
        items.clear()

    def _task(self, item: Item) -> Task:
        is_long = self._split is not None and item.seconds > 1.5 * self._split
        return Task("look" if is_long else "edit", item)

    def _push(self, task: Task, cost: float) -> None:
        heapq.heappush(self._heap, (-cost, next(self._order), task))

    def advance(self) -> bool:
        """Give out tasks and take what became of others; false when there is nothing more to do."""
        while self._heap and self._executor.free:
            task = heapq.heappop(self._heap)[2]
            if task.piece is not None and task.item.name not in self._split_files:
                continue  # another piece has failed
            self._executor.submit(task)
            self._running += 1
        if not (self._heap or self._running) or not self._executor.workers:
            return False
        for outcome in self._executor.wait(_PATIENCE_S):
            self._take(outcome)
            if self._on_progress is not None:
                self._on_progress(self._progress())
        self._record.sync()
        return True

    def _take(self, outcome: Outcome) -> None:
        task = outcome.task
        if task is not None:
            self._running -= 1
        if outcome.blame == "worker" and outcome.facts is None:
            if task is not None:
                # it was not even begun
                self._push(task, task.cost)
            self._worker_failed(outcome.error)
        elif task is not None and outcome.facts is not None:
            self._attempts.pop(_key(task), None)
            self._succeeded(task, dict(outcome.facts))
        elif task is not None:
            self._failed(task, outcome)

    def _worker_failed(self, error: str) -> None:
        self._record.tell("worker failed", error=error)
        if error not in self._worker_errors:
            self._worker_errors[error] = None
            self._tell(Failure("a worker", error))

    def _failed(self, task: Task, outcome: Outcome) -> None:
        key = _key(task)
        tried = self._attempts.pop(key, 0) + 1
        more = {"trace": outcome.trace} if outcome.trace else {}
        self._record.failed(task.item.name, outcome.error, attempt=tried, task=task.kind, **more)
        if tried < _ATTEMPTS and outcome.blame != "options":
            self._attempts[key] = tried
            self._retried += 1
            # behind the others: what is amiss may have passed by then
            self._push(task, 0.0)
            return
        if task.piece is not None and self._split_files.pop(task.item.name, None) is None:
            return
        self._work_done += task.item.cost
        failure = Failure(task.item.label, outcome.error)
        self._failures.append(failure)
        self._tell(failure)

    def _tell(self, failure: Failure) -> None:
        if self._on_failure is not None:
            self._on_failure(failure)

    def _succeeded(self, task: Task, facts: dict[str, Any]) -> None:
        item = task.item
        self._work_seconds += facts.get("seconds", 0.0)
        if task.kind == "look":
            pieces = tuple(facts["pieces"])
            if len(pieces) < 2:
                self._push(Task("edit", item), item.cost)
                return
            self._split_files[item.name] = _Pieces(pieces)
            self._record.tell("split", output=item.name, pieces=len(pieces), cuts=facts["cuts"])
            for piece in pieces:
                part = Task("piece", item, piece)
                self._push(part, part.cost)
            return
        if task.piece is not None:
            self._piece_done(task)
            return
        self._done += 1
        self._frames += facts.get("frames", 0)
        if task.kind == "edit":
            self._work_done += item.cost
        size = facts.pop("bytes", 0)
        self._record.done(item.name, item.fingerprint, size, input=item.source, **facts)

    def _piece_done(self, task: Task) -> None:
        parts = self._split_files.get(task.item.name)
        if parts is None:
            return
        parts.left -= 1
        self._work_done += task.item.cost / len(parts.pieces)
        if not parts.left:
            del self._split_files[task.item.name]
            joined = Task("join", task.item, pieces=parts.pieces)
            self._push(joined, joined.cost)

    def _progress(self) -> BatchProgress:
        spent = time.perf_counter() - self._started
        share = min(1.0, self._work_done / self._work)
        left = spent / share - spent if share else None
        return BatchProgress(
            self._done,
            len(self._failures),
            self._total,
            share,
            self._frames / max(spent, 1e-9),
            left,
            self._executor.workers,
        )

    def result(self, interrupted: bool) -> BatchResult:
        """What became of it."""
        return BatchResult(
            self._done,
            self._failures,
            self._total - self._done - len(self._failures),
            self._frames,
            time.perf_counter() - self._started,
            self._work_seconds,
            self._retried,
            interrupted,
            tuple(self._worker_errors),
        )


def _key(task: Task) -> tuple[str, str, int]:
    return task.item.name, task.kind, -1 if task.piece is None else task.piece.number
