"""The picture alone, for who only watches: a page, and the socket that its pictures come over."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from fastapi import FastAPI, Response, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse

from stillframe.live import EditedFrame
from stillframe.server import protocol
from stillframe.server.access import token_in
from stillframe.server.admission import authenticated
from stillframe.server.client_session import first_of
from stillframe.server.limits import RefusedError
from stillframe.server.messages import Watch, parse_watch
from stillframe.server.middleware import client_address
from stillframe.server.pictures import encode_picture
from stillframe.server.protocol import ProtocolError
from stillframe.server.send_queue import SendQueue
from stillframe.server.state import ServerState
from stillframe.server.transport import DisconnectedError
from stillframe.server.watchers import Watcher
from stillframe.server.websocket import WebSocketTransport

__all__ = ["add_view"]

_QUALITY = 90


def add_view(app: FastAPI, state: ServerState, static: Path) -> None:
    """Add ``/view`` and its socket, ``/watch``."""

    pictures = _Pictures()

    @app.get("/view", include_in_schema=False)
    def view() -> Response:
        path = static / "view.html"
        if not path.is_file():
            return PlainTextResponse("the server has no such file", 404)
        return FileResponse(path)

    @app.websocket("/watch")
    async def watch(socket: WebSocket) -> None:
        host, origin = socket.headers.get("host"), socket.headers.get("origin")
        if not state.ready or not state.policy.origin_allowed(origin, host):
            await socket.close()
            return
        await socket.accept()
        await _Watching(socket, state, pictures).run()


class _Pictures:
    """JPEG pictures of frames, each made once however many watch."""

    def __init__(self) -> None:
        self._frame: EditedFrame | None = None
        self._picture = b""
        self._lock = threading.Lock()

    def of(self, frame: EditedFrame) -> bytes:
        """The picture of a frame; called for one frame by all who watch it, then for the next."""
        with self._lock:
            if frame is not self._frame:
                self._frame, self._picture = frame, encode_picture(frame.pixels, _QUALITY)
            return self._picture


class _Watching:
    """One watcher's connection."""

    def __init__(self, socket: WebSocket, state: ServerState, pictures: _Pictures) -> None:
        self._pictures = pictures
        self._socket, self._state, self._limits = socket, state, state.limits
        self._line = WebSocketTransport(socket, state)
        self._outgoing: SendQueue[bytes] = SendQueue(self._limits.queued_frames, drops=True)

    async def run(self) -> None:
        error: Exception | None = None
        try:
            wanted = await self._admitted()
            with self._state.connections.one():
                watcher = Watcher(wanted.session, self._take)
                self._state.watchers.add(watcher)
                try:
                    await first_of(self._send(), self._listen())
                finally:
                    self._state.watchers.remove(watcher)
                    self._outgoing.close()
        except DisconnectedError:
            return
        except TimeoutError:
            self._line.abort()
            return
        except (ProtocolError, RefusedError) as failure:
            error = failure
        await self._line.close(error)

    async def _admitted(self) -> Watch:
        """The first message, once its token is right."""
        seconds = self._limits.hello_seconds
        try:
            async with asyncio.timeout(seconds):
                text = await self._text()
        except TimeoutError as error:
            raise ProtocolError(f"no first message within {seconds:g} s") from error
        wanted = parse_watch(text, self._limits.text_bytes)
        given = wanted.token or token_in(self._socket.cookies)
        if not await self._state.tokens.accepts(given, client_address(self._socket.scope)):
            raise ProtocolError("the token is missing or wrong")
        authenticated(self._socket.scope)
        return wanted

    async def _text(self) -> str:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise DisconnectedError
        return message.get("text") or ""

    async def _listen(self) -> None:
        await self._text()
        raise ProtocolError("who watches has nothing more to say")

    def _take(self, frame: EditedFrame, time: float) -> None:
        """A frame, on its session's thread."""
        self._outgoing.put(protocol.pack_frame(time, self._pictures.of(frame)), frame=True)

    async def _send(self) -> None:
        while True:
            message = await self._outgoing.get()
            async with asyncio.timeout(self._limits.stall_seconds):
                await self._line.send(message)
