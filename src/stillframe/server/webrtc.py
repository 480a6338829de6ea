"""Live editing over WebRTC: an offer in, an answer out, and a connection that lives on its own.

Pictures go as video tracks, everything else as the socket's messages over one data channel. What
is done with them is in ``connection``. Needs ``[webrtc]``; it does not know how offers are brought,
nor who may bring them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable
from fractions import Fraction
from typing import Any, cast

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
from fastapi import WebSocket
from numpy.typing import NDArray

from stillframe.live import EditedFrame, SessionError
from stillframe.server import messages
from stillframe.server.connection import FAILED, Connection, StalledError
from stillframe.server.decoding import codecs, guarded
from stillframe.server.guard import RefusedError
from stillframe.server.hall import Hall
from stillframe.server.messages import Hello, ProtocolError
from stillframe.server.outgoing import Outgoing
from stillframe.server.pictures import check_size
from stillframe.server.sdp import judged

__all__ = ["Peer", "Peers"]

_log = logging.getLogger(__name__)
_CLOCK = Fraction(1, 90_000)
_UNREADABLE = 1007
_PACE = 0.95
"""Frames leave a little faster than they were taken, so that a delay wears off."""
_MOST_WAITING = 64
_BUFFERED = 64 * 2**10
_PARTING = 10.0


class _EditedTrack(MediaStreamTrack):
    """Edited frames with their times, paced: they come a block at a time.

    Attributes:
        frames: what waits; filled by the pump.
    """

    kind = "video"

    def __init__(self, most: int) -> None:
        super().__init__()
        self.frames: Outgoing[VideoFrame] = Outgoing(most, drops=True)
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


class Peer(Connection):
    """One client's WebRTC connection, from its offer to its end; see `serve`.

    Attributes:
        answer: the session description that answers the offer, or why there is none.
    """

    def __init__(self, hall: Hall, sdp: str, hello: Hello) -> None:
        # no socket: what would use it is replaced below
        super().__init__(cast(WebSocket, None), hall)
        self._sdp, self._hello = judged(sdp), hello
        # no servers: nobody outside is asked for this computer's address
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._edited = _EditedTrack(hall.limits.queued_frames)
        way = self._peer.addTransceiver(self._edited, "sendrecv")
        way.setCodecPreferences(codecs())
        self._decoding = guarded(way.receiver, hall.limits, self._unusable.add, self.leave)
        self._came: asyncio.Queue[str | VideoFrame | None] = asyncio.Queue()
        self._channel: asyncio.Future[RTCDataChannel] = asyncio.get_running_loop().create_future()
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(self) -> None:
        """Answer, and serve the client to the end. Only its own connection is closed."""
        try:
            with self._hall.seats.seat():
                await self._negotiate()
                await self._serve(self._hello)
        except SessionError as error:
            await self._last_word(SessionError(self._told(error)))
        except (ProtocolError, RefusedError) as error:
            await self._last_word(error)
        except StalledError:
            _log.info("connection %s takes nothing any more and is cut off", self._id)
        except Exception:
            _log.exception("connection %s failed", self._id)
            await self._last_word(SessionError(FAILED))
        finally:
            await self._part_for_good()

    async def _part_for_good(self) -> None:
        """Give back all that there is, whatever of it fails."""
        if not self.answer.done():
            self.answer.set_exception(SessionError("the connection ended before it was answered"))
        self._edited.frames.close()
        self._edited.stop()
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(_PARTING):
                await self._peer.close()
        except Exception:
            _log.exception("connection %s could not be closed", self._id)
        await asyncio.to_thread(self._decoding.join)

    def leave(self) -> None:
        """End it."""
        if not self._left.done():
            self._left.set_result(None)
        self._came.put_nowait(None)

    async def _negotiate(self) -> None:
        """Take the offer in; the answer follows when the session is open."""
        self._peer.on("track", self._track_came)
        self._peer.on("datachannel", self._channel_came)
        self._peer.on("connectionstatechange", self._state_changed)
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(self._sdp, "offer"))
            self._prepared = await self._peer.createAnswer()
        except Exception as error:  # broken descriptions fail in every way there is
            raise ProtocolError("the offer's sdp cannot be used", _UNREADABLE) from error

    async def _receive(self) -> None:
        """Answer, wait for the data channel, and do what the client says until it goes."""
        await self._peer.setLocalDescription(self._prepared)
        self.answer.set_result(self._peer.localDescription.sdp)
        seconds = self._limits.hello_seconds
        try:
            async with asyncio.timeout(seconds):
                either: set[asyncio.Future[Any]] = {self._channel, self._left}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            raise ProtocolError(f"no data channel within {seconds:g} s") from error
        if not self._channel.done():
            return
        await super()._receive()

    async def _last_word(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            return
        if not self._channel.done() or self._channel.result().readyState != "open":
            return
        channel = self._channel.result()
        if isinstance(error, RefusedError):
            channel.send(messages.encode("refused", reason=str(error)))
        else:
            channel.send(messages.encode("error", message=str(error)))
        await self._drained(channel)

    async def _drained(self, channel: RTCDataChannel, most: int = 0) -> None:
        """Wait until no more than so many bytes wait to be sent, not longer than a second."""
        for _ in range(50):
            if channel.bufferedAmount <= most or channel.readyState != "open":
                return
            await asyncio.sleep(0.02)

    # in

    def _track_came(self, track: MediaStreamTrack) -> None:
        task = asyncio.ensure_future(self._watch(track))
        self._tasks.add(task)

    async def _watch(self, track: MediaStreamTrack) -> None:
        """Take every frame as it comes: the track would keep them without end."""
        try:
            while True:
                frame = await track.recv()
                # those that nobody can take are as those that were never sent
                if self._came.qsize() < 4 and isinstance(frame, VideoFrame):
                    self._came.put_nowait(frame)
        except MediaStreamError:
            self.leave()

    def _channel_came(self, channel: RTCDataChannel) -> None:
        if self._channel.done():
            channel.close()
            return
        channel.on("message", self._text_came)
        channel.on("close", self.leave)
        self._channel.set_result(channel)

    def _text_came(self, message: str | bytes) -> None:
        if self._came.qsize() > _MOST_WAITING:
            self.leave()
        elif isinstance(message, str):
            self._came.put_nowait(message)

    def _state_changed(self) -> None:
        if self._peer.connectionState in ("failed", "closed"):
            self.leave()

    async def _listen(self) -> Any:
        message = await self._came.get()
        # who has gone says bye
        return '{"type": "bye"}' if message is None else message

    async def _take_frame(self, data: Any) -> None:
        self._count_frame()
        frame = cast(VideoFrame, data)
        # senders change the size with the bandwidth, and another size would begin another stream
        width, height = self._hall.size(self._hello)
        try:
            check_size(frame.width, frame.height, self._limits)
            if frame.time is None:
                raise ValueError("a frame has no time")
            time = self._timeline.take(frame.time)
            small = await self._off_loop(
                lambda: frame.reformat(width, height, "rgb24").to_ndarray()
            )
            await self._push(cast("NDArray[np.uint8]", small), time)
        except (ProtocolError, ValueError) as error:  # the others may be good
            self._unusable.add(str(error))

    # out

    def _deliver(self, frame: EditedFrame) -> None:
        picture = VideoFrame.from_ndarray(frame.pixels, format="rgb24")
        picture.pts, picture.time_base = round(frame.timestamp / _CLOCK), _CLOCK
        self._edited.frames.put(picture, frame=True)

    def _stamp(self, time: float) -> float:
        return time  # an encoder's times must rise

    def _unsent(self) -> int:
        return self._edited.frames.dropped

    async def _pass_on(self, message: str | bytes) -> None:
        channel = await asyncio.shield(self._channel)
        if channel.readyState == "open":
            channel.send(message)
            while channel.readyState == "open" and channel.bufferedAmount > _BUFFERED:
                await asyncio.sleep(0.02)


class Peers:
    """The WebRTC connections of a server, by names that cannot be guessed."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Peer, asyncio.Task[None]]] = {}

    async def answer(self, hall: Hall, sdp: str, hello: Hello) -> tuple[str, str]:
        """Open a connection: its name, and the answer's session description.

        Raises:
            ProtocolError: the offer cannot be used.
            RefusedError: there is no room.
            SessionError: the model's process has gone.
        """
        # before anything is opened: of a description that is refused there is nothing to close
        name, peer = secrets.token_urlsafe(16), Peer(hall, sdp, hello)
        task = asyncio.ensure_future(peer.serve())
        self._open[name] = peer, task
        task.add_done_callback(lambda _: self._open.pop(name, None))
        return name, await asyncio.shield(peer.answer)

    async def close(self, name: str | None = None) -> bool:
        """End one, or all, and wait until that is done; false if there is no such one."""
        chosen = [each for key, each in self._open.items() if name in (None, key)]
        for peer, _ in chosen:
            peer.leave()
        ends: list[Awaitable[None]] = [task for _, task in chosen]
        await asyncio.gather(*ends, return_exceptions=True)
        return bool(chosen)
