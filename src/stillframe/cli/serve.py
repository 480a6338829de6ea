"""``stillframe serve``: live editing in the browser, until Ctrl-C.

What the server does is in ``server``, which needs packages of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from stillframe.cli.command import Given, flag, takes
from stillframe.cli.downloads import fetch_shown
from stillframe.cli.listening import (
    LISTENING,
    SERVER,
    access,
    check_packages,
    run_until_interrupted,
)
from stillframe.cli.options import LOADING, MODEL, SIZE, live_edits, load, part
from stillframe.cli.parallel import PARALLEL, loaded
from stillframe.cli.screen import say
from stillframe.cli.warm import made_ready, told
from stillframe.config import EditConfig
from stillframe.options import Option

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stillframe.pipelines.causal_wan import CausalWanPipeline
    from stillframe.server.supervisor import ModelSupervisor

__all__ = ["serve"]

_OWN = {
    **part(LISTENING, ("host", "port", "open")),
    **MODEL,
    "height": SIZE["height"],
    "max_sessions": Option(
        "int",
        "Serve so many sessions at a time; with --devices, on each of them.",
        default=4,
        metavar="N",
        least=1,
        most=1024,
        group=SERVER,
    ),
    "devices": Option(
        "str",
        "Compute on these devices, with a process for each: 0,1 or all (of CUDA), or cpu,cpu.",
        metavar="LIST",
        group=SERVER,
    ),
    **PARALLEL,
    **part(LISTENING, ("token_file", "name", "tls_cert", "tls_key", "tls_self_made")),
    "max_pixels": Option(
        "int",
        "Refuse larger pictures of clients.",
        default=1920 * 1088,
        metavar="PIXELS",
        least=256,
        most=2**31 - 1,
        group=SERVER,
    ),
    "blend": Option(
        "int",
        "Let another prompt come in over so many blocks, each of them whole.",
        default=0,
        metavar="BLOCKS",
        least=0,
        most=64,
        group=SERVER,
    ),
    "one_process": Option(
        "bool",
        "Run the model in the server's own process: slower, and less safe.",
        default=False,
        group=SERVER,
    ),
    "warm": Option(
        "bool",
        "Compile and capture what sessions need before the address is announced: for frames of "
        "16:9, or of --height and --width.",
        default=False,
        group=SERVER,
    ),
    "width": SIZE["width"],
}
_FIRST = ("method", "tolerance", "strength")


def options() -> Mapping[str, Option]:
    """Options of the command: what most people need, then the others by what they are about."""
    edits = live_edits()
    first = {name: each for name, each in _OWN.items() if not each.group}
    return {**first, **part(edits, _FIRST), **_OWN, **edits, **LOADING}


@takes(options)
def serve(given: Given) -> None:
    """Edit live: camera, screen or file in, in the browser.

    How sessions edit holds for clients that do not say otherwise."""
    check_packages()
    began = time.perf_counter()
    say(f"starting; the model will be {given['model']}", stderr=True)
    from stillframe.server.serving import listen

    edits = {name: given[name] for name in live_edits() if name in given}
    # refused here, as for `edit`, and not when the first client comes
    EditConfig.from_options(edits, named=flag)
    who, devices = access(given), _devices(given)
    _check_parallel(given)
    with listen(given["host"], given["port"]) as place:
        port = place.getsockname()[1]
        say(f"listening on {given['host']}, port {port}; loading {given['model']}", stderr=True)
        app = _app(given, edits, who.token, devices)
        where = _where(app.state.server.supervisor)
        say(f"the model is there{where}, after {time.perf_counter() - began:.1f} s", stderr=True)
        try:
            run_until_interrupted(app, place, who, "live editing", opens=given["open"], camera=True)
        finally:
            # the application does this as well, if it got as far as to begin
            app.state.server.supervisor.stop()
    say("the server has ended")


def _devices(given: Mapping[str, Any]) -> list[str]:
    """Where to compute, one process each; empty for `--device`.

    Raises:
        ValueError: one is not there, or options do not go together.
    """
    from stillframe.loading.devices import pick_devices

    if given["devices"] is None:
        return []
    if given["device"] != "auto":
        raise ValueError(
            f"give either --device or --devices, got {given['device']!r} and {given['devices']!r}"
        )
    devices = pick_devices(given["devices"])
    if given["one_process"]:
        raise ValueError(
            f"--one-process has one device, got --devices with {len(devices)}: use --device"
        )
    return devices


def _check_parallel(given: Mapping[str, Any]) -> None:
    """Raise a ValueError if options do not go together with `--parallel`."""
    if given["parallel"] is None:
        return
    for name, why in (
        ("devices", "each of which runs sessions of its own"),
        ("one_process", "which starts no other process"),
        ("warm", "which captures what one card runs"),
    ):
        if given[name]:
            raise ValueError(
                f"--parallel {given['parallel']} does not go with {flag(name)}, {why}: "
                f"leave one out"
            )


def _app(
    given: Mapping[str, Any], edits: Mapping[str, Any], token: str | None, devices: Sequence[str]
) -> FastAPI:
    """The application, its model loaded."""
    from stillframe.loading.load import model_styles, style_pictures
    from stillframe.server.app import create_app
    from stillframe.server.limits import Limits

    loading = part(given, (*MODEL, *LOADING, *SIZE, "store", "cache", "motion"))
    make: Callable[[Mapping[str, Any]], Any] = load
    if given["warm"]:
        make = partial(load_warm, edits=dict(edits))
    if given["parallel"] is not None:
        loading |= {"parallel": given["parallel"]}
        make = partial(loaded, on_gone=_end)
    return create_app(
        make(loading)
        if given["one_process"]
        else _in_processes(make, loading, devices, given["max_sessions"]),
        max_sessions=given["max_sessions"] * max(len(devices), 1),
        token=token,
        host=given["host"],
        names=given["name"] or [],
        model=given["model"],
        styles=model_styles(given["model"]),
        style_pictures=style_pictures(given["model"]),
        height=given["height"],
        width=given["width"],
        defaults={name: value for name, value in edits.items() if value is not None},
        blend=given["blend"],
        limits=Limits(picture_pixels=given["max_pixels"]),
    )


def _end(reason: str) -> None:
    """End the process that runs the model: the server starts another one, and its others."""
    say(reason, stderr=True)
    os._exit(1)


def load_warm(loading: Mapping[str, Any], edits: Mapping[str, Any]) -> CausalWanPipeline:
    """The model, made ready for sessions that edit as options say."""
    pipe, quiet = load(loading), bool(loading.get("quiet"))
    if not quiet:
        say("the model is loaded; compiling and capturing what sessions need", stderr=True)
    config = EditConfig.from_options(edits, named=flag)
    done = made_ready(pipe, config, loading["height"], loading["width"], quiet)
    if not quiet:
        say(told(done), stderr=True)
    return pipe


def _in_processes(
    make: Callable[[Mapping[str, Any]], Any],
    loading: Mapping[str, Any],
    devices: Sequence[str],
    max_sessions: int,
) -> ModelSupervisor:
    """A process of its own for the model, or one for each device; a model is loaded."""
    from stillframe.loading.load import missing_files
    from stillframe.server.pool import WorkerPool
    from stillframe.server.supervisor import ProcessSupervisor

    # here, where there is a screen to show it on
    if missing := missing_files(loading["model"], loading["vae"]):
        fetch_shown(missing)
    several = loading.get("parallel") is not None
    supervisor: ModelSupervisor = ProcessSupervisor(partial(make, loading), starts_others=several)
    if devices:
        threads = _threads(loading, len(devices))
        # of CUDA devices a process sees its own alone
        kinds = {device: device.partition(":")[0] for device in devices}
        loads = {
            device: partial(make, {**loading, "device": kind, "threads": threads, "quiet": True})
            for device, kind in kinds.items()
        }
        supervisor = WorkerPool(loads, max_sessions)
    supervisor.start()
    return supervisor


def _threads(loading: Mapping[str, Any], processes: int) -> int:
    """CPU threads of each of so many processes, which share what one would have."""
    import torch

    return max(1, (loading["threads"] or torch.get_num_threads()) // processes)


def _where(supervisor: ModelSupervisor) -> str:
    """On how many of several devices the model is there."""
    workers = supervisor.workers
    ready = sum(each.ready for each in workers)
    return f" on {ready} of {len(workers)} devices" if len(workers) > 1 else ""
