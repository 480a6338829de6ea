"""Workers of a Ray cluster: actors, each with a model of its own that stays warm.

Ray is an extra (``cluster``), and imported where workers are asked for. Whoever reaches a cluster's
ports can run code on it: see docs/scale.md.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import secrets
import sys
from collections.abc import Callable, Iterator
from typing import Any

from stillframe.jobs.batch.executors import Executor
from stillframe.jobs.batch.work import Outcome, Task, Work, attempt, told

__all__ = ["RayWorkers", "on_ray"]

# deaths in a row, without a task done between them, after which no other takes a worker's place
_MOST_DEATHS = 3


class _Actor:
    """A worker: makes its work when it begins, and does a task at a time."""

    def __init__(self, make_work: Callable[[], Work]) -> None:
        self._make_work = make_work
        self._work: Work | None = None

    def ready(self) -> str:
        """Where it is."""
        return platform.node()

    def run(self, task: Task) -> Outcome:
        """Do a task."""
        if self._work is None:
            try:
                self._work = self._make_work()
            except Exception as error:
                return Outcome(task, error=told(error), blame="worker")
        return attempt(self._work, task, _never)


def _never() -> bool:
    return False


class _Slot:
    """A worker's place: an actor, and another one where that died."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self.task: Task | None = None
        self.deaths = 0
        self.start()

    def start(self) -> None:
        """Ask for an actor; it is there once `pending` is."""
        self.task = None
        self.actor = self._start()
        self.pending = self.actor.ready.remote()
        self.is_ready = False


class RayWorkers:
    """Actors of a cluster that this process is connected to.

    Args:
        ray: the module.
        make_work: makes what does a task; must be picklable.
        count: of workers.
        options: what each needs, as Ray's actors take it: ``num_cpus``, ``num_gpus``.
    """

    def __init__(
        self, ray: Any, make_work: Callable[[], Work], count: int, options: dict[str, Any]
    ) -> None:
        self._ray = ray
        kind = ray.remote(max_restarts=0, max_task_retries=0)(_Actor).options(**options)
        self._slots = [_Slot(lambda: kind.remote(make_work)) for _ in range(count)]

    @property
    def workers(self) -> int:
        """See `Executor`."""
        return len(self._slots)

    @property
    def free(self) -> int:
        """See `Executor`."""
        return sum(slot.is_ready and slot.task is None for slot in self._slots)

    def submit(self, task: Task) -> None:
        """See `Executor`."""
        slot = next(slot for slot in self._slots if slot.is_ready and slot.task is None)
        slot.task = task
        slot.pending = slot.actor.run.remote(task)

    def wait(self, seconds: float) -> list[Outcome]:
        """See `Executor`."""
        waiting = {s.pending: s for s in self._slots if s.task is not None or not s.is_ready}
        if not waiting:
            return []
        done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=seconds)
        if done and len(waiting) > 1:
            done, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        found = [self._collect(waiting[each]) for each in done]
        return [outcome for outcome in found if outcome is not None]

    def _collect(self, slot: _Slot) -> Outcome | None:
        """What came from a worker; None if it has only begun."""
        task = slot.task
        try:
            answer = self._ray.get(slot.pending)
        except self._ray.exceptions.RayError as error:
            return self._died(slot, task, error)
        if task is None:
            slot.is_ready = True
            return None
        slot.task = None
        outcome: Outcome = answer
        if outcome.blame == "worker" and outcome.facts is None:
            self._slots.remove(slot)
        elif outcome.facts is not None:
            slot.deaths = 0
        return outcome

    def _died(self, slot: _Slot, task: Task | None, error: Exception) -> Outcome | None:
        """Another worker in the place of one that died, unless that happens again and again."""
        slot.deaths += 1
        died = isinstance(error, self._ray.exceptions.RayActorError)
        if not died and task is not None:
            # it lives, and what it said could not be read
            slot.task = None
            return Outcome(task, error=told(error))
        if slot.deaths < _MOST_DEATHS:
            slot.start()
        else:
            self._slots.remove(slot)
        if task is not None:
            return Outcome(task, error="the worker died over it", blame="died")
        if slot in self._slots:
            return None
        # what was raised in it comes last, behind a trace
        reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
        return Outcome(None, error=f"it died {slot.deaths} times: {reason}", blame="worker")

    def close(self) -> None:
        """See `Executor`."""
        for slot in self._slots:
            with contextlib.suppress(Exception):
                self._ray.kill(slot.actor)
        self._slots.clear()


@contextlib.contextmanager
def on_ray(
    make_work: Callable[[], Work], workers: int | None, address: str | None, device: str
) -> Iterator[Executor]:
    """Workers on a cluster, or on one of this machine's own that begins and ends with them.

    Args:
        make_work: makes what does a task; must be picklable.
        workers: how many; None for one a GPU, or one a machine where there are none.
        address: of a cluster; None for one on this machine.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: Ray is not installed, the cluster cannot be reached, or has not as many GPUs.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"a worker's device is auto, cpu or cuda, and Ray says which, got {device}"
        )
    with contextlib.ExitStack() as stack:
        ray = _connected(address)
        stack.callback(ray.shutdown)
        count, options = _shares(ray, workers, address, device)
        executor = stack.enter_context(
            contextlib.closing(RayWorkers(ray, make_work, count, options))
        )
        yield executor


def _set_environment(address: str | None) -> None:
    """Set what Ray reads once a process, unless the user has; it stays for clusters to come."""
    # nothing is sent to Ray's makers
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # what versions to come will do; without it there is a warning
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # it listens on the network, and runs what it is sent by whoever has the token
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _connected(address: str | None) -> Any:
    """Ray's module, connected to a cluster.

    Raises:
        ValueError: it is not installed, or the cluster cannot be reached.
    """
    _set_environment(address)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError(
            f"several workers need {error.name}: pip install 'stillframe[cluster]'"
        ) from error
    own = {"include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(logging_level="ERROR", log_to_driver=False, **own)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        place = "on this machine" if address is None else f"at {address}"
        raise ValueError(f"there is no Ray {place}: {reason}") from error
    return ray


def _shares(
    ray: Any, workers: int | None, address: str | None, device: str
) -> tuple[int, dict[str, Any]]:
    """How many workers there are to be, and what each gets.

    Raises:
        ValueError: this machine has not as many GPUs.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    on_gpus = device != "cpu" and gpus > 0
    count = workers or (gpus if on_gpus else len(machines))
    if address is None and on_gpus and count > gpus:
        raise ValueError(f"{count} workers need {count} GPUs, and this machine has {gpus}")
    cores = min(machine.get("CPU", 1) for machine in machines)
    share = cores / math.ceil(count / max(1, len(machines)))
    # Ray has libraries use as many threads
    whole = math.floor(share) if share >= 1 else share
    return count, {"num_cpus": whole, "num_gpus": 1 if on_gpus else 0}
