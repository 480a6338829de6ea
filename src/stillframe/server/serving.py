"""Listening: the application on a port, with uvicorn.

Knows addresses and uvicorn's settings; not what the application does.
"""

from __future__ import annotations

import socket
from typing import Any, cast
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI

from stillframe.errors import StillframeError
from stillframe.server.guard import is_loopback
from stillframe.server.house import House
from stillframe.server.logs import quieten
from stillframe.server.wires import protocols

__all__ = ["address", "listen", "make_server"]

_SEND_BUFFER = 128 * 2**10
_PING_SECONDS = 20.0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    The system keeps little of what a client does not read, so that a slow one gets new frames
    rather than many old ones.

    Raises:
        StillframeError: the address is taken, or not this computer's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        place.bind((host, port))
        place.listen(64)
    except (OSError, OverflowError) as error:
        place.close()
        reason = getattr(error, "strerror", None) or error
        raise StillframeError(f"cannot listen on {host}, port {port}: {reason}") from error
    return place


def address(host: str, port: int, token: str | None = None) -> str:
    """Where a browser finds the page: a URL, with the token in its fragment, which stays there."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    elif is_loopback(host):
        host = "127.0.0.1" if host == "localhost" else host
    # of an IPv6 address, what follows % is the interface (RFC 6874)
    name = f"[{host.replace('%', '%25')}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"#token={quote(token, safe='')}" if token else "")


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server for an application of `create_app`; run it with a socket from `listen`.

    Pictures are compressed already: no compression of messages. Clients are counted by the address
    that they have, and not by one that they tell. What is logged is bounded.
    """
    house: House = app.state.house
    http, ws = protocols(house.strangers, house.limits)
    config = uvicorn.Config(
        app,
        http=cast(Any, http),
        ws=cast(Any, ws),
        ws_max_size=house.limits.message_bytes,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=_PING_SECONDS,
        ws_per_message_deflate=False,
        proxy_headers=False,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    quieten()
    return uvicorn.Server(config)
