"""The processes of one stream, and what they send each other.

The first one leads: it tells the others what to do, and they hear it. Tensors move as bytes, so
that nothing is rounded on the way: through NCCL between CUDA cards, through gloo on CPUs. Messages
go through gloo either way, so that no process waits for its card to learn what comes next.

Not known here: models, tokens, or what a message means.
"""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from stillframe.errors import WorkerError

__all__ = ["Group", "join"]

# a source may be silent for days; whoever has died is noticed by its connection
_PATIENCE = timedelta(days=7)
# of a message in one piece: most are shorter
_FRAME = 4096


def join(device: torch.device, rank: int, size: int, store: Path | None = None) -> Group:
    """Meet the other processes; waits until all are there.

    Args:
        device: of this process's model.
        rank: of this process, from 0, which leads.
        size: how many there are.
        store: a new file where they find each other; None where torchrun's environment says it.

    Raises:
        WorkerError: they cannot be reached.
    """
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    found = None if store is None else _file_store(str(store), size)
    with _one_sentence(size):
        dist.init_process_group(backend, store=found, rank=rank, world_size=size, timeout=_PATIENCE)
    return Group(device, rank, size)


def _file_store(path: str, size: int) -> Any:
    # a socket would be open to others
    store: Any = dist.FileStore  # type: ignore[attr-defined]
    return store(path, size)


class _Graphs(Protocol):
    """Can be dropped."""

    def forget(self) -> None:
        """Drop all graphs."""


class Group:
    """The processes of one stream.

    Args:
        device: where this process's tensors lie.
        rank: of this process, from 0, which leads.
        size: how many there are.
    """

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        self.device, self.rank, self.size = device, rank, size
        self._graphs: weakref.WeakSet[_Graphs] = weakref.WeakSet()

    def drop_first(self, graphs: _Graphs) -> None:
        """Have CUDA graphs with exchanges in them dropped before the group is left, if they are
        still there then: NCCL does not let a connection go while there are graphs that use it."""
        self._graphs.add(graphs)

    def close(self, *, cut: bool = False) -> None:
        """Leave; ``cut`` ends what still waits for others, which may be gone."""
        for graphs in self._graphs:
            graphs.forget()
        self._graphs.clear()
        if not dist.is_initialized():
            return
        if cut:
            # what torch has for this is not public yet; closing waits for what will never come
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()

    def tell(self, message: Any) -> None:
        """Send a message from the first process to all others, which `hear` it.

        Args:
            message: can be pickled. Tensors in it lie on the device, or on the CPU, where they then
                lie in the others too.
        """
        tensors: list[Tensor] = []
        content = io.BytesIO()
        _Pickler(content, tensors).dump(message)
        written = content.getvalue()
        frame = bytearray(_FRAME)
        frame[:8] = len(written).to_bytes(8, "little")
        head = written[: _FRAME - 8]
        frame[8 : 8 + len(head)] = head
        self._broadcast(torch.frombuffer(frame, dtype=torch.uint8))
        if len(written) > len(head):
            self._broadcast(torch.frombuffer(bytearray(written[len(head) :]), dtype=torch.uint8))
        self._broadcast_all(tensors)

    def hear(self) -> Any:
        """The next message that the first process tells."""
        frame = torch.empty(_FRAME, dtype=torch.uint8)
        self._broadcast(frame)
        content = frame.numpy().tobytes()
        length = int.from_bytes(content[:8], "little")
        written = content[8 : 8 + length]
        if length > len(written):
            rest = torch.empty(length - len(written), dtype=torch.uint8)
            self._broadcast(rest)
            written += rest.numpy().tobytes()
        tensors: list[Tensor] = []
        message = _Unpickler(io.BytesIO(written), tensors, self.device).load()
        self._broadcast_all(tensors)
        return message

    def scatter(self, parts: Tensor | None, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        """This process's part of what the first one has.

        Args:
            parts: (processes, *size) in the first one, None in the others.
            size, dtype: of a part.
        """
        own = torch.empty(tuple(size), dtype=dtype, device=self.device)
        given = None if parts is None else [_bytes(part) for part in parts.contiguous()]
        with _one_sentence(self.size):
            dist.scatter(_bytes(own), given, src=0)
        return own

    def gather(self, own: Tensor) -> Tensor | None:
        """All processes' parts, (processes, ...), in the first one; None in the others."""
        own = own.contiguous()
        parts = None
        if self.rank == 0:
            parts = torch.empty((self.size, *own.shape), dtype=own.dtype, device=own.device)
        with _one_sentence(self.size):
            dist.gather(_bytes(own), None if parts is None else [*map(_bytes, parts)], dst=0)
        return parts

    def exchange(self, x: Tensor) -> Tensor:
        """Give each process its row of x (processes, ...); what all of them gave, in their order,
        of the same shape."""
        x = x.contiguous()
        given = torch.empty_like(x)
        with _one_sentence(self.size):
            dist.all_to_all_single(_bytes(given), _bytes(x))
        return given

    def _broadcast_all(self, tensors: list[Tensor]) -> None:
        # with nothing in it a tensor has nothing to send, and not every backend bears it
        for x in tensors:
            if x.numel():
                self._broadcast(_bytes(x))

    def _broadcast(self, content: Tensor) -> None:
        with _one_sentence(self.size):
            dist.broadcast(content, 0)


def _bytes(x: Tensor) -> Tensor:
    """A contiguous tensor's content; written to, it is the tensor that changes."""
    return x.view(-1).view(torch.uint8)


@contextmanager
def _one_sentence(size: int) -> Iterator[None]:
    """What a connection fails with as a `WorkerError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise WorkerError(f"one of the {size} processes of the stream has gone") from error


class _Pickler(pickle.Pickler):
    """Leaves tensors out, which are sent by themselves."""

    def __init__(self, content: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(content, protocol=5)
        self._tensors = tensors

    def persistent_id(self, given: Any) -> Any:
        """See pickle."""
        if not isinstance(given, Tensor):
            return None
        self._tensors.append(given.contiguous())
        # NCCL and gloo count their messages apart: both ends have to take the same one
        return tuple(given.shape), given.dtype, given.device.type == "cpu"


class _Unpickler(pickle.Unpickler):
    """Makes room for the tensors that were left out."""

    def __init__(self, content: io.BytesIO, tensors: list[Tensor], device: torch.device) -> None:
        super().__init__(content)
        self._tensors, self._device = tensors, device

    def persistent_load(self, key: Any) -> Tensor:
        """See pickle."""
        shape, dtype, on_cpu = key
        device = torch.device("cpu") if on_cpu else self._device
        self._tensors.append(torch.empty(shape, dtype=dtype, device=device))
        return self._tensors[-1]
