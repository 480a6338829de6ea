"""A whole session over a transport that is neither a WebSocket nor WebRTC: two queues in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from tests import tiny
from tests.live_fixtures import BLOCK, file_path, levels

from stillframe.live import EditedFrame
from stillframe.server.access import AccessPolicy
from stillframe.server.client_session import ClientSession
from stillframe.server.limits import Limits, RefusedError
from stillframe.server.messages import Hello, parse_message
from stillframe.server.protocol import ProtocolError
from stillframe.server.state import ServerState
from stillframe.server.supervisor import ThreadSupervisor
from stillframe.server.transport import (
    DisconnectedError,
    Pixels,
    ReceivedFrame,
    Transport,
    UnusableFrameError,
)

WAIT = 60.0
HELLO = {"prompt": "oil", "width": 96, "height": 64, "policy": "all"}


class MemoryTransport:
    """Pixels and texts in queues; nothing is encoded."""

    returns_timestamps = True
    dropped = 0

    def __init__(self, limits: Limits | None = None, **hello: Any) -> None:
        self.limits = limits or Limits()
        self.hello = parse_message(Hello, {**HELLO, **hello})
        self.incoming: asyncio.Queue[str | ReceivedFrame | Exception] = asyncio.Queue()
        self.texts: list[dict[str, Any]] = []
        self.maps: list[bytes] = []
        self.frames: list[tuple[float, Pixels]] = []
        self.ends: list[Exception | None] = []
        self.came = asyncio.Event()

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[Hello]:
        yield self.hello

    async def start(self, width: int, height: int, unusable: Callable[[str], None]) -> None:
        self.size = width, height

    async def receive(self) -> str | ReceivedFrame:
        message = await self.incoming.get()
        if isinstance(message, Exception):
            raise message
        return message

    def encode(self, frame: EditedFrame, timestamp: float, quality: int) -> bytes:
        self.frames.append((timestamp, frame.pixels))
        return b"frame"

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.texts.append(json.loads(message))
        elif message != b"frame":
            self.maps.append(message)
        self.came.set()

    async def close(self, error: Exception | None) -> None:
        self.ends.append(error)

    def abort(self) -> None:
        self.ends.append(TimeoutError())

    # for the test

    def say(self, kind: str, **fields: Any) -> None:
        self.incoming.put_nowait(json.dumps({"type": kind, **fields}))

    def show(self, pixels: Pixels, timestamp: float) -> None:
        self.incoming.put_nowait(ReceivedFrame(timestamp, lambda: pixels))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                self.came.clear()
                await self.came.wait()

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [text for text in self.texts if text["type"] == kind]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


def run(pipe: Any, client: Callable[[ServerState], Any]) -> None:
    async def served() -> None:
        state = ServerState(ThreadSupervisor(pipe), AccessPolicy("127.0.0.1"), 1, Limits())
        async with state.running():
            await client(state)
        assert (state.open_sessions.open, state.sessions) == (0, {})

    asyncio.run(served())


def test_a_session_over_any_transport_is_the_edit_of_the_file(pipe: Any) -> None:
    clip = levels(3 * BLOCK, 64, 96)

    async def client(state: ServerState) -> None:
        transport = MemoryTransport(refresh=3)
        session = asyncio.ensure_future(ClientSession(transport, state).run())
        for number, pixels in enumerate(clip):
            transport.show(pixels, 1e6 + number / 10)
        await transport.until(lambda: len(transport.told("telemetry")) == 3)
        # what is said of a block comes before its pictures
        await transport.until(lambda: len(transport.frames) == len(clip))
        transport.incoming.put_nowait(UnusableFrameError("it is torn"))
        transport.show(clip[0], 0.0)
        transport.say("update", tolerance=-1)
        transport.say("update", prompt="sepia", gop=2)
        transport.say("pause")
        await transport.until(lambda: bool(transport.told("updated")))
        transport.say("bye")
        await session
        assert transport.size == (96, 64)
        assert transport.texts[0]["type"] == "ready"
        assert [text["about"] for text in transport.told("notice")] == ["frame", "update"]
        assert transport.told("updated")[0]["what"] == ["prompt", "gop"]
        assert len(transport.maps) == 3
        assert transport.ends == [None]
        times, edited = zip(*transport.frames, strict=True)
        assert list(times) == [1e6 + number / 10 for number in range(len(clip))]
        control = tiny_control()
        expected = file_path(pipe, clip, control=control, text=pipe.encode_prompt("oil"))
        assert np.array_equal(np.stack(edited), expected)

    run(pipe, client)


def tiny_control() -> Any:
    from stillframe.controls import Controls, Refresh

    return Controls(Refresh(3))


def test_every_end_of_a_session_reaches_its_transport(pipe: Any) -> None:
    async def client(state: ServerState) -> None:
        async def ends(*said: str | Exception, limits: Limits | None = None) -> list[Any]:
            transport = MemoryTransport(limits)
            for message in said:
                transport.incoming.put_nowait(message)
            async with asyncio.timeout(WAIT):
                await ClientSession(transport, state).run()
            return transport.ends

        assert await ends(DisconnectedError()) == []
        [error] = await ends("{")
        assert isinstance(error, ProtocolError)
        [error] = await ends(limits=Limits(idle_seconds=0.1))
        assert str(error) == "nothing was sent for 0.1 s"
        [error] = await ends(OSError("of all things"))
        assert str(error) == "the server failed; its log says how"
        with state.open_sessions.one():
            [error] = await ends()
            assert isinstance(error, RefusedError)

    run(pipe, client)


def test_a_client_that_reads_nothing_is_cut_off(pipe: Any) -> None:
    class Full(MemoryTransport):
        async def send(self, message: str | bytes) -> None:
            await asyncio.Event().wait()

    async def client(state: ServerState) -> None:
        transport: Transport = Full(Limits(stall_seconds=0.1))
        async with asyncio.timeout(WAIT):
            await ClientSession(transport, state).run()
        assert isinstance(transport, Full)
        assert [type(end) for end in transport.ends] == [TimeoutError]

    run(pipe, client)
