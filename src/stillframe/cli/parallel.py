"""One stream on several cards: ``--parallel N``, and commands that torchrun starts.

Under torchrun every process runs the same command. The first one does all that it says; the others
only follow it, whatever it is: they read, write and print nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from stillframe.cli.downloads import fetch_shown
from stillframe.cli.options import load
from stillframe.cli.screen import REFUSED
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.methods import Method
    from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["PARALLEL", "loaded", "only_follow", "processes"]

PARALLEL = {
    "parallel": Option(
        "int",
        "Run one stream on so many CUDA cards of this machine; with --device cpu, in so many "
        "processes.",
        metavar="N",
        least=1,
        most=64,
        group="Model and device",
    )
}

# what the processes that follow load the model by
_LOADING = (
    "model", "height", "width", "dtype", "threads", "vae", "lora", "attention", "offload", "fit",
    "store", "cache", "motion",
)  # fmt: skip


class _Place(NamedTuple):
    """Of a process among those that torchrun has started."""

    rank: int
    size: int
    local: int

    def device(self, name: str) -> str:
        """The device of this process; ``name`` as it was given for all of them."""
        from stillframe.loading.load import pick_device

        kind = pick_device(name)
        return f"cuda:{self.local}" if kind.type == "cuda" and kind.index is None else str(kind)


def _place() -> _Place | None:
    """None where torchrun has started no process but this one, or not this one."""
    try:
        rank, size, local = (int(os.environ[x]) for x in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError):
        return None
    return _Place(rank, size, local) if size > 1 else None


def processes(given: Mapping[str, Any]) -> int:
    """How many shall run a stream together: torchrun's, or as many as were asked for."""
    place = _place()
    return (given["parallel"] or 1) if place is None else place.size


def only_follow(given: Mapping[str, Any]) -> bool:
    """Follow to the end, if this is one of torchrun's processes that shall; false if not.

    Raises:
        StillframeError, ValueError: of this process alone.
    """
    place = _place()
    if place is None or place.rank == 0:
        return False
    from stillframe.backbones.parallel.follower import follow
    from stillframe.backbones.parallel.group import join
    from stillframe.errors import WorkerError

    device = place.device(given["device"])
    try:
        import torch

        group = join(torch.device(device), place.rank, place.size)
        group.hear()  # all files are there
        follow(_transformer(_for_follower(given), device), group)
        group.close()
    except WorkerError as error:
        # the one that leads says why, if it can
        raise typer.Exit(REFUSED) from error
    return True


@contextmanager
def loaded(
    given: Mapping[str, Any],
    method: Method | None = None,
    on_gone: Callable[[str], None] | None = None,
    **task: Any,
) -> Iterator[CausalWanPipeline]:
    """The model, on as many cards as were asked for; see `load` for ``given`` and ``task``.

    Args:
        given: has the values of `PARALLEL`, too.
        method: that it shall run, if that is known.
        on_gone: see `Followers`.
        task: what memory is planned for.

    Raises:
        ModelError: see `load`; or its heads of attention cannot be divided among the cards.
        WorkerError: a process has gone.
        ValueError: an option is out of range, or there are not so many cards.
    """
    place, count = _place(), processes(given)
    if count == 1:
        yield load(given, **task)
        return
    _check_method(method, count)
    _fetch(given)
    if place is None:
        devices = _devices(given.get("device", "auto"), count)
        with _started(given, devices, task, on_gone) as pipe:
            yield pipe
        return
    if given["parallel"] is not None:
        raise ValueError(
            f"--parallel {given['parallel']} starts processes itself: leave it out under torchrun, "
            f"which has started {place.size}"
        )
    with _under_torchrun(given, place, task) as pipe:
        yield pipe


def _check_method(method: Method | None, processes: int) -> None:
    """Raise a ValueError if processes cannot run a method together."""
    from stillframe.methods.merging import TokenMerging

    if isinstance(method, TokenMerging):
        raise ValueError(
            f"method {method.name!r} merges tokens, which cannot be done by {processes} processes"
        )


def _fetch(given: Mapping[str, Any]) -> None:
    """Have the model's files on disk before several processes look for them."""
    from stillframe.loading.load import missing_files

    missing = missing_files(given["model"], given.get("vae"))
    if missing:
        fetch_shown(missing)


def _devices(name: str, count: int) -> list[str]:
    """Those of the processes.

    Raises:
        ValueError: there are not so many.
    """
    import torch

    from stillframe.loading.load import pick_device

    device = pick_device(name)
    if device.type != "cuda":
        return [str(device)] * count
    if device.index is not None:
        raise ValueError(
            f"--device {name} is one card: --parallel {count} takes the first {count}, "
            f"--device cuda"
        )
    cards = torch.cuda.device_count()
    if count > cards:
        raise ValueError(f"--parallel {count} needs {count} CUDA cards: torch sees {cards}")
    return [f"cuda:{number}" for number in range(count)]


@contextmanager
def _started(
    given: Mapping[str, Any],
    devices: list[str],
    task: dict[str, Any],
    on_gone: Callable[[str], None] | None,
) -> Iterator[CausalWanPipeline]:
    from stillframe.jobs.parallel import Followers

    if devices[0] == "cpu" and given.get("threads") is None and "OMP_NUM_THREADS" not in os.environ:
        # else each would take all cores for itself
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        given = {**given, "threads": max((cores or 1) // len(devices), 1)}
    make = partial(_transformer, _for_follower(given))
    with Followers(devices, make, on_gone) as followers:
        pipe = load({**given, "device": devices[0]}, **task)
        with followers.leading(pipe):
            yield pipe


@contextmanager
def _under_torchrun(
    given: Mapping[str, Any], place: _Place, task: dict[str, Any]
) -> Iterator[CausalWanPipeline]:
    import torch

    from stillframe.backbones.parallel.group import join
    from stillframe.jobs.parallel import lead

    device = place.device(given.get("device", "auto"))
    group = join(torch.device(device), 0, place.size)
    try:
        group.tell(None)
        pipe = load({**given, "device": device}, **task)
        with lead(pipe, group):
            yield pipe
    except BaseException:
        group.close(cut=True)
        raise
    group.close()


def _for_follower(given: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: given[name] for name in _LOADING if name in given}, "quiet": True}


def _transformer(given: Mapping[str, Any], device: str) -> Any:
    """The model's transformer; what else there is of the model is dropped."""
    return load({**given, "device": device}).transformer
