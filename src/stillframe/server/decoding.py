"""Limits for what aiortc decodes of a client's video, and an end to it that nobody waits for.

aiortc keeps every frame that came until its thread has decoded it, whatever its size, and lets the
event loop wait for that thread. Here few frames wait, each is looked at first, and the thread is
waited for elsewhere. That is done to what aiortc keeps to itself, for want of anything else:
`limit_decoding` refuses a version that has none of it. Needs ``[webrtc]``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from aiortc import RTCRtpReceiver, RTCRtpSender

from stillframe.errors import StillframeError
from stillframe.server.h264 import h264_size
from stillframe.server.limits import Limits, RateLimit
from stillframe.server.pictures import check_size
from stillframe.server.protocol import ProtocolError

__all__ = ["DecodeQueue", "codecs", "limit_decoding", "vp8_size"]

_QUEUE = "_RTCRtpReceiver__decoder_queue"
_THREAD = "_RTCRtpReceiver__decoder_thread"
_ERROR = "_RTCRtpReceiver__decoder_error"
_PACKET = "_handle_rtp_packet"
_WAITING = 8
_SOURCES = 8
"""Numbers under which a client may send: its video's, that of what is sent again, and spare."""


def codecs(*, h264: bool = False) -> list[Any]:
    """What is decoded: VP8, and H.264 where asked for; both tell their size before they are."""
    known = RTCRtpSender.getCapabilities("video").codecs
    wanted = ("video/vp8", "video/rtx", *(["video/h264"] if h264 else []))
    return [codec for codec in known if codec.mimeType.lower() in wanted]


def vp8_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a VP8 frame begins, None if it goes on with those (RFC 6386, 9.1).

    Raises:
        ProtocolError: it is no frame.
    """
    if len(data) < 3:
        raise ProtocolError("a video frame ends within its header")
    if data[0] & 1:
        return None
    if len(data) < 10 or data[3:6] != b"\x9d\x01\x2a":
        raise ProtocolError("a video frame is damaged: it has no size")
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    if not width or not height:
        raise ProtocolError("a video frame is damaged: it has no size")
    return width, height


class _Gone:
    """Stands where aiortc waits for its thread."""

    def join(self) -> None:
        """Wait for nothing."""


class DecodeQueue(queue.Queue[Any]):
    """What waits to be decoded, in the place of a receiver's own queue.

    A frame that is one too many, too large or damaged is dropped, and so are those that build upon
    it, until the client sends a whole one; it is asked for that.

    Attributes:
        dropped: how many were.
    """

    def __init__(
        self, receiver: RTCRtpReceiver, limits: Limits, unusable: Callable[[str], None]
    ) -> None:
        super().__init__()
        self.dropped = 0
        self._receiver, self._limits, self._unusable = receiver, limits, unusable
        self._rate = RateLimit(limits.frames_per_second, time.monotonic)
        self._threads: list[threading.Thread] = []
        self._whole = False

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Take a frame, or None for the end; by aiortc, in the event loop."""
        if item is None:
            self._end()
        elif self._wanted(item[0].mimeType.lower(), item[1].data):
            super().put(item)
        else:
            self.dropped += 1
            # aiortc asks for a whole frame with the next packet
            getattr(self._receiver, _ERROR).set()

    def _wanted(self, codec: str, data: bytes) -> bool:
        try:
            size = h264_size(data) if codec == "video/h264" else vp8_size(data)
            if size is not None:
                check_size(*size, self._limits)
            if len(data) > self._limits.message_bytes:
                raise ProtocolError(f"a video frame has {len(data)} bytes")
        except ProtocolError as error:
            self._whole = False
            self._unusable(str(error))
            return False
        self._whole = self._whole or size is not None
        # every frame counts, so that whole ones alone do not come through
        self._whole &= self._rate.allows() and self.qsize() < _WAITING
        return self._whole

    def _end(self) -> None:
        """Forget what waits, and keep the thread from being waited for in the event loop."""
        with self.mutex:
            self.queue.clear()
        thread = getattr(self._receiver, _THREAD)
        super().put(None)
        if isinstance(thread, threading.Thread):
            self._threads.append(thread)
            setattr(self._receiver, _THREAD, _Gone())

    def join(self) -> None:
        """Wait for the thread; not in the event loop."""
        for thread in self._threads:
            thread.join()


def limit_decoding(
    receiver: RTCRtpReceiver,
    limits: Limits,
    unusable: Callable[[str], None],
    leave: Callable[[], None],
) -> DecodeQueue:
    """Bound what a receiver decodes, before it begins.

    Args:
        unusable: told why a frame is dropped, unless that is for want of room.
        leave: ends the connection of a client that sends under too many numbers.

    Raises:
        StillframeError: this aiortc keeps its frames elsewhere.
    """
    if not all(hasattr(receiver, name) for name in (_QUEUE, _THREAD, _ERROR, _PACKET)):
        raise StillframeError("this version of aiortc cannot be bounded; install aiortc 1.16")
    decoding = DecodeQueue(receiver, limits, unusable)
    setattr(receiver, _QUEUE, decoding)
    handle, seen = getattr(receiver, _PACKET), set[int]()

    async def handled(packet: Any, arrival_time_ms: int) -> None:
        seen.add(packet.ssrc)
        if len(seen) > _SOURCES:  # aiortc remembers each
            seen.discard(packet.ssrc)
            leave()
            return
        await handle(packet, arrival_time_ms=arrival_time_ms)

    setattr(receiver, _PACKET, handled)
    return decoding
