"""``stillframe serve``: live editing in the browser, until Ctrl-C.

What the server does is in ``server``, which needs packages of its own.
"""

from __future__ import annotations

import html
import importlib.util
import os
import socket
import tempfile
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillframe.cli.command import Given, flag, takes
from stillframe.cli.downloads import fetch_shown
from stillframe.cli.options import LOADING, MODEL, SIZE, load, part
from stillframe.cli.screen import say
from stillframe.config import EditConfig, edit_options
from stillframe.errors import StillframeError
from stillframe.options import Option

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stillframe.server.supervisor import ModelSupervisor

__all__ = ["serve"]

_NEEDED = ("fastapi", "uvicorn", "websockets")
_SERVER = "Server"
_TOKEN_BYTES = 4096

_OWN = {
    "host": Option(
        "str",
        "Listen at this address; others than this computer's own need a token.",
        default="127.0.0.1",
        metavar="ADDRESS",
    ),
    "port": Option(
        "int", "Listen at this port; 0 is any free one.", default=7860, least=0, most=65535
    ),
    "open": Option("bool", "Open the page in a browser.", default=False),
    **MODEL,
    "height": SIZE["height"],
    "max_sessions": Option(
        "int",
        "Serve so many sessions at a time.",
        default=4,
        metavar="N",
        least=1,
        most=1024,
        group=_SERVER,
    ),
    "token_file": Option(
        "path",
        "Serve clients that know the token in this file; else that of STILLFRAME_TOKEN, else a new "
        "one.",
        metavar="FILE",
        group=_SERVER,
    ),
    "name": Option(
        "str",
        "Answer to this name of the server, too; may be given several times.",
        metavar="NAME",
        repeats=True,
        group=_SERVER,
    ),
    "max_pixels": Option(
        "int",
        "Refuse larger pictures of clients.",
        default=1920 * 1088,
        metavar="PIXELS",
        least=256,
        most=2**31 - 1,
        group=_SERVER,
    ),
    "one_process": Option(
        "bool",
        "Run the model in the server's own process: slower, and less safe.",
        default=False,
        group=_SERVER,
    ),
    "width": SIZE["width"],
}
# what needs the whole of a file; so does what reads or writes one
_FILES_ONLY = ("cuts_by", "two_pass")
_LIVE_DETECTORS = ("pixels", "latent")
_FIRST = ("method", "tolerance", "strength")


def _edits() -> dict[str, Option]:
    """Options of how sessions edit."""
    found = {
        name: each
        for name, each in edit_options().items()
        if each.kind != "path" and name not in _FILES_ONLY
    }
    return {**found, "detector": replace(found["detector"], choices=_LIVE_DETECTORS)}


def options() -> Mapping[str, Option]:
    """Options of the command: what most people need, then the others by what they are about."""
    edits = _edits()
    first = {name: each for name, each in _OWN.items() if not each.group}
    return {**first, **part(edits, _FIRST), **_OWN, **edits, **LOADING}


@takes(options)
def serve(given: Given) -> None:
    """Edit live: camera, screen or file in, in the browser.

    How sessions edit holds for clients that do not say otherwise."""
    _check_packages()
    from stillframe.server.access import AccessPolicy
    from stillframe.server.serving import address, listen

    edits = {name: given[name] for name in _edits() if name in given}
    # refused here, as for `edit`, and not when the first client comes
    EditConfig.from_options(edits, named=flag)
    token = _token(given["host"], given["token_file"])
    AccessPolicy(given["host"], token)  # refused before a model is loaded
    with listen(given["host"], given["port"]) as place:
        app = _app(given, edits, token)
        try:
            url = address(given["host"], place.getsockname()[1], token)
            say(f"live editing at {url} (Ctrl-C ends it)")
            with _opened(url) if given["open"] else nullcontext():
                _run(app, place)
        finally:
            # the application does this as well, if it got as far as to begin
            app.state.server.supervisor.stop()
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
    from stillframe.server.access import is_loopback, new_token

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


def _app(given: Mapping[str, Any], edits: Mapping[str, Any], token: str | None) -> FastAPI:
    """The application, its model loaded."""
    from stillframe.loading.load import model_styles
    from stillframe.server.app import create_app
    from stillframe.server.limits import Limits

    loading = part(given, (*MODEL, *LOADING, *SIZE, "store"))
    return create_app(
        load(loading) if given["one_process"] else _in_a_process(loading),
        max_sessions=given["max_sessions"],
        token=token,
        host=given["host"],
        names=given["name"] or [],
        model=given["model"],
        styles=model_styles(given["model"]),
        height=given["height"],
        width=given["width"],
        defaults={name: value for name, value in edits.items() if value is not None},
        limits=Limits(picture_pixels=given["max_pixels"]),
    )


def _in_a_process(loading: Mapping[str, Any]) -> ModelSupervisor:
    """A process of its own for the model, which is loaded."""
    from stillframe.loading.load import missing_files
    from stillframe.server.supervisor import ProcessSupervisor

    # here, where there is a screen to show it on
    if missing := missing_files(loading["model"], loading["vae"]):
        fetch_shown(missing)
    supervisor = ProcessSupervisor(partial(load, loading))
    supervisor.start()
    return supervisor


def _run(app: FastAPI, place: socket.socket) -> None:
    """Serve until Ctrl-C, which is how a server ends."""
    from stillframe.server.serving import make_server

    try:
        make_server(app).run(sockets=[place])
    except KeyboardInterrupt:
        return
