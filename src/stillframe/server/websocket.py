"""A client's WebSocket as a transport: JPEG pictures and text messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect

from stillframe.live import EditedFrame
from stillframe.server import messages, protocol
from stillframe.server.access import token_in
from stillframe.server.admission import ABORT, authenticated, call_extension
from stillframe.server.messages import Hello
from stillframe.server.middleware import client_address
from stillframe.server.pictures import decode_picture, encode_picture
from stillframe.server.protocol import ProtocolError
from stillframe.server.state import ServerState
from stillframe.server.transport import (
    DisconnectedError,
    Pixels,
    ReceivedFrame,
    UnusableFrameError,
    last_message,
)

__all__ = ["WebSocketTransport"]

_CLOSE_SECONDS = 5.0
_REASON_BYTES = 120
"""All that fits into the frame that closes."""


class WebSocketTransport:
    """A WebSocket that was accepted; see `Transport`."""

    returns_timestamps = True
    dropped = 0

    def __init__(self, socket: WebSocket, state: ServerState) -> None:
        self.limits = state.limits
        self._socket, self._state = socket, state
        self._last: Pixels | None = None
        self._picture = b""

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[Hello]:
        """The client's first message, once its token is right."""
        hello = await self._hello()
        given = hello.token or token_in(self._socket.cookies)
        if not await self._state.tokens.accepts(given, client_address(self._socket.scope)):
            raise ProtocolError("the token is missing or wrong")
        authenticated(self._socket.scope)
        with self._state.connections.one():
            yield hello

    async def _hello(self) -> Hello:
        seconds = self.limits.hello_seconds
        try:
            async with asyncio.timeout(seconds):
                text, _ = await self._next()
        except TimeoutError as error:
            raise ProtocolError(f"no hello within {seconds:g} s") from error
        first = None if text is None else messages.parse_text(text, self.limits.text_bytes)
        if not isinstance(first, Hello):
            raise ProtocolError("the first message is hello")
        return first

    async def start(self, width: int, height: int, unusable: Callable[[str], None]) -> None:
        """Nothing: messages may go at once."""

    async def _next(self) -> tuple[str | None, bytes]:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise DisconnectedError
        return message.get("text"), message.get("bytes") or b""

    async def receive(self) -> str | ReceivedFrame:
        """The next text or frame."""
        text, data = await self._next()
        if text is not None:
            return text
        try:
            frame = protocol.parse_frame(data, self.limits.message_bytes)
        except ProtocolError as error:
            raise UnusableFrameError(str(error)) from error
        return ReceivedFrame(frame.timestamp, partial(decode_picture, frame.picture, self.limits))

    def encode(self, frame: EditedFrame, timestamp: float, quality: int) -> bytes:
        """A frame as a message with a JPEG picture."""
        # where nothing changes, the frames of block after block are the same
        if self._last is None or not np.array_equal(frame.pixels, self._last):
            self._last = frame.pixels
            self._picture = encode_picture(frame.pixels, quality)
        return protocol.pack_frame(timestamp, self._picture)

    async def send(self, message: str | bytes) -> None:
        """Send a text or binary message."""
        try:
            if isinstance(message, str):
                await self._socket.send_text(message)
            else:
                await self._socket.send_bytes(message)
        # a RuntimeError is what uvicorn says once it has closed a socket by itself, for bytes
        # that are no WebSocket's
        except (WebSocketDisconnect, RuntimeError) as error:
            raise DisconnectedError from error

    async def close(self, error: Exception | None) -> None:
        """Say a last word and close; a client that does not listen is cut off."""
        code, reason, text = last_message(error)
        reason = reason.encode()[:_REASON_BYTES].decode(errors="ignore")
        try:
            async with asyncio.timeout(min(self.limits.stall_seconds, _CLOSE_SECONDS)):
                if text is not None:
                    await self._socket.send_text(text)
                await self._socket.close(code, reason)
        except TimeoutError:
            self.abort()
        except (WebSocketDisconnect, RuntimeError):  # it was faster
            return

    def abort(self) -> None:
        """To close is not enough for a client that does not read."""
        call_extension(self._socket.scope, ABORT)
