"""Sessions that end in every way, at any moment: each leaves its seat, session and threads."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from tests import tiny
from tests.server_fixtures import (
    WAIT,
    Server,
    frame_message,
    get,
    pictures,
    serving,
    wait_until,
)
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from stillframe.server.app import create_app
from stillframe.server.client_session import ClientSession, first_of
from stillframe.server.limits import Limits
from stillframe.server.websocket import WebSocketTransport

LIMITS = Limits(
    stall_seconds=0.3, hello_seconds=0.5, idle_seconds=0.5, texts_per_second=5.0,
    frames_per_second=2000.0,
)  # fmt: skip
SEATS = 6
HELLO = {"type": "hello", "prompt": "oil", "width": 96, "height": 64}
CLIP = pictures(24)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe, limits=LIMITS, max_sessions=SEATS) as running:
        yield running


# several things at once


async def ended_by(way: Callable[[], Awaitable[None]], ticks: int) -> list[str]:
    """What became of two that wait for each other's end, one of which ends after some ticks."""
    seen: list[str] = []
    sent = asyncio.get_running_loop().create_future()

    async def ends() -> None:
        for _ in range(ticks):
            await asyncio.sleep(0)
        await way()

    async def sends() -> None:
        try:
            while True:
                async with asyncio.timeout(WAIT):
                    await asyncio.sleep(0)
                    await sent
        finally:
            seen.append("stopped")

    async def done() -> None:
        await asyncio.sleep(0)
        await asyncio.Event().wait()

    try:
        await first_of(ends(), sends(), done())
        seen.append("returned")
    except Exception as error:
        seen.append(str(error))
    return seen


def test_the_first_that_ends_ends_all() -> None:
    async def fails() -> None:
        raise ValueError("of all things")

    async def returns() -> None:
        return

    async def is_cancelled() -> None:
        raise asyncio.CancelledError

    for ticks in range(6):
        assert asyncio.run(ended_by(fails, ticks)) == ["stopped", "of all things"]
        assert asyncio.run(ended_by(returns, ticks)) == ["stopped", "returned"]
        assert asyncio.run(ended_by(is_cancelled, ticks)) == ["stopped", "returned"]


def test_who_waits_for_the_first_can_be_stopped() -> None:
    async def run() -> list[str]:
        seen = []

        async def waits(name: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append(name)

        task = asyncio.ensure_future(first_of(waits("a"), waits("b")))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return sorted(seen)

    assert asyncio.run(run()) == ["a", "b"]


# a send that ends in the very step in which the client goes


async def gone_while_sending(app: FastAPI, ticks: int) -> int:
    """Seats taken after a client went so many steps of the loop before or after a send ended."""
    loop, state = asyncio.get_running_loop(), app.state.server
    said = [{"type": "websocket.connect"}]
    said += [{"type": "websocket.receive", "text": json.dumps(HELLO)}]
    gone: asyncio.Future[None] = loop.create_future()
    sending: asyncio.Future[None] = loop.create_future()
    held: asyncio.Future[None] = loop.create_future()

    async def receive() -> dict[str, Any]:
        if said:
            return said.pop(0)
        await gone
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        if message["type"] == "websocket.send" and not sending.done():
            sending.set_result(None)
            await held

    scope = {"type": "websocket", "headers": [], "path": "/live", "extensions": {}}
    async with asyncio.timeout(WAIT):
        accepted = WebSocket(scope, receive, send)
        await accepted.accept()
        transport = WebSocketTransport(accepted, state)
        talk = asyncio.ensure_future(ClientSession(transport, state).run())
        await sending
        (gone if ticks >= 0 else held).set_result(None)
        for _ in range(abs(ticks)):
            await asyncio.sleep(0)
        for future in (gone, held):
            if not future.done():
                future.set_result(None)
        await asyncio.wait([talk], timeout=3)
        return int(state.open_sessions.open)


def test_a_send_that_ends_as_the_client_goes_keeps_no_seat(pipe: Any) -> None:
    async def run() -> list[int]:
        app = create_app(pipe, max_sessions=20, limits=Limits(stall_seconds=60.0))
        async with app.state.server.running():
            return [await gone_while_sending(app, ticks) for ticks in range(-8, 9)]

    assert asyncio.run(run()) == [0] * 17


async def closed_by_the_server(app: FastAPI) -> None:
    """A session whose socket the server has closed by itself, as uvicorn does for broken bytes."""
    said = [{"type": "websocket.connect"}]
    said += [{"type": "websocket.receive", "text": json.dumps(HELLO)}]
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def receive() -> dict[str, Any]:
        if not said:
            await gone
        return said.pop(0)

    async def send(message: Any) -> None:
        if message["type"] == "websocket.send":
            raise RuntimeError("Unexpected ASGI message 'websocket.send', after a close")

    state = app.state.server
    scope = {"type": "websocket", "headers": [], "path": "/live", "extensions": {}}
    async with asyncio.timeout(WAIT):
        accepted = WebSocket(scope, receive, send)
        await accepted.accept()
        await ClientSession(WebSocketTransport(accepted, state), state).run()
    assert (state.open_sessions.open, state.sessions) == (0, {})


def test_a_socket_that_the_server_closed_by_itself_is_no_fault(
    pipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        app = create_app(pipe)
        async with app.state.server.running():
            await closed_by_the_server(app)

    asyncio.run(run())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# in every way, at any moment


async def talk(line: ClientConnection, rng: random.Random, frames: int) -> None:
    """Send frames, and read some of what comes."""
    for number in range(frames):
        await line.send(frame_message(number / 10, CLIP[number % 24]))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() / 100)


def reset(line: ClientConnection) -> None:
    """End a connection without a goodbye, as a cable that is pulled."""
    place = line.transport.get_extra_info("socket")
    place.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.transport.abort()


async def end(line: ClientConnection, how: str, rng: random.Random) -> None:
    if how == "bye":
        await line.send('{"type": "bye"}')
    elif how == "close":
        await line.close()
    elif how == "reset":
        reset(line)
    elif how == "half":
        line.transport.write_eof()
    elif how == "garbage":
        await line.send("}{")
    elif how == "flood":
        for _ in range(20):
            await line.send('{"type": "resume"}')
    elif how == "broken":
        line.transport.write(rng.randbytes(64))
    elif how == "deaf":
        line.transport.pause_reading()
        await talk(line, rng, 200)
    if how != "silent" and rng.random() < 0.5:
        reset(line)


WAYS = ["bye", "close", "reset", "half", "garbage", "flood", "broken", "silent", "deaf"]


async def one_session(server: Server, rng: random.Random) -> str | None:
    """A client from its hello to an end; says how it ended, None if it had no session."""
    how, begun = rng.choice(WAYS), False
    hello = {**HELLO, "policy": rng.choice(["all", "latest"])}
    try:
        async with connect(
            server.url, open_timeout=WAIT, close_timeout=0.2, compression=None
        ) as line:
            if rng.random() < 0.95:
                await line.send(json.dumps(hello))
            if rng.random() < 0.9:  # the others do not wait for their session
                async with asyncio.timeout(WAIT):
                    begun = json.loads(await line.recv())["type"] == "ready"
            if rng.random() < 0.8:
                await talk(line, rng, rng.randrange(40))
            if rng.random() < 0.2:
                await line.send(json.dumps({"type": "update", "prompt": rng.choice(["x", "\0"])}))
            await asyncio.sleep(rng.random() ** 3 / 4)
            await end(line, how, rng)
            async with asyncio.timeout(rng.random()):
                async for _ in line:
                    pass
    except (ConnectionClosed, OSError, TimeoutError, RuntimeError):
        pass
    return how if begun else None


async def all_sessions(server: Server, count: int) -> dict[str, int]:
    """How many sessions ended in which way, of so many or a few more."""
    ways: dict[str, int] = {}

    async def clients(seed: int) -> None:
        rng = random.Random(seed)
        while sum(ways.values()) < count:
            how = await one_session(server, rng)
            if how is not None:
                ways[how] = ways.get(how, 0) + 1
            else:
                await asyncio.sleep(0.02)  # the server is full, say

    async with asyncio.TaskGroup() as group:
        for seed in range(SEATS + 1):
            group.create_task(clients(seed))
    return ways


def soak(server: Server, count: int) -> None:
    def threads() -> int:
        names = [each.name for each in threading.enumerate()]
        return len([n for n in names if n.startswith("stillframe-") and "pool" not in n])

    before = threads()
    ways = asyncio.run(all_sessions(server, count))
    assert sum(ways.values()) >= count
    assert count < 500 or set(ways) == set(WAYS)
    wait_until(lambda: server.state.connections.open == 0)
    assert (server.state.open_sessions.open, server.state.sessions) == (0, {})
    assert len(server.state.supervisor.worker) == 0
    wait_until(lambda: threads() == before)
    assert get(server, "/api/status").json()["worker_failures"] == 0
    # and as many as ever may come in
    asyncio.run(everybody(server))
    wait_until(lambda: server.state.connections.open == 0)
    assert (server.state.open_sessions.open, server.state.sessions) == (0, {})
    wait_until(lambda: len(server.state.unauthenticated) == 0)


async def everybody(server: Server) -> None:
    lines = []
    for _ in range(SEATS):  # no hello is waited for, nor anything after it, for long
        lines.append(await connect(server.url, open_timeout=WAIT, compression=None))
        await lines[-1].send(json.dumps(HELLO))
    for line in lines:
        async with asyncio.timeout(WAIT):
            assert json.loads(await line.recv())["type"] == "ready"
    for line in lines:
        await line.close()


def test_sessions_that_end_in_every_way_leave_their_seats(server: Server) -> None:
    soak(server, 60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_sessions_that_end_in_every_way_leave_their_seats(server: Server) -> None:
    soak(server, 2000)
