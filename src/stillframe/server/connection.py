"""One client's socket: its messages in, its session's frames out, and the end of both.

The event loop reads and sends; pictures are decoded, and sessions opened, changed and closed, on
threads of a pool; a thread of the connection's own waits for edited frames and encodes them. It
does not know how frames are edited, or what other clients do.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar, cast

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from numpy.typing import NDArray

from stillframe.live import EditedFrame, Session, SessionError
from stillframe.server import messages
from stillframe.server.client_config import ClientConfig
from stillframe.server.doorkeeper import KNOWN, client_address
from stillframe.server.guard import Rate, RefusedError, token_in
from stillframe.server.hall import Hall
from stillframe.server.messages import Command, Hello, ProtocolError, Update, UpdateError
from stillframe.server.outgoing import Outgoing
from stillframe.server.pictures import decode_picture, encode_picture
from stillframe.server.tasks import first_of
from stillframe.server.timeline import Timeline
from stillframe.server.unusable import Unusable

__all__ = ["ABORT", "FAILED", "Connection", "StalledError"]

#: The ASGI extension by which a server lets an application cut a connection off.
ABORT = "stillframe.abort"

#: What a client is told of a fault that is not its own.
FAILED = "the server failed; its log says how"

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_QUALITY = 85
_DONE, _FAILED, _RULES, _BUSY = 1000, 1011, 1008, 1013


class StalledError(Exception):
    """The client takes nothing any more."""


class Connection:
    """A socket from its first message to its last; see `run`."""

    def __init__(self, socket: WebSocket, hall: Hall) -> None:
        self._socket, self._hall, self._limits = socket, hall, hall.limits
        self._id = secrets.token_hex(4)
        self._config = ClientConfig(hall.defaults)
        self._timeline, self._unusable = Timeline(), Unusable(self._frame_notice)
        self._last: NDArray[np.uint8] | None = None
        self._picture = b""
        self._frames = Rate(hall.limits.frames_per_second, time.monotonic)
        self._texts = Rate(hall.limits.texts_per_second, time.monotonic)

    async def run(self) -> None:
        """Serve the client to the end. Whatever it does, only its own socket is closed."""
        await self._socket.accept()
        try:
            await self._converse()
        except WebSocketDisconnect:
            return
        except StalledError:
            self._abort()
        except RefusedError as error:
            await self._end(_BUSY, "refused", reason=str(error))
        except ProtocolError as error:
            await self._end(error.code, "error", message=str(error))
        except SessionError as error:
            await self._end(_FAILED, "error", message=self._told(error))
        except Exception:
            _log.exception("connection %s failed", self._id)
            await self._end(_FAILED, "error", message=FAILED)
        else:
            await self._end(_DONE, None)

    def _told(self, error: SessionError) -> str:
        """What a client hears of its session's end; what was not foreseen is for the log alone."""
        if not error.trace:
            return str(error)
        _log.error("connection %s: %s\n%s", self._id, error, error.trace)
        return FAILED

    async def _end(self, code: int, kind: str | None, **sentence: str) -> None:
        """Say a last word and close; a client that does not listen is cut off."""
        text = None if kind is None else messages.encode(kind, **sentence)
        # all that fits into the frame that closes
        reason = " ".join(sentence.values()).encode()[:120].decode(errors="ignore")
        seconds = min(self._limits.stall_seconds, 5.0)
        try:
            async with asyncio.timeout(seconds):
                await self._part(code, reason, text)
        except TimeoutError:
            self._abort()
        except (WebSocketDisconnect, RuntimeError):  # it was faster
            return

    async def _part(self, code: int, reason: str, text: str | None) -> None:
        if text is not None:
            await self._socket.send_text(text)
        await self._socket.close(code, reason)

    def _abort(self) -> None:
        _log.info("connection %s takes nothing any more and is cut off", self._id)
        abort = self._socket.scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort["abort"]()

    async def _converse(self) -> None:
        seconds = self._limits.hello_seconds
        try:
            async with asyncio.timeout(seconds):
                first = await self._listen()
        except TimeoutError as error:
            raise ProtocolError(f"no hello within {seconds:g} s") from error
        text = isinstance(first, str)
        said = messages.parse_text(str(first), self._limits.text_bytes) if text else None
        if not isinstance(said, Hello):
            raise ProtocolError("the first message is hello")
        given = said.token or token_in(self._socket.cookies)
        if not await self._hall.entry.admits(given, client_address(self._socket.scope)):
            raise ProtocolError("the token is missing or wrong")
        known = self._socket.scope.get("extensions", {}).get(KNOWN)
        if known is not None:
            known["known"]()
        with self._hall.sockets.seat(), self._hall.seats.seat():
            await self._serve(said)

    async def _serve(self, hello: Hello) -> None:
        """A session from its beginning to its end."""
        width, height = self._hall.size(hello)
        policy = cast(Literal["latest", "all"], hello.policy or "latest")
        self._session = await self._off_loop(lambda: self._open(hello, policy, width, height))
        self._quality = hello.quality or _QUALITY
        self._outgoing: Outgoing[str | bytes] = Outgoing(
            self._limits.queued_frames, drops=policy == "latest"
        )
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pump = threading.Thread(target=self._pump, name=f"stillframe-{self._id}", daemon=True)
        try:
            self._hall.sessions[self._id] = self._session
            greeting = self._hall.greeting
            self._tell("ready", session=self._id, width=width, height=height, **greeting)
            pump.start()
            await first_of(self._receive(), self._send(), self._end_of_session())
        finally:
            self._hall.sessions.pop(self._id, None)
            self._outgoing.close()
            await self._off_loop(self._session.close)
            if pump.ident is not None:
                await self._off_loop(pump.join)

    async def _end_of_session(self) -> None:
        await self._ended

    def _open(
        self, hello: Hello, policy: Literal["latest", "all"], width: int, height: int
    ) -> Session:
        """The session that a client asks for.

        Raises:
            ProtocolError: something is out of range.
        """
        settings = {} if hello.strength is None else {"strength": hello.strength}
        options: dict[str, Any] = {"policy": policy, "width": width, "height": height, **settings}
        try:
            self._config = self._config.changed(hello)
            return self._hall.keeper.open(hello.prompt, config=self._config.config, **options)
        except ValueError as error:
            raise ProtocolError(str(error)) from error

    def _off_loop(self, action: Callable[[], _T]) -> Awaitable[_T]:
        return asyncio.get_running_loop().run_in_executor(self._hall.pool, action)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._outgoing.put(messages.encode(kind, **fields))

    # in

    async def _listen(self) -> Any:
        """The client's next message: a text, or what `_take_frame` takes.

        Raises:
            WebSocketDisconnect: it has gone.
        """
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        text, data = message.get("text"), message.get("bytes")
        return text if text is not None else data or b""

    async def _receive(self) -> None:
        """Do what the client says, until it says bye."""
        idle = self._limits.idle_seconds
        while True:
            try:
                async with asyncio.timeout(idle):
                    message = await self._listen()
            except TimeoutError as error:
                raise ProtocolError(f"nothing was sent for {idle:g} s") from error
            if not isinstance(message, str):
                await self._take_frame(message)
            elif await self._obey(message):
                return

    def _count_frame(self) -> None:
        if not self._frames.allows():
            most = self._limits.frames_per_second
            raise ProtocolError(f"more than {most:g} frames a second were sent")

    async def _take_frame(self, data: Any) -> None:
        self._count_frame()
        limits = self._limits
        try:
            frame = messages.parse_frame(data, limits.message_bytes)
            time = self._timeline.take(frame.timestamp)
            pixels = await self._off_loop(lambda: decode_picture(frame.picture, limits))
            await self._push(pixels, time)
        except (ProtocolError, ValueError) as error:  # the others may be good
            self._unusable.add(str(error))

    async def _push(self, pixels: NDArray[np.uint8], timestamp: float) -> None:
        """Give the session a frame: uint8 (H, W, 3), and seconds.

        Raises:
            ValueError: the frame cannot be used.
        """
        # where nothing is dropped this waits: the client is held back by not being read
        await self._off_loop(lambda: self._session.push(pixels, timestamp))

    def _frame_notice(self, message: str, count: int) -> None:
        self._tell("notice", about="frame", message=message, unusable=count)

    async def _obey(self, text: str) -> bool:
        """Do what a text message says; true if that is the end.

        An update that is refused changes nothing, and ends nothing: the client is told.
        """
        if not self._texts.allows():
            most = self._limits.texts_per_second
            raise ProtocolError(f"more than {most:g} text messages a second were sent")
        try:
            said = messages.parse_text(text, self._limits.text_bytes)
            if isinstance(said, Hello):
                raise ProtocolError("hello was said before")
            if isinstance(said, Update):
                await self._change(said)
        except UpdateError as error:
            self._tell("notice", about="update", message=str(error))
            return False
        if isinstance(said, Update):
            return False
        if said.name != "bye":
            await self._off_loop(self._command(said))
        return said.name == "bye"

    def _command(self, said: Command) -> Callable[[], None]:
        session = self._session
        return {"pause": session.pause, "resume": session.resume, "reset": session.reset}[said.name]

    async def _change(self, update: Update) -> None:
        def change() -> ClientConfig:
            config = self._config.changed(update)
            changes = config.changes(self._config)
            if update.strength is not None:
                changes["strength"] = update.strength
            self._session.change(prompt=update.prompt, **changes)
            return config

        try:
            self._config = await self._off_loop(change)
        except ValueError as error:
            raise UpdateError(str(error)) from error
        last = self._session.telemetry.last
        # a block may be running, which is not affected
        started = self._session.state != "ready"
        done = 0 if last is None else last.block + 1
        self._tell("updated", what=update.what, from_block=done + started)

    # out

    async def _send(self) -> None:
        """Send what there is, in order.

        Raises:
            StalledError: the client takes nothing.
        """
        while True:
            message = await self._outgoing.get()
            try:
                async with asyncio.timeout(self._limits.stall_seconds):
                    await self._pass_on(message)
            except TimeoutError as error:
                raise StalledError from error

    async def _pass_on(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self._socket.send_text(message)
        else:
            await self._socket.send_bytes(message)

    def _pump(self) -> None:
        """Wait for edited frames, encode them, and queue them; a thread's work."""
        error: BaseException | None = None
        try:
            reported = -1
            for frame in self._session:
                if frame.block > reported:
                    self._report(frame, reported)
                    reported = frame.block
                self._deliver(frame)
        except BaseException as failure:
            error = failure
        ended = self._ended

        def finish() -> None:
            if ended.done():
                return
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

        if not ended.get_loop().is_closed():
            ended.get_loop().call_soon_threadsafe(finish)

    def _deliver(self, frame: EditedFrame) -> None:
        """Queue an edited frame, on the pump's thread."""
        # where nothing changes, the frames of block after block are the same
        if self._last is None or not np.array_equal(frame.pixels, self._last):
            self._last = frame.pixels
            self._picture = encode_picture(frame.pixels, self._quality)
        stamp = self._stamp(frame.timestamp)
        self._outgoing.put(messages.pack_frame(stamp, self._picture), frame=True)

    def _stamp(self, time: float) -> float:
        """What the client knows a frame's time as."""
        return self._timeline.of(time)

    def _unsent(self) -> int:
        """Edited frames that were dropped because the client is too slow."""
        return self._outgoing.dropped

    def _report(self, frame: EditedFrame, before: int) -> None:
        """Tell of a frame's block, and of those since another that nothing came out with."""
        session = self._session
        percentiles = [session.telemetry.percentile("latency", share) for share in (0.5, 0.95)]
        for block in session.telemetry.blocks:
            if before < block.block <= frame.block:
                lost = self._unsent(), self._unusable.count
                text = messages.telemetry(block, percentiles, session.memory, *lost)
                self._outgoing.put(text)
                self._outgoing.put(messages.pack_map(self._stamp(frame.timestamp), block.keep))
