"""A client's WebRTC connection as a transport: an offer in, an answer out, and video both ways.

Pictures go as video tracks, everything else as messages over one data channel. Needs ``[webrtc]``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame

from stillframe.live import EditedFrame, SessionError
from stillframe.server.client_session import ClientSession
from stillframe.server.decoding import codecs, limit_decoding
from stillframe.server.messages import Hello
from stillframe.server.pictures import check_size
from stillframe.server.protocol import UNREADABLE, ProtocolError
from stillframe.server.sdp import checked_offer
from stillframe.server.send_queue import SendQueue
from stillframe.server.state import ServerState
from stillframe.server.transport import (
    DisconnectedError,
    Pixels,
    ReceivedFrame,
    UnusableFrameError,
    last_message,
)

__all__ = ["CLOCK", "EditedTrack", "WebRtcConnections", "WebRtcTransport", "new_peer"]

_log = logging.getLogger(__name__)
#: Seconds of a tick of edited frames.
CLOCK = Fraction(1, 90_000)
_PACE = 0.95
"""Frames leave a little faster than they were taken, so that a delay wears off."""
_MOST_WAITING = 64
_BUFFERED = 64 * 2**10
_CLOSE_SECONDS = 10.0


class EditedTrack(MediaStreamTrack):
    """Edited frames with their times, paced: they come a block at a time.

    Attributes:
        frames: what waits; filled by a session's thread.
    """

    kind = "video"

    def __init__(self, most: int) -> None:
        super().__init__()
        self.frames: SendQueue[VideoFrame] = SendQueue(most, drops=True)
        self._due, self._before = 0.0, 0.0

    async def recv(self) -> VideoFrame:
        """The next frame, when it is due."""
        frame = await self.frames.get()
        assert frame.time is not None
        now = asyncio.get_running_loop().time()
        step = min(max(frame.time - self._before, 0.0), 1.0)
        self._due, self._before = max(now, self._due + _PACE * step), frame.time
        await asyncio.sleep(self._due - now)
        return frame


def new_peer() -> RTCPeerConnection:
    """A connection that asks no servers: nobody outside is asked for this computer's address."""
    return RTCPeerConnection(RTCConfiguration(iceServers=[]))


class WebRtcTransport:
    """One client's WebRTC connection; see `Transport`, and call `release` in the end.

    Args:
        state: of the server.
        sdp: the offer's session description.
        hello: that came with it; its token is right.
        one_way: whether the client sends and is sent nothing: WHIP, without a data channel.

    Attributes:
        answer: the session description that answers the offer, or why there is none.
    """

    returns_timestamps = False  # an encoder's times must rise

    def __init__(
        self, state: ServerState, sdp: str, hello: Hello, *, one_way: bool = False
    ) -> None:
        self.limits = state.limits
        direction = "recvonly" if one_way else "sendrecv"
        self._sdp, self._hello = checked_offer(sdp, one_way=one_way), hello
        self._size = 0, 0
        self._peer = new_peer()
        self._edited = EditedTrack(self.limits.queued_frames)
        both = self._peer.addTransceiver("video" if one_way else self._edited, direction)
        both.setCodecPreferences(codecs(h264=one_way))
        self._decoding = limit_decoding(both.receiver, self.limits, self._drop, self.leave)
        loop = asyncio.get_running_loop()
        self._unusable: Callable[[str], None] = lambda why: None
        self._incoming: asyncio.Queue[str | VideoFrame | None] = asyncio.Queue()
        self._channel: asyncio.Future[RTCDataChannel] = loop.create_future()
        self._left: asyncio.Future[None] = loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self.answer: asyncio.Future[str] = loop.create_future()

    @property
    def dropped(self) -> int:
        """Edited frames that waited too long to be sent."""
        return self._edited.frames.dropped

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[Hello]:
        """The hello that came with the offer."""
        yield self._hello

    async def start(self, width: int, height: int, unusable: Callable[[str], None]) -> None:
        """Answer the offer, and wait for the data channel."""
        self._size, self._unusable = (width, height), unusable
        self._peer.on("track", self._on_track)
        self._peer.on("datachannel", self._on_channel)
        self._peer.on("connectionstatechange", self._on_state)
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(self._sdp, "offer"))
            self._refuse_sound()
            answer = await self._peer.createAnswer()
        except Exception as error:  # broken descriptions fail in every way there is
            raise ProtocolError("the offer's sdp cannot be used", UNREADABLE) from error
        await self._peer.setLocalDescription(answer)
        self.answer.set_result(self._peer.localDescription.sdp)
        await self._connected()

    def _refuse_sound(self) -> None:
        for each in self._peer.getTransceivers():
            if each.kind == "audio":
                each.direction = "inactive"

    async def _connected(self) -> None:
        """Wait for the data channel."""
        seconds = self.limits.hello_seconds
        try:
            async with asyncio.timeout(seconds):
                either: set[asyncio.Future[Any]] = {self._channel, self._left}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            raise ProtocolError(f"no data channel within {seconds:g} s") from error
        if not self._channel.done():
            raise DisconnectedError

    def leave(self) -> None:
        """End it."""
        if not self._left.done():
            self._left.set_result(None)
        self._incoming.put_nowait(None)

    async def release(self) -> None:
        """Give back all that there is, whatever of it fails."""
        if not self.answer.done():
            self.answer.set_exception(SessionError("the connection ended before it was answered"))
        self._edited.frames.close()
        self._edited.stop()
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._peer.close()
        except Exception:
            _log.exception("a WebRTC connection could not be closed")
        await asyncio.to_thread(self._decoding.join)

    # in

    def _drop(self, why: str) -> None:
        """A frame is dropped before it is decoded."""
        self._unusable(why)

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "video":
            self._tasks.add(asyncio.ensure_future(self._watch(track)))

    async def _watch(self, track: MediaStreamTrack) -> None:
        """Take every frame as it comes: the track would keep them without end."""
        try:
            while True:
                frame = await track.recv()
                # those that nobody can take are as those that were never sent
                if self._incoming.qsize() < 4 and isinstance(frame, VideoFrame):
                    self._incoming.put_nowait(frame)
        except MediaStreamError:
            self.leave()

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._channel.done():
            channel.close()
            return
        channel.on("message", self._on_text)
        channel.on("close", self.leave)
        self._channel.set_result(channel)

    def _on_text(self, message: str | bytes) -> None:
        if self._incoming.qsize() > _MOST_WAITING:
            self.leave()
        elif isinstance(message, str):
            self._incoming.put_nowait(message)

    def _on_state(self) -> None:
        if self._peer.connectionState in ("failed", "closed"):
            self.leave()

    async def receive(self) -> str | ReceivedFrame:
        """The next text or frame."""
        message = await self._incoming.get()
        if message is None:
            raise DisconnectedError
        if isinstance(message, str):
            return message
        try:
            check_size(message.width, message.height, self.limits)
        except ProtocolError as error:
            raise UnusableFrameError(str(error)) from error
        if message.time is None:
            raise UnusableFrameError("a frame has no time")
        return ReceivedFrame(message.time, partial(self._pixels, message))

    def _pixels(self, frame: VideoFrame) -> Pixels:
        # senders change the size with the bandwidth, and another size would begin another stream
        return np.asarray(frame.reformat(*self._size, "rgb24").to_ndarray(), np.uint8)

    # out

    def encode(self, frame: EditedFrame, timestamp: float, quality: int) -> None:
        """Hand a frame to the video track."""
        picture = VideoFrame.from_ndarray(frame.pixels, format="rgb24")
        picture.pts, picture.time_base = round(timestamp / CLOCK), CLOCK
        self._edited.frames.put(picture, frame=True)

    async def send(self, message: str | bytes) -> None:
        """Send a message over the data channel."""
        channel = self._channel.result()
        if channel.readyState == "open":
            channel.send(message)
            while channel.readyState == "open" and channel.bufferedAmount > _BUFFERED:
                await asyncio.sleep(0.02)

    async def close(self, error: Exception | None) -> None:
        """Fail the answer, or say a last word over the data channel, for a second at most."""
        if not self.answer.done():
            if error is not None:
                self.answer.set_exception(error)
            return
        if not self._channel.done() or self._channel.result().readyState != "open":
            return
        channel, (_, _, text) = self._channel.result(), last_message(error)
        if text is not None:
            channel.send(text)
            for _ in range(50):
                if channel.bufferedAmount == 0 or channel.readyState != "open":
                    return
                await asyncio.sleep(0.02)

    def abort(self) -> None:
        """Nothing: `release` follows."""


class WebRtcConnections:
    """The WebRTC connections of a server, by names that cannot be guessed."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._open: dict[str, tuple[WebRtcTransport, asyncio.Task[None]]] = {}

    async def answer(
        self, sdp: str, hello: Hello, make: type[WebRtcTransport] = WebRtcTransport
    ) -> tuple[str, str]:
        """Open a connection: its name, and the answer's session description.

        Raises:
            ProtocolError: the offer cannot be used.
            RefusedError: there is no room.
            SessionError: the model's process has gone.
        """
        # before anything is opened: of a description that is refused there is nothing to close
        name, transport = secrets.token_urlsafe(16), make(self._state, sdp, hello)
        task = asyncio.ensure_future(self._serve(transport))
        self._open[name] = transport, task
        task.add_done_callback(lambda _: self._open.pop(name, None))
        return name, await asyncio.shield(transport.answer)

    async def _serve(self, transport: WebRtcTransport) -> None:
        try:
            await ClientSession(transport, self._state).run()
        finally:
            await transport.release()

    async def close(self, name: str | None = None) -> bool:
        """End one, or all, and wait until that is done; false if there is no such one."""
        found = [each for key, each in self._open.items() if name in (None, key)]
        for transport, _ in found:
            transport.leave()
        ends: list[Awaitable[None]] = [task for _, task in found]
        await asyncio.gather(*ends, return_exceptions=True)
        return bool(found)
