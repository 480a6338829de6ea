"""The server as clients meet it: real sockets on a local port, a tiny random model."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
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
from websockets.exceptions import ConnectionClosed

from stillframe.loading.styles import Style
from stillframe.server.limits import Limits

LIMITS = Limits(
    message_bytes=200_000,
    picture_pixels=320 * 240,
    stall_seconds=1.0,
    frames_per_second=2000.0,
    hello_seconds=3.0,
)
STYLES = [Style("oil", "an oil painting", "thick paint", ("oil",))]
HELLO = json.dumps({"type": "hello", "prompt": "oil", "width": 96, "height": 64})


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe, limits=LIMITS, max_sessions=3, styles=STYLES) as running:
        yield running


@pytest.fixture(autouse=True)
def _everything_is_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a session, a seat or memory behind, whatever its clients did."""
    yield
    if "server" in request.fixturenames:
        running = request.getfixturevalue("server")
        wait_until(lambda: running.state.connections.open == 0)
        assert running.state.open_sessions.open == 0
        assert running.state.sessions == {}
        assert len(running.state.supervisor.worker) == 0


def test_edited_frames_come_back_with_times_maps_and_telemetry(server: Server) -> None:
    with server.client({"policy": "all", "quality": 95}) as client:
        ready = client.until("ready")
        size = ready["width"], ready["height"], ready["version"]
        assert (size, ready["styles"][0]["name"]) == ((96, 64, 1), "oil")
        assert {"full", "prune"} <= set(ready["methods"])
        assert {"none", "aligned"} <= set(ready["recoveries"])
        times = [100 + number / 10 for number in range(36)]
        for at, picture in zip(times, pictures(36), strict=True):
            client.send(at, picture)
        client.until("frame", 36)
        [entry] = get(server, "/api/status").json()["telemetry"]
        assert (entry["session"], entry["state"]) == (ready["session"], "running")
    assert [at for at, _ in client.frames] == times
    assert {picture.shape for _, picture in client.frames} == {(64, 96, 3)}
    told = [text for text in client.texts if text["type"] == "telemetry"]
    assert [text["block"] for text in told] == [0, 1, 2]
    assert [at for at, _ in client.maps] == times[::12]
    for text, (_, bits), moved in zip(told, client.maps, client.moved, strict=True):
        assert bits.shape == (3, 4, 6)
        assert text["tokens"] == bits.size
        assert text["kept_share"] == pytest.approx(bits.mean())
        assert text["moved_share"] == pytest.approx(moved.mean())
        assert list(text["ms"]) == ["encode", "mask", "denoise", "context", "decode"]
        assert all(spent > 0 for spent in text["ms"].values())
        assert text["p50_ms"] <= text["p95_ms"]
        assert text["latency_ms"] >= text["ms"]["denoise"]
        assert text["cache_bytes"] > 0
    # the clip is still at first and something moves later
    assert told[0]["kept_share"] == 1.0
    assert 0 < told[2]["kept_share"] < 1


def edited(server: Server, change: dict[str, Any] | None) -> tuple[list[Any], int]:
    """Frames of five blocks, and the block that a change was said to be seen from."""
    clip, first = pictures(60), -1
    with server.client({"policy": "all"}) as client:
        for block in range(5):
            if block == 2 and change is not None:
                client.say("update", **change)
                told = client.until("updated")
                assert told["what"] == list(change)
                first = told["from_block"]
            for number in range(12 * block, 12 * block + 12):
                client.send(number / 10, clip[number])
            client.until("frame", 12)
        kept = [text["kept_share"] for text in client.texts if text["type"] == "telemetry"]
        assert change is None or kept[2] == 1.0  # one whole block
        assert kept[4] < 1
    return [picture for _, picture in client.frames], first


def test_a_prompt_takes_effect_within_two_blocks_and_the_stream_goes_on(server: Server) -> None:
    (plain, _), (changed, first) = edited(server, None), edited(server, {"prompt": "night sepia"})
    same = [np.array_equal(a, b) for a, b in zip(plain, changed, strict=True)]
    assert same[:24] == [True] * 24
    assert same[24:] == [False] * 36
    assert first == 2


def test_methods_and_numbers_change_while_it_runs(server: Server) -> None:
    with server.client({"policy": "all", "tolerance": 0}) as client:
        client.works(0)
        client.say("update", method="full", recovery="clean", tolerance=4)
        client.until("updated")
        client.works(10)
        client.say("update", method="prune", strength=0.5, tolerance=5, motion="global")
        client.until("updated")
        client.works(20, blocks=2)
        [session] = server.state.sessions.values()
        method = session.request.method
        # what was said while another method was in use still holds
        assert (method.name, method.recovery, method.tolerance) == ("prune", "clean", 5)
        assert method.motion == "global"
        client.say("update", recovery="nothing such")
        notice = client.until("notice")
        assert notice["about"] == "update"
        assert "nothing such" in notice["message"]
        assert session.request.method == method
        client.works(30)


def test_pause_resume_reset_and_bye(server: Server) -> None:
    clip = pictures(24)
    with server.client({"policy": "all"}) as client:
        client.works(0)
        [session] = server.state.sessions.values()
        client.say("pause")
        for number in range(12):
            client.send(10 + number / 10, clip[number])
        wait_until(lambda: session.dropped == 12)
        client.say("resume")
        client.say("reset")
        client.works(20)
        kept = [text["kept_share"] for text in client.texts if text["type"] == "telemetry"]
        assert kept == [1.0, 1.0]
        assert [at for at, _ in client.frames][12:] == [20 + number / 10 for number in range(12)]
        client.say("bye")
        assert client.ending()[0] == 1000


def test_a_change_of_size_begins_another_stream(server: Server) -> None:
    with server.client({"policy": "latest"}) as client:
        client.works(0)
        for number, picture in enumerate(pictures(12, 96, 64)):
            client.send(10 + number / 10, picture)
        client.until("frame", 12)
        [session] = server.state.sessions.values()
        assert session.telemetry.last.stream == 1
    assert {picture.shape for _, picture in client.frames} == {(64, 96, 3)}


def test_one_more_session_than_there_may_be_is_refused(server: Server) -> None:
    with server.client() as one, server.client() as two, server.client() as three:
        for client in (one, two, three):
            client.until("ready")
        with server.client() as fourth:
            code, last = fourth.ending()
            assert (code, last["type"]) == (1013, "refused")
            assert "3 of 3 sessions" in last["reason"]
        assert get(server, "/api/status").json()["sessions"] == {"open": 3, "max": 3}
        three.say("bye")
        three.until("closed")
        wait_until(lambda: server.state.open_sessions.open == 2)
        with server.client() as again:
            again.until("ready")
        one.works()


GOOD = pictures(1)[0]
BAD: list[tuple[str, list[str | bytes], int]] = [
    ("no hello", [frame_message(0, GOOD)], 1008),
    ("twice hello", [HELLO, HELLO], 1008),
    ("garbage text", [HELLO, "}{"], 1007),
    ("long text", [HELLO, "x" * 20_000], 1009),
    ("unknown field", [HELLO[:-1] + ', "file": "/etc/passwd"}'], 1008),
    ("wrong type of a value", [HELLO[:-1] + ', "tolerance": "0"}'], 1008),
    ("unknown type", [HELLO, '{"type": "upgrade"}'], 1008),
    ("unknown method", [HELLO[:-1] + ', "method": "x"}'], 1008),
    ("large frames wanted", [HELLO.replace("96", "8000").replace("64", "8000")], 1008),
    ("large message", [HELLO, bytes(300_000)], 1009),
    ("too many texts", [HELLO, *(['{"type": "resume"}'] * 60)], 1008),
]


def test_what_a_client_does_wrong_closes_only_its_own_socket(server: Server) -> None:
    with server.client({"policy": "all"}) as other:
        other.works(0)
        for number, (name, said, code) in enumerate(BAD):
            with server.client({}) as client:
                for message in said:
                    try:
                        client.socket.send(message)
                    except ConnectionClosed:
                        break
                given, last = client.ending()
            assert given == code, f"{name}: {given} {last}"
            # the one that the socket's own layer refuses gets no sentence
            assert last.get("type") == "error" or name == "large message", name
            other.send(100 + number / 10, GOOD)
        other.works(200)


def test_silence_is_not_waited_for(server: Server) -> None:
    with server.client({}) as client:
        code, last = client.ending()
    assert (code, last["message"]) == (1008, "no hello within 3 s")


def fuzzed(rng: np.random.Generator) -> str | bytes:
    """A message that was right once."""
    data = bytearray(frame_message(float(rng.integers(9)), GOOD) if rng.integers(2) else b"")
    if not data:
        fields: dict[str, Any] = json.loads(HELLO) if rng.integers(2) else {"type": "update"}
        values = [0, -1, 1e300, "", "x", None, [], {}, True, "latest", 96, "\ud800", "a\0b"]
        for name in rng.choice(
            ["prompt", "width", "tolerance", "method", "policy", "type", "z"], 2
        ):
            fields[str(name)] = values[rng.integers(len(values))]
        data = bytearray(json.dumps(fields).encode())
    for _ in range(rng.integers(4)):
        data[rng.integers(len(data))] = rng.integers(256)
    if not rng.integers(4):
        del data[rng.integers(len(data)) :]
    text = bytes(data).decode("utf-8", "replace")
    return bytes(data) if rng.integers(2) else text


def test_fuzzed_messages_harm_nobody(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    rng, codes, sent = np.random.default_rng(11), set(), 0
    with server.client({"policy": "all"}) as other:
        other.works(0)
        while sent < 300:
            with server.client({}) as client:
                if rng.integers(4):
                    client.socket.send(HELLO)
                try:
                    for _ in range(10):
                        client.socket.send(fuzzed(rng))
                        sent += 1
                except ConnectionClosed:
                    sent += 1
                with suppress(ConnectionClosed):  # the server may have been faster
                    client.say("bye")
                codes.add(client.ending()[0])
        other.works(100)
    assert codes <= {1000, 1007, 1008, 1009}
    assert {1007, 1008} <= codes
    assert [record.message for record in caplog.records if "failed" in record.message] == []


def come_and_go(server: Server, times: int) -> None:
    def threads() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name.startswith("stillframe-")}

    before: set[str] = set()
    for number in range(times):
        with server.client({"policy": "all"}) as client:
            client.until("ready")
            if number % 4 == 0:
                client.works()
            elif number % 4 == 1:
                client.send(0, GOOD)
            elif number % 4 == 2:
                client.socket.socket.shutdown(socket.SHUT_RDWR)  # gone without a word
        wait_until(lambda: server.state.connections.open == 0)
        now = {name for name in threads() if "pool" not in name}
        before = before or now
        assert now == before
    assert server.state.sessions == {}
    assert len([name for name in threads() if "pool" in name]) <= 2 * 3 + 2


def test_clients_that_come_and_go_leave_nothing(server: Server) -> None:
    come_and_go(server, 20)


@pytest.mark.slow
def test_many_clients_that_come_and_go_leave_nothing(server: Server) -> None:
    come_and_go(server, 200)


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_a_client_that_stops_reading_is_cut_off_and_others_go_on(
    server: Server, policy: str
) -> None:
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect(("127.0.0.1", server.port))
    hello = {"policy": policy, "quality": 100, "width": 192, "height": 192}
    with server.client(hello, sock=line, max_queue=1) as deaf, server.client() as other:
        stop = threading.Event()

        def talk() -> None:
            clip, number = pictures(24), 0
            try:
                while not stop.wait(0.01):
                    deaf.send(number / 10, clip[number % 24])
                    number += 1
            except (ConnectionClosed, OSError):
                return

        talker = threading.Thread(target=talk, daemon=True)
        talker.start()
        try:
            other.until("ready")
            start, number = time.monotonic(), 0
            while server.state.open_sessions.open == 2:
                assert time.monotonic() - start < WAIT
                other.works(10.0 * number)
                number += 1
            assert number > 0
            other.works(10.0 * number)
        finally:
            stop.set()
            talker.join(WAIT)
    assert not talker.is_alive()


def test_two_sessions_get_turns_alike(server: Server) -> None:
    clip, blocks = pictures(12 * 8), 8
    with server.client({"policy": "all"}) as one, server.client({"policy": "all"}) as two:
        for client in (one, two):
            client.until("ready")
        listeners = [
            threading.Thread(target=client.until, args=("frame", 12 * blocks), daemon=True)
            for client in (one, two)
        ]
        for listener in listeners:
            listener.start()
        for number, picture in enumerate(clip):
            for client in (one, two):
                client.send(number / 10, picture)
        for listener in listeners:
            listener.join(WAIT)
        first, second = (session.telemetry.blocks for session in server.state.sessions.values())
    assert len(first) == len(second) == blocks
    turns = sorted([(block.time, 1) for block in first] + [(block.time, -1) for block in second])
    ahead = np.cumsum([turn for _, turn in turns])
    # what comes to a session late, it may have to do without for a turn or two
    assert np.abs(ahead).max() <= 3, ahead


class Broken:
    """A session on which the worker fails."""

    has_work = property(lambda self: 1 // 0)

    def serve(self) -> None:
        raise AssertionError

    def fail(self, message: str, trace: str = "") -> None:
        self.message = message


def test_a_worker_that_fails_ends_its_sessions_and_another_takes_over(server: Server) -> None:
    before = get(server, "/api/status").json()["worker_failures"]
    with server.client() as one, server.client() as two:
        one.works()
        two.until("ready")
        server.state.supervisor.worker.add(Broken())
        for client in (one, two):
            code, last = client.ending()
            assert (code, last["type"]) == (1011, "error")
            assert last["message"] == "the server failed; its log says how"
    assert get(server, "/api/status").json()["worker_failures"] == before + 1
    with server.client() as client:
        client.works()
