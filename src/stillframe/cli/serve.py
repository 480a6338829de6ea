"""``stillframe serve``: live editing in the browser.

Arguments in, a server until Ctrl-C; what it does is in ``server``, which needs packages of its own.
See `cli` for exit codes.
"""

from __future__ import annotations

import html
import importlib.util
import os
import socket
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.control import CutsOption, GopOption, RefreshOption, build_control
from stillframe.cli.downloads import fetch_shown
from stillframe.cli.options import (
    DeviceOption,
    DtypeOption,
    HeightOption,
    LoadOptions,
    ModelOption,
    ThreadsOption,
    WidthOption,
    load,
)
from stillframe.cli.rate import (
    GuardOption,
    RateModeOption,
    TargetFpsOption,
    TargetKeptOption,
    TargetLatencyOption,
)
from stillframe.cli.screen import one_sentence_errors, say
from stillframe.errors import StillframeError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stillframe.server.client_config import Holding
    from stillframe.server.supervisor import SessionKeeper

__all__ = ["serve"]

_NEEDED = ("fastapi", "uvicorn", "websockets")
_TOKEN_BYTES = 4096


def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen; others than this computer's own need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 7860,
    model: ModelOption = "tiny",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    max_sessions: Annotated[int, typer.Option(min=1, max=1024, help="Open at a time.")] = 4,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Holds what clients must know; else STILLFRAME_TOKEN, else a new one."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Another name by which clients may call the server; repeatable."),
    ] = None,
    one_process: Annotated[
        bool, typer.Option(help="Run the model in the server's own process: slower, and less safe.")
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    gop: GopOption = None,
    refresh: RefreshOption = None,
    cuts: CutsOption = False,
    target_fps: TargetFpsOption = None,
    target_latency: TargetLatencyOption = None,
    target_kept: TargetKeptOption = None,
    rate_mode: RateModeOption = None,
    guard: GuardOption = None,
    max_pixels: Annotated[
        int,
        typer.Option(min=256, max=2**31 - 1, help="Refuse larger pictures of clients."),
    ] = 1920 * 1088,
) -> None:
    """Edit live: camera, screen or file in, in the browser.

    What is controlled and held is so for clients that do not say otherwise."""
    with one_sentence_errors():
        _check_packages()
        from stillframe.server.serving import address, listen

        holding = _holding(
            target_fps=target_fps, target_latency=target_latency, target_kept=target_kept,
            rate_mode=rate_mode, gop=gop, refresh=refresh, cuts=cuts or None, guard=guard,
        )  # fmt: skip
        token = _token(host, token_file)
        with listen(host, port) as place:
            app = _app(
                LoadOptions(model, device, dtype, threads, height=height, width=width),
                host, token, name or [], max_sessions, one_process, holding, max_pixels,
            )  # fmt: skip
            url = address(host, place.getsockname()[1], token)
            say(f"live editing at {url} (Ctrl-C ends it)")
            with _opened(url) if open_page else nullcontext():
                _run(app, place)
        say("the server has ended")


def _check_packages() -> None:
    """Refuse if what the server is made with is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise StillframeError(
            f"a server needs {', '.join(missing)}: install them with "
            f"pip install 'stillframe[serve]'"
        )


def _token(host: str, file: Path | None) -> str | None:
    """What clients must know: never an argument, which everybody on this computer could read."""
    from stillframe.server.guard import is_loopback, new_token

    if file is not None:
        try:
            with file.open("rb") as lines:
                return lines.read(_TOKEN_BYTES).decode().strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise StillframeError(f"cannot read the token in {file}: {reason}") from error
    given = os.environ.pop("STILLFRAME_TOKEN", "").strip()
    return given or (None if is_loopback(host) else new_token())


@contextmanager
def _opened(url: str) -> Iterator[None]:
    """Open the page in a browser.

    An address with a token is no argument of a program either: a file that only its owner can read
    leads there, for as long as the context lasts.
    """
    if "#" not in url:
        webbrowser.open(url)
        yield
        return
    with tempfile.TemporaryDirectory(prefix="stillframe-") as folder:
        page = Path(folder) / "open.html"
        page.write_text(f'<meta http-equiv="refresh" content="0;url={html.escape(url)}">')
        webbrowser.open(page.as_uri())
        yield


def _holding(**asked: Any) -> Holding:
    """What sessions hold unless their clients say otherwise, checked as for `edit`."""
    from stillframe.methods.prune import InterFramePruning
    from stillframe.server.client_config import Holding

    held = Holding(**asked)
    build_control(InterFramePruning(), **asked)
    return held


def _app(
    options: LoadOptions,
    host: str,
    token: str | None,
    names: list[str],
    max_sessions: int,
    one_process: bool,
    holding: Holding,
    max_pixels: int,
) -> FastAPI:
    """The application, its model loaded."""
    from stillframe.loading.load import model_styles
    from stillframe.server.app import create_app
    from stillframe.server.limits import Limits

    return create_app(
        load(options) if one_process else _in_a_process(options),
        max_sessions=max_sessions,
        token=token,
        host=host,
        names=names,
        model=options.model,
        styles=model_styles(options.model),
        height=options.height,
        width=options.width,
        holding=holding,
        limits=Limits(picture_pixels=max_pixels),
    )


def _in_a_process(options: LoadOptions) -> SessionKeeper:
    """A process of its own for the model, which is loaded."""
    from stillframe.loading.load import missing_files
    from stillframe.server.supervisor import ProcessKeeper

    # here, where there is a screen to show it on
    if missing := missing_files(options.model, options.vae):
        fetch_shown(missing)
    keeper = ProcessKeeper(partial(load, options))
    keeper.start()
    return keeper


def _run(app: FastAPI, place: socket.socket) -> None:
    """Serve until Ctrl-C, which is how a server ends."""
    from stillframe.server.serving import make_server

    try:
        make_server(app).run(sockets=[place])
    except KeyboardInterrupt:
        return
