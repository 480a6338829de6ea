"""What clients can make the server log is bounded, and tells of what was left out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests import tiny
from tests.server_fixtures import WAIT, Server, pictures, serving, wait_until

from stillframe.live import SessionError
from stillframe.server.limits import Limits
from stillframe.server.logs import LogLimit, limit_logs
from stillframe.server.pictures import decode_picture
from stillframe.server.protocol import ProtocolError

TIMES = 30


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe, max_sessions=2) as running:
        yield running


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    limit_logs()  # from here on
    handler, loggers = Lines(), [logging.getLogger(), logging.getLogger("uvicorn")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.lines
    for logger in loggers:
        logger.removeHandler(handler)


def test_so_many_lines_of_a_kind_and_how_many_were_left_out() -> None:
    now = [0.0]
    fewer, handler, log = LogLimit(3, 10.0, lambda: now[0]), Lines(), logging.Logger("any")
    log.addFilter(fewer)
    log.addHandler(handler)

    def say(number: int) -> None:
        log.warning("one %d", number)

    for number in range(100):
        say(number)
        log.error("two")
    assert handler.lines == ["one 0", "two", "one 1", "two", "one 2", "two"]
    now[0] = 11.0
    say(100)
    say(101)
    assert handler.lines[6:] == [
        "one 100 (97 lines like this one were left out before it)", "one 101",
    ]  # fmt: skip
    # kinds are places in a program, of which there are few, and not what was said
    assert len(fewer._kinds) == 2


def no_text(server: Server) -> None:
    with server.client({}) as client:
        client.socket.send([b"\xff\xfe"], text=True)
        assert client.ending()[0] == 1007


def no_text_and_goodbye(server: Server) -> None:
    with server.client({}) as client:
        # in one piece, so that the goodbye has been read when the text is looked at
        masked = b"\x81\x82\0\0\0\0\xff\xfe" + b"\x88\x82\0\0\0\0\x03\xe8"
        client.socket.socket.sendall(masked)
        client.until("closed")


def raw(server: Server, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as line:
        line.sendall(said)
        line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while line.recv(4096):  # to its end, after which nothing of it is logged
                pass


def half_an_offer(server: Server) -> None:
    raw(server, b"POST /webrtc/offer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")


def no_request(server: Server) -> None:
    raw(server, b"\x16\x03\x01" + bytes(99) + b"\r\n\r\n")


def other_upgrade(server: Server) -> None:
    raw(server, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")


@pytest.mark.parametrize(
    "way", [no_text, no_text_and_goodbye, half_an_offer, no_request, other_upgrade]
)
def test_clients_cannot_fill_the_log(
    server: Server, lines: list[str], way: Callable[[Server], None]
) -> None:
    for _ in range(TIMES):
        way(server)
    wait_until(lambda: len(server.state.unauthenticated) == 0)
    assert len(lines) <= 5
    assert "Traceback" not in "".join(lines)


def test_offers_that_end_before_they_are_answered_are_no_fault(
    server: Server, lines: list[str]
) -> None:
    pytest.importorskip("aiortc")
    from tests.test_webrtc import an_offer, freed

    body = json.dumps(asyncio.run(an_offer())).encode()
    head = f"POST /webrtc/offer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(6):
        raw(server, head.encode() + body)  # and gone
        wait_until(lambda: len(server.state.unauthenticated) == 0)
        for peer, task in list(server.app.state.webrtc._open.values()):
            task.get_loop().call_soon_threadsafe(peer.leave)
    freed(server)
    assert lines == []


# what clients are told


def test_pictures_that_cannot_be_decoded_name_no_objects() -> None:
    good = pictures(1)[0]
    for broken in (good[: len(good) // 2], good[:200] + bytes(100), good[:300]):
        with pytest.raises(ProtocolError) as error:
            decode_picture(broken, Limits())
        assert not re.search(r"0x|object|<|Error", str(error.value))


def test_clients_are_told_of_a_fault_and_the_log_of_its_cause(
    server: Server, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise SessionError("block 0 failed with Oops: <_io.BytesIO object at 0x7f>", "Traceback x")

    with server.client({"policy": "all"}) as client:
        client.until("ready")
        [session] = server.state.sessions.values()
        monkeypatch.setattr(session, "push", breaks)
        client.send(0.0, pictures(1)[0])
        assert client.ending()[1]["message"] == "the server failed; its log says how"
    assert "block 0 failed with Oops" in lines[0]
    assert "Traceback x" in lines[0]
