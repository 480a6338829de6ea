"""uvicorn's two protocols, with what the application needs: an end, and bounds for strangers.

A connection counts as a stranger's until the application says otherwise, has so long to ask for
something, and can be cut off. These know connections, not what is said over them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from stillframe.server.connection import ABORT
from stillframe.server.doorkeeper import KNOWN
from stillframe.server.limits import Limits
from stillframe.server.strangers import Stranger, Strangers

__all__ = ["protocols"]


class _Requests(H11Protocol):
    """HTTP: a request's head comes within a time, and the next one as well."""

    def __init__(self, *args: Any, strangers: Strangers, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._strangers, self._limits = strangers, limits
        self._stranger: Stranger | None = None
        self._late: asyncio.TimerHandle | None = None
        self._app = self.app
        self.app = self._serve

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("extensions", {})[KNOWN] = {"known": self._known}
        await self._app(scope, receive, send)

    def _known(self) -> None:
        if self._stranger is not None:
            self._strangers.forget(self._stranger)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        super().connection_made(transport)  # type: ignore[arg-type]
        address = self.client[0] if self.client else ""
        self._stranger = self._strangers.come(address, self.transport.abort)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._asked()
        self._known()
        super().connection_lost(exc)

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        self._asked()
        self._late = self.loop.call_later(self._limits.request_seconds, self.transport.abort)

    def _asked(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def handle_events(self) -> None:
        """Something came."""
        super().handle_events()
        if self._busy and self._late is not None:
            self._asked()
            if self._stranger is not None:
                self._strangers.stirs(self._stranger)

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
        self._asked()
        self._known()
        super().handle_websocket_upgrade(event)


class _Messages(WebSocketsSansIOProtocol):
    """A WebSocket, which the application can cut off.

    To close is not enough for a client that takes nothing: what it was sent stays in memory. A
    stranger's messages are smaller: a hello, and what may come right after it.
    """

    def __init__(self, *args: Any, strangers: Strangers, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._strangers, self._limits = strangers, limits
        self._stranger: Stranger | None = None
        self.conn.max_message_size = min(limits.message_bytes, limits.stranger_bytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        self._stranger = self._strangers.come(address, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._stranger is not None:
            self._strangers.forget(self._stranger)

    def _known(self) -> None:
        self._forget()
        self.conn.max_message_size = self._limits.message_bytes

    async def run_asgi(self) -> None:
        """Serve it."""
        extensions: dict[str, Any] = self.scope["extensions"]
        extensions[ABORT] = {"abort": self.transport.abort}
        extensions[KNOWN] = {"known": self._known}
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


def protocols(
    strangers: Strangers, limits: Limits
) -> tuple[Callable[..., asyncio.Protocol], Callable[..., asyncio.Protocol]]:
    """What makes a connection's protocol, of HTTP and of WebSockets, for uvicorn."""
    http = partial(_Requests, strangers=strangers, limits=limits)
    return http, partial(_Messages, strangers=strangers, limits=limits)
