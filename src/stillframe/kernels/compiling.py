"""Kernels compiled ahead of need, by all cores, into Triton's cache on disk.

A process of its own finds out which kernels a model is going to launch, and compiles them beside
whatever else happens: see `Ahead`, which starts it, and `compile_all`, which it calls. A launch
that needs a kernel which is under way waits for that one; one that is not known of compiles its
kernel itself, as ever. It knows neither models nor video.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stillframe.kernels.rehearsal import Card, Launch

try:
    import triton
except ImportError:  # no triton, no GPU kernels: nothing to compile
    triton = None

__all__ = ["Ahead", "Compiled", "compile_all", "compile_launch", "cores", "serve"]


#: Seconds that a launch waits for its kernel at most; one takes four on a slow processor.
_PATIENCE = 60


class Compiled(NamedTuple):
    """A kernel that has been compiled.

    Attributes:
        launch: what for.
        seconds: of a processor that it took, ptxas included.
        cached: whether it was on disk.
        place: name of its folder in the cache.
    """

    launch: Launch
    seconds: float
    cached: bool
    place: str


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compile_launch(launch: Launch, card: Card) -> Compiled:
    """Compile a kernel into Triton's cache, on any machine: no driver is asked."""
    from triton.compiler import ASTSource

    module, _, name = launch.kernel.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    data = json.loads(launch.data)
    constants, attributes = (
        dict(zip(map(tuple, data[f"{what}_keys"]), data[f"{what}_vals"], strict=True))
        for what in ("constant", "attrs")
    )
    signature = {k: _tuples(v) for k, v in data["signature"].items()}
    options = {k: _tuples(v) for k, v in data["options"].items()}
    cached: list[bool] = []

    def listen(*, cache_hit: bool, **_: Any) -> None:
        cached.append(cache_hit)

    triton.knobs.compilation.listener = listen
    before = sum(os.times()[:4])
    source = ASTSource(function, signature, constants, attributes)
    made = triton.compile(source, target=card.target, options=options)
    return Compiled(launch, sum(os.times()[:4]) - before, cached[0], made.hash)


def _tuples(x: Any) -> Any:
    """JSON has lists in the place of tuples."""
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def compile_all(
    find: Callable[[Callable[[Launch], None]], None],
    card: Card,
    tell: Callable[[str, Launch], None],
    processes: int,
) -> list[Compiled]:
    """Compile what is found as it is found, the processes forked from this one.

    Args:
        find: calls what it is given with each launch, those needed first coming first.
        card: to compile for.
        tell: called with "found" and "done" for each, from any thread.
        processes: that compile at the same time.

    Returns:
        what was compiled.

    Raises:
        Exception: of the first that could not be compiled, once the others are.
    """
    made: list[Future[Compiled]] = []
    forked = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=forked) as pool:
        pool.submit(os.getpid).result()  # all are forked now, before anything is rehearsed

        def note(launch: Launch) -> None:
            tell("found", launch)
            future = pool.submit(compile_launch, launch, card)
            future.add_done_callback(lambda _: tell("done", launch))
            made.append(future)

        find(note)
    return [future.result() for future in made]


class Ahead:
    """A process that compiles ahead, beside this one; see the module.

    Args:
        module: of ours, which is run with the task on its standard input. It writes a line of JSON
            for each kernel that is "found" or "done": the word, and the first two of its `Launch`.
        task: what it is to compile for, as plain values.

    Attributes:
        latest: the one that was started last in this process, if any.
    """

    latest: Ahead | None = None

    def __init__(self, module: str, task: dict[str, Any]) -> None:
        self._changed = threading.Condition()
        self._found, self._done = set[tuple[str, str]](), set[tuple[str, str]]()
        self._ended = False
        self._marker = _marker(module, task)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()  # and stays open: its end ends the process
        self._before = triton.knobs.runtime.jit_cache_hook
        triton.knobs.runtime.jit_cache_hook = self._hook
        threading.Thread(target=self._read, daemon=True, name="compiling ahead").start()

    @classmethod
    def start(cls, module: str, task: dict[str, Any]) -> None:
        """Compile ahead, unless everything that the task takes was compiled before, or another
        task is under way."""
        latest = cls.latest
        busy = latest is not None and not latest.ended
        if triton is not None and not busy and not _marker(module, task).exists():
            cls.latest = cls(module, task)

    @property
    def ended(self) -> bool:
        """Whether nothing more is going to be compiled ahead."""
        return self._ended

    def progress(self) -> Iterator[tuple[int, int]]:
        """How many kernels are compiled and how many are known of, as it changes, to the end."""
        while True:
            with self._changed:
                state, ended = self._counts, self._ended
            yield state
            if ended:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._counts != state)  # noqa: B023

    @property
    def _counts(self) -> tuple[int, int]:
        return len(self._done), len(self._found)

    def _read(self) -> None:
        """Follow what the process says; what it does not finish is nobody's to wait for."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, kernel, key = json.loads(line)
            with self._changed:
                (self._found if word == "found" else self._done).add((kernel, key))
                self._changed.notify_all()
        whole = self._process.wait() == 0
        if whole:
            self._marker.parent.mkdir(parents=True, exist_ok=True)
            self._marker.touch()
        if triton.knobs.runtime.jit_cache_hook == self._hook:
            triton.knobs.runtime.jit_cache_hook = self._before
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _hook(self, **given: Any) -> Any:
        """Triton's, before it compiles a kernel or finds it on disk: wait while it is under way."""
        function = given["fn"]
        launch = f"{function.module}.{function.name}", given["compile"]["key"]
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or launch not in self._found or launch in self._done,
                _PATIENCE,
            )
        return self._before(**given) if self._before is not None else False


def _marker(module: str, task: dict[str, Any]) -> Path:
    """A file in Triton's cache that is there once all of a task has been compiled."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    versions = triton.__version__, torch.__version__, module, json.dumps(task, sort_keys=True)
    digest = hashlib.sha256(repr(versions).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return Path(triton.knobs.cache.dir) / f"stillframe-{digest.hexdigest()[:32]}"


def serve(find: Callable[[dict[str, Any], Card, Callable[[Launch], None]], None]) -> None:
    """What the module of an `Ahead` does: read its task, compile what is found for it, and tell.

    Args:
        find: calls what it is given with each launch of a task on a card.
    """
    task = json.loads(sys.stdin.readline())
    capability, processors, memory = task["card"]
    card, lock = Card(tuple(capability), processors, memory), threading.Lock()

    def tell(word: str, launch: Launch) -> None:
        with lock:
            sys.stdout.write(json.dumps([word, launch.kernel, launch.key]) + "\n")
            sys.stdout.flush()

    def found(note: Callable[[Launch], None]) -> None:
        threading.Thread(target=_end_with_input, daemon=True).start()
        find(task, card, note)

    compile_all(found, card, tell, cores())


def _end_with_input() -> None:
    """End this process and those that it forked once whoever started it is gone."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)
