"""What commands that serve a page have in common: address, token, certificate, and until when.

What serves is imported when it is needed: it has packages of its own.
"""

from __future__ import annotations

import html
import importlib.util
import os
import tempfile
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stillframe.cli.interruption import Interruption
from stillframe.cli.screen import say
from stillframe.errors import StillframeError
from stillframe.options import Option

if TYPE_CHECKING:
    import socket

    from stillframe.server.certificate import Certificate

__all__ = ["LISTENING", "SERVER", "Access", "access", "check_packages", "run_until_interrupted"]

_NEEDED = ("fastapi", "uvicorn", "websockets")
_TOKEN_BYTES = 4096
#: Heading in help.
SERVER = "Server"

LISTENING = {
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
    "token_file": Option(
        "path",
        "Serve clients that know the token in this file; else that of STILLFRAME_TOKEN, else a new "
        "one.",
        metavar="FILE",
        group=SERVER,
    ),
    "name": Option(
        "str",
        "Answer to this name of the server, too; may be given several times.",
        metavar="NAME",
        repeats=True,
        group=SERVER,
    ),
    "tls_cert": Option(
        "path",
        "Speak TLS with the certificate in this file (PEM), so that other devices get their "
        "camera.",
        metavar="FILE",
        group=SERVER,
    ),
    "tls_key": Option("path", "The key of that certificate.", metavar="FILE", group=SERVER),
    "tls_self_made": Option(
        "bool",
        "Speak TLS with a certificate made here, which browsers warn of once.",
        default=False,
        group=SERVER,
    ),
}


class Access(NamedTuple):
    """Who reaches a server, and how.

    Attributes:
        host: that it listens on.
        token: that clients must know, None if they need none.
        certificate: that it speaks TLS with, None if it does not.
    """

    host: str
    token: str | None
    certificate: Certificate | None


def access(given: Mapping[str, Any]) -> Access:
    """What options say of it.

    Raises:
        StillframeError: a file cannot be read, or a certificate cannot be made.
        ValueError: the token is too short or too long, or options contradict each other.
    """
    from stillframe.server.access import AccessPolicy

    token = _token(given["host"], given["token_file"])
    AccessPolicy(given["host"], token)
    return Access(given["host"], token, _certificate(given))


def run_until_interrupted(
    app: Any, place: socket.socket, who: Access, what: str, *, opens: bool, camera: bool = False
) -> None:
    """Say where the page is, and serve it until Ctrl-C or SIGTERM.

    Args:
        app: whose ``state.server`` is its `Admission`.
        place: a socket that listens.
        what: is there, for the line that says where.
        opens: whether to open it in a browser.
        camera: whether the page asks for one.
    """
    from stillframe.server.serving import address, make_server

    port, tls = place.getsockname()[1], who.certificate is not None
    url = address(who.host, port, who.token, tls=tls)
    server = make_server(app, who.certificate)

    def end() -> None:
        server.should_exit = True

    try:
        # who reads where the page is may end it at once, before the server's own handlers are there
        with Interruption(end):
            say(f"{what} at {url} (Ctrl-C ends it)")
            for line in _others(who, port, camera):
                say(line)
            with _opened(url) if opens else nullcontext():
                server.run(sockets=[place])
    except KeyboardInterrupt:
        pass  # the second one, which does not wait for clients


def check_packages() -> None:
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


def _certificate(given: Mapping[str, Any]) -> Certificate | None:
    """What the server speaks TLS with; None if it does not."""
    from stillframe.server.certificate import check_certificate, own_certificate

    path, key, self_made = (given[name] for name in ("tls_cert", "tls_key", "tls_self_made"))
    if (path is None) != (key is None):
        raise ValueError("--tls-cert and --tls-key go together, got one of them")
    if path is not None and self_made:
        raise ValueError("give either --tls-cert and --tls-key or --tls-self-made")
    if self_made:
        return own_certificate([given["host"], *(given["name"] or [])])
    return None if path is None else check_certificate(path, key)


def _others(who: Access, port: int, camera: bool) -> Iterator[str]:
    """What who opens the page on another device has to know."""
    from stillframe.server.access import is_loopback
    from stillframe.server.certificate import own_address
    from stillframe.server.serving import address

    certificate = who.certificate
    if not is_loopback(who.host):
        own = own_address() if who.host in ("0.0.0.0", "::") else None
        if own is not None:
            url = address(own, port, who.token, tls=certificate is not None)
            yield f"on a phone in this network: {url}"
        if certificate is None and camera:
            yield "browsers lend no camera to that page without TLS: --tls-self-made"
    if certificate is not None and certificate.is_own:
        yield (
            "the browser will warn that the connection is not private, because nobody else vouches "
            "for this certificate: compare its SHA-256 fingerprint, and go on"
        )
        yield f"  {certificate.fingerprint}"


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
