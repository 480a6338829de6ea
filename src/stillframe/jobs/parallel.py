"""Processes that run one stream together on this machine: started, watched and ended.

This process leads; the others follow it, one to a card (``backbones.parallel``). They are spawned,
not forked, and end with this one, however that ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import torch

from stillframe.backbones.parallel.denoiser import check_heads
from stillframe.backbones.parallel.follower import follow
from stillframe.backbones.parallel.group import Group, join
from stillframe.backbones.parallel.leader import ParallelDenoiser
from stillframe.errors import StillframeError, WorkerError
from stillframe.loading.host import not_interrupted
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["Followers", "Load", "lead"]

#: Makes the transformer on a device in a process that follows; can be pickled.
Load = Callable[[str], Any]

# for a process that has gone to be seen as gone, and for one that has been told to stop to end
_SEEN_SECONDS, _STOP_SECONDS = 5.0, 10.0
_LOOK_SECONDS = 0.1
# where local processes meet, unless the environment says otherwise
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@contextlib.contextmanager
def lead(pipe: CausalWanPipeline, group: Group) -> Iterator[None]:
    """Within the ``with`` block the pipeline's streams are run by all processes, which then end.

    Args:
        pipe: the model, in the process that leads.
        group: the processes, of which the others are at `follow`.

    Raises:
        ModelError: the heads of attention cannot be divided among the processes.
        WorkerError: a process has gone.
    """
    alone, denoiser = pipe.denoiser, ParallelDenoiser(pipe.transformer, group)
    pipe.run_by(denoiser)
    try:
        yield
    finally:
        pipe.run_by(alone)
    # what was asked for is done, whoever has gone since
    with contextlib.suppress(WorkerError):
        denoiser.stop()


class Followers:
    """The processes that follow this one. Use as a context manager, and `lead` within it.

    Args:
        devices: of all processes, this one's first.
        load: makes the transformer, with the same weights as here.
        on_gone: called from a thread, with a sentence, when one of them has gone that should not
            have, once all of them had been there.

    Attributes:
        pids: of the processes, once they were started.
    """

    def __init__(
        self,
        devices: Sequence[str],
        load: Load,
        on_gone: Callable[[str], None] | None = None,
    ) -> None:
        self._devices, self._load, self._on_gone = devices, load, on_gone
        self._processes: list[Any] = []
        self._connections: list[Connection[Any, Any]] = []
        self._loaded: set[int] = set()
        self._group: Group | None = None
        self._ended, self._over = threading.Event(), threading.Event()
        self._reason: str | None = None
        self._stack = contextlib.ExitStack()

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> Followers:
        """Start them."""
        self._stack.enter_context(_loopback())
        folder = self._stack.enter_context(TemporaryDirectory(prefix="stillframe-"))
        self._store = Path(folder) / "processes"
        context = multiprocessing.get_context("spawn")
        try:
            for rank, device in enumerate(self._devices[1:], 1):
                mine, its = context.Pipe(duplex=False)
                member = rank, len(self._devices), device
                process = context.Process(
                    target=_follow, args=(its, *member, self._store, self._load), daemon=True
                )
                with not_interrupted():
                    process.start()
                its.close()
                self._processes.append(process)
                self._connections.append(mine)
        except BaseException:
            self._end()
            raise
        return self

    @contextlib.contextmanager
    def leading(self, pipe: CausalWanPipeline) -> Iterator[None]:
        """`lead`, once all of them have loaded the model.

        Raises:
            ModelError: see `lead`.
            WorkerError: a process could not load the model, or has gone.
        """
        check_heads(pipe.denoiser.heads, len(self._devices))
        while True:
            reason = self._gone()
            if reason is not None:
                raise WorkerError(reason)
            if len(self._loaded) == len(self._processes):
                break
            wait([*self._connections, *(x.sentinel for x in self._processes)], _LOOK_SECONDS)
        device = torch.device(self._devices[0])
        self._group = join(device, 0, len(self._devices), self._store)
        if device.type == "cuda" or self._on_gone is not None:
            threading.Thread(target=self._watch, name="stillframe-watch", daemon=True).start()
        with lead(pipe, self._group):
            yield
            self._over.set()
        self._ended.set()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them; an error that comes of one that has gone says so."""
        known = isinstance(error, WorkerError) or (
            isinstance(error, RuntimeError) and self._reason is not None
        )
        reason = self._await_reason() if known else None
        self._end()
        if reason is not None:
            raise WorkerError(reason) from error

    def _await_reason(self) -> str | None:
        """Why one of them has gone; None if none has."""
        end = time.monotonic() + _SEEN_SECONDS
        reason = self._gone()
        while reason is None and time.monotonic() < end:
            time.sleep(0.02)
            reason = self._gone()
        return reason

    def _gone(self) -> str | None:
        """Why one of them has gone, as it says itself if it does; None if none has."""
        found = None
        for rank, (process, connection) in enumerate(
            zip(self._processes, self._connections, strict=True), 1
        ):
            # asked before it is listened to, so that nothing is missed that it says at its end
            ended = not process.is_alive()
            with contextlib.suppress(EOFError, OSError):
                while connection.poll():
                    said = connection.recv()
                    if said is not None:
                        self._reason = str(said)
                    self._loaded.add(rank)
            if ended:
                found = f"process {rank} of {len(self._devices)} {_exit_reason(process.exitcode)}"
        return self._reason or found

    def _watch(self) -> None:
        """End what waits on a card for a process that has gone, and tell; a thread's work."""
        wait([process.sentinel for process in self._processes])
        if self._over.is_set() or self._ended.is_set() or self._group is None:
            return
        self._reason = self._gone()
        if self._on_gone is not None:
            self._on_gone(self._reason or "a process has gone")
        if self._group.device.type == "cuda":
            self._group.close(cut=True)

    def _end(self) -> None:
        if not self._ended.is_set():
            for process in self._processes:
                process.kill()
        self._ended.set()
        for process in self._processes:
            process.join(_STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes.clear()
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self._group is not None:
            self._group.close(cut=True)
        self._stack.close()


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Have processes of this machine meet where no other machine can reach them."""
    names = {name for _, name in socket.if_nameindex()}
    own = next((name for name in ("lo", "lo0") if name in names), None)
    mine = [name for name in _INTERFACES if own is not None and name not in os.environ]
    os.environ.update(dict.fromkeys(mine, own or ""))
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


def _follow(
    connection: Connection[Any, Any], rank: int, size: int, device: str, store: Path, load: Load
) -> None:  # pragma: no cover - runs in a process of its own
    """Load the model, say so, and follow."""
    # Ctrl-C reaches every process of a terminal; when to end is for the one that leads to say
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="stillframe-parent", daemon=True).start()
    try:
        transformer = load(device)
        connection.send(None)
        group = join(torch.device(device), rank, size, store)
        follow(transformer, group)
    except WorkerError:
        # it is another one that has gone, and the one that leads, if it is there, knows
        os._exit(1)
    except Exception as error:
        connection.send(_told(error, f"process {rank} of {size}", device))
        # nobody is there to leave the group with
        os._exit(1)
    # what leaves a group politely waits for the others, as does taking an interpreter with torch
    # apart: there is nothing more to say, and the one that leads waits for this process to end
    os._exit(0)


def _told(error: Exception, process: str, device: str) -> str:
    """What a process that follows says of its end, in a sentence."""
    if isinstance(error, StillframeError | ValueError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"{process} has not enough memory on {device}"
    return f"{process} failed with {type(error).__name__}: {' '.join(str(error).split())}"


def _end_with_parent() -> None:  # pragma: no cover - runs in a process of its own
    """End this process when the one that leads has gone, whatever it waits for."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
