"""A client's session from its first message to its last, over any transport.

The event loop receives and sends; frames are decoded, and sessions opened, changed and closed, on
threads of a pool; a thread of the session's own waits for edited frames and encodes them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from stillframe.live import EditedFrame, Session, SessionError
from stillframe.server import messages, protocol
from stillframe.server.client_config import ClientConfig
from stillframe.server.incoming import RisingTimestamps, UnusableFrames
from stillframe.server.limits import RateLimit, RefusedError
from stillframe.server.messages import Bye, Command, Hello, Update, UpdateError
from stillframe.server.protocol import ProtocolError
from stillframe.server.send_queue import SendQueue
from stillframe.server.state import ServerState
from stillframe.server.transport import (
    FAILED,
    DisconnectedError,
    ReceivedFrame,
    Transport,
    UnusableFrameError,
)

__all__ = ["ClientSession", "first_of"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_QUALITY = 85


class _StalledError(Exception):
    """The client reads nothing any more."""


async def first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Wait until one ends, stop the others, and wait for them; raises what the first one raised."""
    failures: list[Exception] = []
    over = asyncio.Event()

    async def watched(each: Coroutine[Any, Any, None]) -> None:
        try:
            await each
        except Exception as error:
            if not over.is_set():
                failures.append(error)
        finally:
            over.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watched(each)) for each in work]
        await over.wait()
        for task in tasks:
            task.cancel()
    if failures:
        raise failures[0]


class ClientSession:
    """A client's session; see `run`."""

    def __init__(self, transport: Transport, state: ServerState) -> None:
        self._transport, self._state, self._limits = transport, state, transport.limits
        self._id = secrets.token_hex(4)
        self._config = ClientConfig(state.defaults)
        self._timestamps = RisingTimestamps()
        self._unusable = UnusableFrames(self._frame_notice)
        self._frame_rate = RateLimit(self._limits.frames_per_second, time.monotonic)
        self._text_rate = RateLimit(self._limits.texts_per_second, time.monotonic)

    async def run(self) -> None:
        """Serve the client to the end. Whatever it does, only its own connection is closed."""
        error: Exception | None = None
        try:
            async with self._transport.admitted() as hello:
                with self._state.open_sessions.one():
                    await self._serve(hello)
        except DisconnectedError:
            return
        except _StalledError:
            _log.info("connection %s reads nothing any more and is cut off", self._id)
            self._transport.abort()
            return
        except (ProtocolError, RefusedError) as failure:
            error = failure
        except SessionError as failure:
            error = SessionError(self._told(failure))
        except Exception:
            _log.exception("connection %s failed", self._id)
            error = SessionError(FAILED)
        await self._transport.close(error)

    def _told(self, error: SessionError) -> str:
        """What a client hears of its session's end; what was not foreseen is for the log alone."""
        if not error.trace:
            return str(error)
        _log.error("connection %s: %s\n%s", self._id, error, error.trace)
        return FAILED

    async def _serve(self, hello: Hello) -> None:
        """A session from its beginning to its end."""
        width, height = self._state.size(hello)
        policy, self._quality = hello.policy or "latest", hello.quality or _QUALITY
        self._session = await self._on_pool(lambda: self._open(hello, policy, width, height))
        self._outgoing: SendQueue[str | bytes] = SendQueue(
            self._limits.queued_frames, drops=policy == "latest"
        )
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pump = threading.Thread(target=self._pump, name=f"stillframe-{self._id}", daemon=True)
        try:
            self._state.sessions[self._id] = self._session
            await self._transport.start(width, height, self._unusable.add)
            greeting = {**self._state.greeting(), "style": self._state.matched(hello.prompt)}
            place = {"session": self._id, "device": self._session.device}
            self._tell("ready", **place, width=width, height=height, **greeting)
            pump.start()
            await first_of(self._receive(), self._send(), self._end_of_session())
        finally:
            self._state.sessions.pop(self._id, None)
            self._outgoing.close()
            await self._on_pool(self._session.close)
            if pump.ident is not None:
                await self._on_pool(pump.join)

    async def _end_of_session(self) -> None:
        await self._ended

    def _open(self, hello: Hello, policy: str, width: int, height: int) -> Session:
        """The session that a client asks for.

        Raises:
            ProtocolError: something is out of range.
        """
        try:
            self._config = self._config.with_values(hello.fixed).changed(hello)
            blend = self._state.blend if hello.blend is None else hello.blend
            return self._state.supervisor.open(
                hello.prompt, config=self._config.config, policy=policy, width=width,
                height=height, blend=blend,
            )  # fmt: skip
        except ValueError as error:
            raise ProtocolError(str(error)) from error

    def _on_pool(self, action: Callable[[], _T]) -> Awaitable[_T]:
        return asyncio.get_running_loop().run_in_executor(self._state.pool, action)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._outgoing.put(protocol.encode(kind, **fields))

    # in

    async def _receive(self) -> None:
        """Do what the client says, until it says bye."""
        idle = self._limits.idle_seconds
        while True:
            try:
                async with asyncio.timeout(idle):
                    message = await self._transport.receive()
            except TimeoutError as error:
                raise ProtocolError(f"nothing was sent for {idle:g} s") from error
            except UnusableFrameError as error:
                self._count_frame()
                self._unusable.add(str(error))
                continue
            if isinstance(message, ReceivedFrame):
                await self._take_frame(message)
            elif await self._obey(message):
                return

    def _count_frame(self) -> None:
        if not self._frame_rate.allows():
            most = self._limits.frames_per_second
            raise ProtocolError(f"more than {most:g} frames a second were sent")

    async def _take_frame(self, frame: ReceivedFrame) -> None:
        self._count_frame()
        try:
            timestamp = self._timestamps.take(frame.timestamp)
            pixels = await self._on_pool(frame.decode)
            # where nothing is dropped this waits: the client is held back by not being read
            await self._on_pool(lambda: self._session.push(pixels, timestamp))
        except (ProtocolError, ValueError) as error:  # the others may be good
            self._unusable.add(str(error))

    def _frame_notice(self, message: str, count: int) -> None:
        self._tell("notice", about="frame", message=message, unusable=count)

    async def _obey(self, text: str) -> bool:
        """Do what a text message says; true if that is the end.

        An update that is refused changes nothing, and ends nothing: the client is told.
        """
        if not self._text_rate.allows():
            most = self._limits.texts_per_second
            raise ProtocolError(f"more than {most:g} text messages a second were sent")
        try:
            message = messages.parse_text(text, self._limits.text_bytes)
            if isinstance(message, Hello):
                raise ProtocolError("hello was said before")
            if isinstance(message, Update):
                await self._change(message)
        except UpdateError as error:
            self._tell("notice", about="update", message=str(error))
            return False
        if isinstance(message, Command):
            await self._on_pool(lambda: message.run(self._session))
        return isinstance(message, Bye)

    async def _change(self, update: Update) -> None:
        def change() -> tuple[ClientConfig, int]:
            config = self._config.changed(update)
            changes = config.changes(self._config)
            block = self._session.change(prompt=update.prompt, blend=update.blend, **changes)
            return config, block

        try:
            self._config, block = await self._on_pool(change)
        except ValueError as error:
            raise UpdateError(str(error)) from error
        placed = {} if update.prompt is None else {"style": self._state.matched(update.prompt)}
        self._tell("updated", what=update.what, from_block=block, **placed)

    # out

    async def _send(self) -> None:
        """Send what there is, in order.

        Raises:
            _StalledError: the client reads nothing.
        """
        while True:
            message = await self._outgoing.get()
            try:
                async with asyncio.timeout(self._limits.stall_seconds):
                    await self._transport.send(message)
            except TimeoutError as error:
                raise _StalledError from error

    def _pump(self) -> None:
        """Wait for edited frames, encode them, and queue them; a thread's work."""
        error: BaseException | None = None
        try:
            reported = -1
            for frame in self._session:
                if frame.block > reported:
                    self._report(frame, reported)
                    reported = frame.block
                timestamp = self._stamp(frame)
                self._state.watchers.publish(self._id, frame)
                message = self._transport.encode(frame, timestamp, self._quality)
                if message is not None:
                    self._outgoing.put(message, frame=True)
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

    def _stamp(self, frame: EditedFrame) -> float:
        """What the client knows a frame's time as."""
        back = self._transport.returns_timestamps
        return self._timestamps.of(frame.timestamp) if back else frame.timestamp

    def _report(self, frame: EditedFrame, before: int) -> None:
        """Tell of a frame's block, and of those since another that nothing came out with."""
        session = self._session
        percentiles = [session.telemetry.percentile("latency", share) for share in (0.5, 0.95)]
        for block in session.telemetry.blocks:
            if before < block.block <= frame.block:
                unsent = self._outgoing.dropped + self._transport.dropped
                lost = unsent, self._unusable.count
                text = protocol.telemetry(block, percentiles, session.memory, *lost)
                self._outgoing.put(text)
                patches = protocol.pack_map(self._stamp(frame), block.keep, block.moved)
                self._outgoing.put(patches)
