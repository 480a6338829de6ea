"""Who has shown no token keeps nobody out: silent sockets, slow requests, and guesses."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.server_fixtures import WAIT, Server, get, serving, wait_until
from typer.testing import CliRunner

from stillframe.cli.app import app as command_line
from stillframe.cli.listening import _token as token_asked_for
from stillframe.server.access import (
    AccessPolicy,
    TokenCheck,
    UnauthenticatedConnections,
    network_of,
)
from stillframe.server.limits import Limits, RefusedError
from stillframe.server.middleware import content_security_policy

KEY = "a-key-of-16-chars"
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
RIGHT = {"Authorization": f"Bearer {KEY}"}
LIMITS = Limits(
    unauthenticated=12, unauthenticated_each=8, hello_seconds=60.0, request_seconds=60.0
)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe, limits=LIMITS, max_sessions=1, host="0.0.0.0", token=KEY) as running:
        yield running


def silent(server: Server, first: bytes = b"") -> socket.socket:
    """A connection that says no more than this."""
    line = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
    line.sendall(first)
    return line


def ended(line: socket.socket, seconds: float = WAIT) -> bool:
    """Whether the other side ends a connection in time."""
    line.settimeout(seconds)
    try:
        while line.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def silent_sockets(server: Server, count: int) -> list[socket.socket]:
    """WebSockets that say no hello."""
    opened = []
    for _ in range(count):
        opened.append(
            silent(server, f"GET /live HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}".encode())
        )
        assert b" 101 " in opened[-1].recv(999)
    return opened


# a pool of their own


@pytest.mark.parametrize("kind", ["socket", "half a request", "nothing"])
def test_silence_takes_no_seat_and_keeps_nobody_out(server: Server, kind: str) -> None:
    lines: list[socket.socket] = []
    if kind == "socket":
        lines += silent_sockets(server, 30)
    else:
        begun = b"GET / HTTP/1.1\r\nHost: localhost\r\n" if kind == "half a request" else b""
        lines += [silent(server, begun) for _ in range(30)]
    try:
        wait_until(lambda: len(server.state.unauthenticated) == 8)
        assert server.state.connections.open == 0
        assert get(server, "/api/status", headers=RIGHT).status_code == 200
        with server.client({"token": KEY}) as owner:
            owner.works()
            assert (server.state.connections.open, server.state.open_sessions.open) == (1, 1)
            lines += silent_sockets(server, 10)  # whoever has shown it is not sent away for others
            owner.works(10)
    finally:
        for line in lines:
            line.close()
    wait_until(lambda: len(server.state.unauthenticated) == 0)
    wait_until(lambda: server.state.connections.open == 0)


def test_the_one_goes_that_was_silent_longest_of_whoever_has_most() -> None:
    waiting, gone = UnauthenticatedConnections(6, 4), list[str]()

    def come(address: str, name: str) -> Any:
        return waiting.add(address, lambda: gone.append(name))

    a = [come("10.0.0.1", f"a{number}") for number in range(4)]
    waiting.touch(a[0])
    come("10.0.0.1", "a4")
    assert gone == ["a1"]
    come("10.0.0.2", "b0")
    come("10.0.0.3", "c0")
    assert (gone, len(waiting)) == (["a1"], 6)
    come("10.0.0.4", "d0")  # full: of the address that has most
    assert (gone, len(waiting)) == (["a1", "a2"], 6)
    for one in (a[0], a[0], a[1]):  # once is enough, and of those that have gone nothing is left
        waiting.remove(one)
        waiting.touch(one)
    assert len(waiting) == 5


def test_what_counts_as_one_address() -> None:
    assert network_of("2001:db8:1:2::5") == network_of("2001:db8:1:2:ffff::%eth0")
    assert network_of("2001:db8:1:2::5") != network_of("2001:db8:1:3::5")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") != network_of("10.0.0.2")
    assert network_of("") == network_of("")


def test_a_request_comes_in_time_or_not_at_all(pipe: Any) -> None:
    limits = Limits(request_seconds=0.5, hello_seconds=0.5)
    with serving(pipe, limits=limits) as server:
        head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
        drip, again, none = silent(server, head), silent(server, head + b"\r\n"), silent(server)
        begun = time.monotonic()
        # neither a header now and then, nor an answer got, makes the time longer
        while time.monotonic() - begun < 3 and not ended(drip, 0.1):
            try:
                drip.sendall(b"X-A: b\r\n")
            except OSError:
                break
        assert time.monotonic() - begun < 2
        assert ended(again, 2)
        assert ended(none, 2)
        # nor does the body of an offer
        body = silent(server, b"POST /webrtc/offer HTTP/1.1\r\nHost: localhost\r\n"
                              b"Content-Length: 999\r\n\r\n{")  # fmt: skip
        body.settimeout(WAIT)
        assert b"408" in body.recv(4096)
        assert server.state.connections.open == 0
        for line in (drip, again, none, body):
            line.close()
        wait_until(lambda: len(server.state.unauthenticated) == 0)


def test_strangers_may_not_send_what_is_large(pipe: Any) -> None:
    with (
        serving(
            pipe, limits=Limits(unauthenticated_bytes=20_000), host="0.0.0.0", token=KEY
        ) as server,
        server.client({}) as client,
    ):
        client.socket.send(bytes(30_000))
        assert client.ending()[0] == 1009


# guesses


def test_wrong_tokens_are_slowed_down_and_few_are_remembered() -> None:
    now = [0.0]
    tokens = TokenCheck(AccessPolicy("0.0.0.0", KEY), lambda: now[0])

    async def wrong(address: str, times: int = 1) -> None:
        for _ in range(times):
            assert not await tokens.accepts("x" * 16, address)

    async def run() -> None:
        assert not await tokens.accepts(None, "10.0.0.1")  # nothing was guessed
        assert len(tokens) == 0
        await wrong("10.0.0.1", 3)
        assert await tokens.accepts(KEY, "10.0.0.2")
        pauses = []
        for _ in range(2):
            pauses.append(tokens.delay("10.0.0.1"))
            begun = time.monotonic()
            await wrong("10.0.0.1")
            assert time.monotonic() - begun > 0.9 * pauses[-1] > 0
        assert pauses[1] == 2 * pauses[0]
        # the right one waits as well: else to be answered at once would tell
        begun = time.monotonic()
        assert await tokens.accepts(KEY, "10.0.0.1")
        assert time.monotonic() - begun > 0.9 * pauses[1]
        now[0] += 301
        assert tokens.delay("10.0.0.1") == 0
        for number in range(1500):
            await wrong(f"10.1.{number // 250}.{number % 250}")
        assert len(tokens) <= 1024

    asyncio.run(run())


def test_no_more_than_some_wait_for_their_tokens_to_be_looked_at() -> None:
    async def run() -> None:
        tokens = TokenCheck(AccessPolicy("0.0.0.0", KEY))
        for place in ("10.0.0.1", "10.0.0.2"):
            for _ in range(4):
                await tokens.accepts("x" * 16, place)
        waiting = [asyncio.ensure_future(tokens.accepts("y" * 16, "10.0.0.1")) for _ in range(20)]
        await asyncio.sleep(0)
        assert await tokens.accepts(KEY, "10.0.0.2")
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert (ends.count(False), sum(isinstance(e, RefusedError) for e in ends)) == (8, 12)
        assert not tokens._waiting

    asyncio.run(run())


def test_a_pause_has_an_end() -> None:
    now = [0.0]
    tokens = TokenCheck(AccessPolicy("0.0.0.0", KEY), lambda: now[0])
    for _ in range(5000):
        tokens._remember("10.0.0.1")
    assert tokens.delay("10.0.0.1") == 4.0


@pytest.mark.parametrize(
    "shown",
    [b"\xe9\x8d\xb5" * 6, b"\xff" * 20, b"%E9%8D%B5" * 3, b"\xc3\xa9" * 9 + b"\x80", b"", b" "],
)
def test_a_token_in_any_letters_is_wrong_and_no_fault(pipe: Any, shown: bytes) -> None:
    with serving(pipe, host="0.0.0.0", token=KEY) as server:
        for header in (b"Authorization: Bearer " + shown, b"Cookie: stillframe_token=" + shown):
            line = silent(server, b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n" + header
                                  + b"\r\nConnection: close\r\n\r\n")  # fmt: skip
            answer = line.recv(4096)
            line.close()
            assert answer.split(b" ")[1] in (b"401", b"400"), answer
        with server.client({"token": "鍵→" * 8}) as client:
            assert client.ending()[1]["message"] == "the token is missing or wrong"


# names


def test_a_server_for_others_answers_to_its_own_names(pipe: Any) -> None:
    options: dict[str, Any] = {"host": "0.0.0.0", "token": KEY, "names": ["box.example"]}
    with serving(pipe, **options) as server:
        for name, code in (
            ("evil.example", 403),
            ("box.example:80", 200),
            ("10.1.2.3", 200),
            (f"{socket.gethostname()}:1", 200),
            ("box.example.evil", 403),
        ):
            answer = get(server, "/api/status", headers={**RIGHT, "Host": name})
            assert answer.status_code == code, name
            asked = silent(server, f"GET /live HTTP/1.1\r\nHost: {name}\r\n{UPGRADE}".encode())
            assert asked.recv(99).split(b" ")[1] == (b"101" if code == 200 else b"403"), name
            asked.close()


def test_a_page_may_call_the_server_it_came_from_and_no_other(server: Server) -> None:
    for name in ("127.0.0.1:7860", "localhost", "10.0.0.1:1"):
        sources = get(server, "/", headers={"Host": name}).headers["content-security-policy"]
        calls = next(part for part in sources.split("; ") if part.startswith("connect-src"))
        assert calls == f"connect-src 'self' ws://{name} wss://{name}"
    assert "connect-src 'self';" in content_security_policy("[::1]:7860")
    assert "connect-src 'self';" in content_security_policy("a b;c")


# the command


def test_a_token_is_the_files_else_the_variables_else_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "token"
    secret.write_text(f"{KEY}\n")
    monkeypatch.setenv("STILLFRAME_TOKEN", "a token of the environment")
    assert token_asked_for("0.0.0.0", secret) == KEY
    assert token_asked_for("0.0.0.0", None) == "a token of the environment"
    monkeypatch.setenv("STILLFRAME_TOKEN", "")
    made, other = (token_asked_for("0.0.0.0", None) for _ in range(2))
    assert made is not None
    assert len(made) >= 16
    assert made != other
    assert token_asked_for("127.0.0.1", None) is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"short", "16 to 200 characters, this one has 5"),
        (b"\xff" * 20, "it is not text"),
        (None, "No such file"),
        (b"", "needs a token"),
    ],
)
def test_a_token_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    options = ["serve", "--host", "0.0.0.0", "--port", "0", "--token-file", str(file)]
    done = CliRunner().invoke(command_line, options)
    assert (done.exit_code, sentence in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert multiprocessing.active_children() == []  # no model was loaded for it
