"""Messages between processes of one stream, whose tensors lie on a card, on the CPU, or are empty.

Between cards NCCL carries tensors and gloo carries messages, and each counts what it has carried:
both ends of a tensor have to take the same one. Here a device that no backend serves stands for
the card.
"""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stillframe.backbones.parallel.group import Group

SENT = torch.arange(6.0).view(2, 3)


def _join(rank: int, store: Path) -> Group:
    found: Any = dist.FileStore(str(store), 2)  # type: ignore[attr-defined]
    dist.init_process_group(
        "gloo", store=found, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    return Group(torch.device("meta"), rank, 2)


def _hear(store: Path, answers: Connection[Any, Any]) -> None:
    group = _join(1, store)
    first, second = group.hear(), group.hear()
    answers.send((first["on the CPU"].tolist(), str(first["empty"].device), second))


def test_what_lies_on_the_cpu_is_heard_there_whatever_the_group_s_device(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    other = context.Process(target=_hear, args=(tmp_path / "store", its), daemon=True)
    other.start()
    its.close()
    group = _join(0, tmp_path / "store")
    try:
        empty = torch.empty(0, device="meta")
        group.tell({"on the CPU": SENT.t(), "empty": empty})
        group.tell("the next one")
        assert mine.poll(60)
        heard, device, after = mine.recv()
    finally:
        group.close(cut=True)
        other.kill()
        other.join()
    assert heard == SENT.t().tolist()
    assert (device, after) == ("meta", "the next one")


def test_what_is_captured_is_dropped_before_the_connection(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Captured:
        def forget(self) -> None:
            seen.append(dist.is_initialized())

    kept, gone = Captured(), Captured()
    found: Any = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=found, rank=0, world_size=1)
    group = Group(torch.device("cpu"), 0, 1)
    group.drop_first(kept)
    group.drop_first(gone)
    del gone  # with its stream: a group keeps nobody's graphs
    group.close()
    group.close()
    assert seen == [True]
