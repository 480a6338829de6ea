"""WHIP in and WHEP out: WebRTC that programs set up with one request, without a page.

A WHIP client (RFC 9725) sends video, which becomes a session; a WHEP client
(draft-ietf-wish-whep) is shown what the newest session makes, or a named one. Both send an SDP
offer as it is, with the token as a bearer, and end with DELETE at the address in ``Location``.
Sound is declined. Needs ``[webrtc]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from aiortc import RTCSessionDescription
from av import VideoFrame
from fastapi import FastAPI, HTTPException, Request, Response

from stillframe.live import EditedFrame
from stillframe.server.admission import authenticate, from_here
from stillframe.server.decoding import codecs
from stillframe.server.limits import RefusedError
from stillframe.server.messages import Hello, live_options, parse_message
from stillframe.server.protocol import UNREADABLE, ProtocolError
from stillframe.server.requests import body, refusals
from stillframe.server.sdp import checked_offer
from stillframe.server.state import ServerState
from stillframe.server.transport import DisconnectedError
from stillframe.server.watchers import Watcher
from stillframe.server.webrtc import (
    CLOCK,
    EditedTrack,
    WebRtcConnections,
    WebRtcTransport,
    new_peer,
)

__all__ = ["WhepConnections", "WhipTransport", "add_whip", "settings"]

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 10.0
_NUMBERS = {"width": int, "height": int}


def settings(query: Mapping[str, str], styles: list[dict[str, str]]) -> Hello:
    """What a WHIP request's address asks for: fields of ``hello``, but for the token.

    Args:
        styles: that the model knows; the first is the prompt of who gives none.

    Raises:
        ProtocolError: there is no such field, or its value cannot be used.
    """
    options = live_options()
    kinds = {
        name: {"int": int, "float": float}.get(option.kind) for name, option in options.items()
    }
    values: dict[str, Any] = {"prompt": styles[0]["prompt"] if styles else ""}
    for name, text in query.items():
        if name == "token":
            raise ProtocolError("a token is no part of an address: send it as a bearer")
        number = kinds.get(name) or _NUMBERS.get(name)
        is_switch = name in options and options[name].kind == "bool"
        try:
            values[name] = (
                number(text) if number else text in ("", "1", "true") if is_switch else text
            )
        except ValueError as error:
            raise ProtocolError(f"{name} is a number, and not what the address has") from error
    hello = parse_message(Hello, values)
    if hello.policy == "all":
        raise ProtocolError("WebRTC cannot hold a client back: policy is latest")
    return hello


class WhipTransport(WebRtcTransport):
    """A client that only sends video; what is made of it goes to who watches."""

    def __init__(self, state: ServerState, sdp: str, hello: Hello) -> None:
        super().__init__(state, sdp, hello, one_way=True)
        self._there: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _on_state(self) -> None:
        super()._on_state()
        if self._peer.connectionState == "connected" and not self._there.done():
            self._there.set_result(None)

    async def _connected(self) -> None:
        """Wait until it is there."""
        seconds = self.limits.hello_seconds
        try:
            async with asyncio.timeout(seconds):
                either: set[asyncio.Future[Any]] = {self._there, self._left}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            raise ProtocolError(f"no connection within {seconds:g} s") from error
        if not self._there.done():
            raise DisconnectedError

    def encode(self, frame: EditedFrame, timestamp: float, quality: int) -> None:
        """Nothing: it is not shown what it has made."""

    async def send(self, message: str | bytes) -> None:
        """Nothing: it does not listen."""


class _WhepConnection:
    """One client that is shown video."""

    def __init__(self, state: ServerState, sdp: str, session: str | None) -> None:
        self._state = state
        self._sdp = checked_offer(sdp, one_way=True)
        self._peer = new_peer()
        self._track = EditedTrack(state.limits.queued_frames)
        one = self._peer.addTransceiver(self._track, "sendonly")
        one.setCodecPreferences(codecs(h264=True))
        self._watcher = Watcher(session, self._take)
        loop = asyncio.get_running_loop()
        self._there: asyncio.Future[None] = loop.create_future()
        self._left: asyncio.Future[None] = loop.create_future()
        self.answer: asyncio.Future[str] = loop.create_future()

    def leave(self) -> None:
        """End it."""
        if not self._left.done():
            self._left.set_result(None)

    def _take(self, frame: EditedFrame, time: float) -> None:
        picture = VideoFrame.from_ndarray(frame.pixels, format="rgb24")
        picture.pts, picture.time_base = round(time / CLOCK), CLOCK
        self._track.frames.put(picture, frame=True)

    def _on_state(self) -> None:
        state = self._peer.connectionState
        if state in ("failed", "closed"):
            self.leave()
        elif state == "connected" and not self._there.done():
            self._there.set_result(None)

    async def run(self) -> None:
        """Answer, and show video until the client leaves."""
        try:
            with self._state.connections.one():
                await self._serve()
        except Exception as error:
            if not self.answer.done():
                self.answer.set_exception(error)
            elif not isinstance(error, TimeoutError):
                _log.exception("a WHEP connection failed")
        finally:
            await self._release()

    async def _serve(self) -> None:
        self._peer.on("connectionstatechange", self._on_state)
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(self._sdp, "offer"))
            for each in self._peer.getTransceivers():
                if each.kind == "audio":
                    each.direction = "inactive"
            answer = await self._peer.createAnswer()
        except Exception as error:  # broken descriptions fail in every way there is
            raise ProtocolError("the offer's sdp cannot be used", UNREADABLE) from error
        await self._peer.setLocalDescription(answer)
        self.answer.set_result(self._peer.localDescription.sdp)
        async with asyncio.timeout(self._state.limits.hello_seconds):
            either: set[asyncio.Future[Any]] = {self._there, self._left}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        self._state.watchers.add(self._watcher)
        try:
            await self._left
        finally:
            self._state.watchers.remove(self._watcher)

    async def _release(self) -> None:
        self._track.frames.close()
        self._track.stop()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._peer.close()


class WhepConnections:
    """The WHEP connections of a server, by names that cannot be guessed."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._open: dict[str, tuple[_WhepConnection, asyncio.Task[None]]] = {}

    async def answer(self, sdp: str, session: str | None) -> tuple[str, str]:
        """Open a connection: its name, and the answer's session description.

        Raises:
            ProtocolError: the offer cannot be used, or there is no such session.
            RefusedError: there is no room.
        """
        if session is not None and session not in self._state.sessions:
            raise ProtocolError("there is no such session")
        if self._state.connections.open >= self._state.connections.most:
            raise RefusedError("the server is full: try again later")
        name, connection = secrets.token_urlsafe(16), _WhepConnection(self._state, sdp, session)
        task = asyncio.ensure_future(connection.run())
        self._open[name] = connection, task
        task.add_done_callback(lambda _: self._open.pop(name, None))
        return name, await asyncio.shield(connection.answer)

    async def close(self, name: str | None = None) -> bool:
        """End one, or all, and wait until that is done; false if there is no such one."""
        found = [each for key, each in self._open.items() if name in (None, key)]
        for connection, _ in found:
            connection.leave()
        await asyncio.gather(*(task for _, task in found), return_exceptions=True)
        return bool(found)


def add_whip(
    app: FastAPI, state: ServerState, webrtc: WebRtcConnections, whep: WhepConnections
) -> None:
    """Add ``/whip`` and ``/whep``."""
    own_page = from_here(state)

    async def offered(request: Request) -> str:
        """The session description of a request that may make one."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/sdp":
            raise HTTPException(415, "an offer is application/sdp")
        async with asyncio.timeout(state.limits.hello_seconds):
            data = await body(request, state.limits)
        await authenticate(state, request)
        if not state.ready:
            raise RefusedError("the server is not ready; try again later")
        return data.decode("utf-8", "replace")

    def created(answer: str, place: str) -> Response:
        headers = {"Location": place}
        return Response(answer, 201, headers, media_type="application/sdp")

    @app.post("/whip", dependencies=[own_page], status_code=201)
    async def whip(request: Request) -> Response:
        """Take a WHIP client's offer (RFC 9725); the address may have fields of ``hello``."""
        with refusals():
            hello = settings(request.query_params, state.styles())
            sdp = await offered(request)
            with state.connections.one():
                name, answer = await webrtc.answer(sdp, hello, WhipTransport)
        return created(answer, f"/whip/{name}")

    @app.post("/whep", dependencies=[own_page], status_code=201)
    async def watch(request: Request, session: str | None = None) -> Response:
        """Take a WHEP client's offer: it is shown the newest session, or that of a name."""
        with refusals():
            name, answer = await whep.answer(await offered(request), session)
        return created(answer, f"/whep/{name}")

    for path, connections in (("/whip", webrtc), ("/whep", whep)):
        app.delete(f"{path}/{{name}}", dependencies=[own_page])(_ending(state, connections))


def _ending(state: ServerState, connections: WebRtcConnections | WhepConnections) -> Any:
    async def leave(name: str, request: Request) -> dict[str, bool]:
        """End a connection by the name in its Location."""
        with refusals():
            await authenticate(state, request)
        if not await connections.close(name):
            raise HTTPException(404, "there is no such connection")
        return {"ok": True}

    return leave
