"""Serves the application on a port with uvicorn, whose two protocols get limits here.

A connection counts as unauthenticated until the application says otherwise, has so long to ask for
something, and can be cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from typing import Any, cast
from urllib.parse import quote

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from stillframe.errors import StillframeError
from stillframe.server.access import is_loopback
from stillframe.server.admission import ABORT, AUTHENTICATED, Admission
from stillframe.server.certificate import Certificate
from stillframe.server.logs import limit_logs

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


def address(host: str, port: int, token: str | None = None, *, tls: bool = False) -> str:
    """Where a browser finds the page: a URL, with the token in its fragment, which stays there."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    elif is_loopback(host):
        host = "127.0.0.1" if host == "localhost" else host
    # of an IPv6 address, what follows % is the interface (RFC 6874)
    name = f"[{host.replace('%', '%25')}]" if ":" in host else host
    fragment = f"#token={quote(token, safe='')}" if token else ""
    return f"http{'s' * tls}://{name}:{port}/{fragment}"


class _HttpProtocol(H11Protocol):
    """HTTP, with a time limit for the head of each request."""

    def __init__(self, *args: Any, state: Admission, **options: Any) -> None:
        super().__init__(*args, **options)
        self._state, self._limits = state, state.limits
        self._number: int | None = None
        self._late: asyncio.TimerHandle | None = None
        self._app = self.app
        self.app = self._serve

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("extensions", {})[AUTHENTICATED] = {"call": self._authenticated}
        await self._app(scope, receive, send)

    def _authenticated(self) -> None:
        if self._number is not None:
            self._state.unauthenticated.remove(self._number)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        super().connection_made(transport)  # type: ignore[arg-type]
        address = self.client[0] if self.client else ""
        self._number = self._state.unauthenticated.add(address, self.transport.abort)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop_waiting()
        self._authenticated()
        super().connection_lost(exc)

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        self._stop_waiting()
        self._late = self.loop.call_later(self._limits.request_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def handle_events(self) -> None:
        """Something came."""
        super().handle_events()
        if self._busy and self._late is not None:
            self._stop_waiting()
            if self._number is not None:
                self._state.unauthenticated.touch(self._number)

    def on_response_complete(self) -> None:
        """An answer has gone out."""
        super().on_response_complete()
        if not self._busy and not self.transport.is_closing():
            self._await_request()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request; in the midst of another answer there is nothing to be said."""
        if self.conn.our_state is h11.IDLE or (
            self.conn.our_state is h11.SEND_RESPONSE and not self._busy
        ):
            super().send_400_response(msg)
            return
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: whoever asks for one could fill the log."""

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """It is the other protocol's from here on."""
        self._stop_waiting()
        self._authenticated()
        super().handle_websocket_upgrade(event)


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket, which the application can cut off.

    To close is not enough for a client that reads nothing: what it was sent stays in memory.
    Without a token its messages are smaller: a hello, and what may come right after it.
    """

    def __init__(self, *args: Any, state: Admission, **options: Any) -> None:
        super().__init__(*args, **options)
        self._state, self._limits = state, state.limits
        self._number: int | None = None
        self.conn.max_message_size = min(
            self._limits.message_bytes, self._limits.unauthenticated_bytes
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        self._number = self._state.unauthenticated.add(address, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._number is not None:
            self._state.unauthenticated.remove(self._number)

    def _authenticated(self) -> None:
        self._forget()
        self.conn.max_message_size = self._limits.message_bytes

    async def run_asgi(self) -> None:
        """Serve it."""
        extensions: dict[str, Any] = self.scope["extensions"]
        extensions[ABORT] = {"call": self.transport.abort}
        extensions[AUTHENTICATED] = {"call": self._authenticated}
        await super().run_asgi()

    def send_receive_event_to_app(self) -> None:
        """Hand on a message; one that is no text ends the connection, without a line in the log."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            self.frames = [b"".join(self.frames)]
            try:
                self.frames[0].decode()
            except UnicodeDecodeError:
                self.frames = []
                with contextlib.suppress(InvalidState):  # it has said goodbye right after
                    self.conn.send_close(1007)
                    self.handle_parser_exception()
                return
        super().send_receive_event_to_app()


def make_server(app: FastAPI, certificate: Certificate | None = None) -> uvicorn.Server:
    """A server for an application whose ``state.server`` is its `Admission`.

    Run it with a socket from `listen`. With a certificate it speaks TLS, and nothing else.

    Pictures are compressed already: no compression of messages. Clients are counted by the address
    that they have, and not by one that they tell. What is logged is bounded.
    """
    state: Admission = app.state.server
    config = uvicorn.Config(
        app,
        http=cast(Any, partial(_HttpProtocol, state=state)),
        ws=cast(Any, partial(_WebSocketProtocol, state=state)),
        ws_max_size=state.limits.message_bytes,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=_PING_SECONDS,
        ws_per_message_deflate=False,
        proxy_headers=False,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        ssl_certfile=certificate and certificate.path,
        ssl_keyfile=certificate and str(certificate.key),
    )
    limit_logs()
    return uvicorn.Server(config)
