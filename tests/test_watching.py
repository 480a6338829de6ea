"""The picture alone, WHIP in and WHEP out: real clients of a real server, a tiny random model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from tests import tiny
from tests.server_fixtures import WAIT, Client, Server, get, serving, wait_until
from websockets.sync.client import connect

from stillframe.server.h264 import h264_size
from stillframe.server.protocol import ProtocolError

KEY = "a-key-of-16-chars"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe, max_sessions=3) as running:
        yield running


@contextmanager
def watching(server: Server, **fields: Any) -> Iterator[Any]:
    """A socket of somebody who watches."""
    url = server.url.replace("/live", "/watch")
    with connect(url, open_timeout=WAIT, compression=None, max_size=None) as socket:
        socket.send(json.dumps({"type": "watch", **fields}))
        yield socket


def test_who_watches_sees_what_the_client_sees_and_nothing_is_edited_twice(server: Server) -> None:
    with server.client({"policy": "all", "quality": 90}) as client:
        client.until("ready")
        with watching(server) as one, watching(server) as two:
            wait_until(lambda: len(server.state.watchers) == 2)
            client.works(blocks=2)
            [session] = server.state.sessions.values()
            for socket in (one, two):
                watcher = Client(socket)
                watcher.until("frame", 24)
                assert watcher.texts == []
                for (sent, mine), (shown, theirs) in zip(
                    client.frames, watcher.frames, strict=True
                ):
                    np.testing.assert_array_equal(mine, theirs)
                    assert shown - watcher.frames[0][0] == pytest.approx(sent - client.frames[0][0])
            assert session.telemetry.last.block == 1
    wait_until(lambda: len(server.state.watchers) == 0)


def test_the_newest_session_is_shown_or_the_one_that_is_named(server: Server) -> None:
    with server.client() as first:
        name = first.until("ready")["session"]
        with watching(server) as newest, watching(server, session=name) as named:
            wait_until(lambda: len(server.state.watchers) == 2)
            first.works()
            with server.client({"width": 128, "height": 64}) as second:
                second.until("ready")
                second.works()
                first.works(start=100.0)
                old, new = Client(named), Client(newest)
                old.until("frame", 24)
                new.until("frame", 24)
    assert {frame.shape for _, frame in old.frames} == {(64, 96, 3)}
    assert [frame.shape[1] for _, frame in new.frames] == [96] * 12 + [128] * 12
    # of both in turn times rise as of one
    assert (np.diff([time for time, _ in new.frames]) > 0).all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "the first message is watch"),
        ('{"type": "hello", "prompt": "oil"}', "the first message is watch"),
        ('{"type": "watch", "more": 1}', "unknown field"),
    ],
)
def test_who_says_something_else_is_told_so(server: Server, text: str, told: str) -> None:
    with connect(server.url.replace("/live", "/watch"), open_timeout=WAIT) as socket:
        socket.send(text)
        code, last = Client(socket).ending()
    assert code == 1008
    assert told in last["message"]


def test_watchers_need_the_token_and_are_bounded(pipe: Any) -> None:
    with serving(pipe, host="0.0.0.0", token=KEY, max_sessions=1) as server:
        for wrong in ({}, {"token": "x" * 16}):
            with watching(server, **wrong) as socket:
                code, last = Client(socket).ending()
            assert (code, last["message"]) == (1008, "the token is missing or wrong")
        most = server.state.connections.most
        with ExitStack() as stack:
            for _ in range(most):
                stack.enter_context(watching(server, token=KEY))
            wait_until(lambda: len(server.state.watchers) == most)
            with watching(server, token=KEY) as one_more:
                code, last = Client(one_more).ending()
        assert code == 1013
        assert f"{most} of {most} connections" in last["reason"]
        wait_until(lambda: len(server.state.watchers) == 0)


def test_the_page_of_the_picture_alone_has_no_controls(server: Server) -> None:
    page = get(server, "/view")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    body = page.text[page.text.index("<body") :]
    assert set(re.findall(r"<(\w+)", body)) == {"body", "canvas"}
    for name in re.findall(r'"(static/[^"]+)"', page.text):
        assert get(server, f"/{name}").status_code == 200


# WHIP and WHEP

aiortc = pytest.importorskip("aiortc")


def post(server: Server, path: str, sdp: str, **headers: str) -> httpx.Response:
    url = f"http://127.0.0.1:{server.port}{path}"
    return httpx.post(
        url, content=sdp, headers={"content-type": "application/sdp", **headers}, timeout=WAIT
    )


async def offered(peer: Any) -> str:
    await peer.setLocalDescription(await peer.createOffer())
    return str(peer.localDescription.sdp)


async def answered(peer: Any, answer: httpx.Response) -> str:
    """Take an answer; the address at which the connection ends."""
    assert answer.status_code == 201, answer.text
    assert answer.headers["content-type"] == "application/sdp"
    await peer.setRemoteDescription(aiortc.RTCSessionDescription(answer.text, "answer"))
    return str(answer.headers["location"])


def new_peer() -> Any:
    return aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))


async def until(condition: Any) -> None:
    for _ in range(int(WAIT / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen in time")


@pytest.mark.parametrize(("kind", "sound"), [("VP8", False), ("H264", True)])
def test_video_goes_in_by_whip_and_comes_out_edited_by_whep(
    server: Server, kind: str, sound: bool
) -> None:
    from tests.test_webrtc import Clip

    async def talk() -> None:
        camera, viewer = new_peer(), new_peer()
        frames: list[Any] = []

        async def watch(track: Any) -> None:
            while True:
                frames.append(await track.recv())

        tasks = []
        viewer.on("track", lambda track: tasks.append(asyncio.ensure_future(watch(track))))
        try:
            known = aiortc.RTCRtpSender.getCapabilities("video").codecs
            one = camera.addTransceiver(Clip(), "sendonly")
            one.setCodecPreferences([c for c in known if c.mimeType == f"video/{kind}"])
            if sound:  # as every program that streams sends it; it is declined
                camera.addTransceiver("audio", "sendonly")
            path = "/whip?prompt=oil&width=96&height=64&tolerance=4"
            answer = await asyncio.to_thread(post, server, path, await offered(camera))
            place = await answered(camera, answer)
            assert re.fullmatch(r"/whip/[\w-]{16,}", place)
            await until(lambda: server.state.sessions)
            viewer.addTransceiver("video", "recvonly")
            answer = await asyncio.to_thread(post, server, "/whep", await offered(viewer))
            seat = await answered(viewer, answer)
            await until(lambda: len(frames) > 24)
            assert {(frame.width, frame.height) for frame in frames} == {(96, 64)}
            assert (np.diff([frame.pts for frame in frames]) > 0).all()
            [session] = server.state.sessions.values()
            assert session.telemetry.last is not None  # edited, and once
            for address in (seat, place):
                url = f"http://127.0.0.1:{server.port}{address}"
                assert (await asyncio.to_thread(httpx.delete, url)).status_code == 200
                assert (await asyncio.to_thread(httpx.delete, url)).status_code == 404
                # neither can be changed: no trickling, no restart (RFC 9725, 4.3)
                assert (await asyncio.to_thread(httpx.patch, url)).status_code == 405
            assert server.state.sessions == {}
        finally:
            for task in tasks:
                task.cancel()
            await camera.close()
            await viewer.close()

    asyncio.run(talk())
    wait_until(lambda: server.state.connections.open == 0 and len(server.state.watchers) == 0)


def coded(width: int, height: int, **options: str) -> list[bytes]:
    """A few frames of H.264."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"tune": "zerolatency", **options}
    frames = [av.VideoFrame(width, height, "yuv420p") for _ in range(3)]
    for number, frame in enumerate(frames):
        for plane in frame.planes:
            plane.update(bytes([number * 40]) * plane.buffer_size)
        frame.pts = number
    return [bytes(packet) for frame in frames for packet in encoder.encode(frame)]


@pytest.mark.parametrize(("width", "height"), [(16, 16), (96, 64), (1920, 1080), (4096, 2304)])
@pytest.mark.parametrize(
    "options",
    [
        {"profile": "baseline"},
        {"profile": "high"},
        {"profile": "high", "x264-params": "cqm=jvt"},  # with scaling lists
        {"profile": "main", "x264-params": "interlaced=1"},
    ],
)
def test_h264_tells_its_size_before_it_is_decoded(
    width: int, height: int, options: dict[str, str]
) -> None:
    first, *later = coded(width, height, **options)
    size = h264_size(first)
    assert size is not None
    rows = 32 if "interlaced" in str(options) else 16
    assert size == (-(-width // 16) * 16, -(-height // rows) * rows)
    assert [h264_size(data) for data in later] == [None] * len(later)


def test_damaged_h264_has_no_size_and_takes_no_time() -> None:
    first, smaller = coded(96, 64)[0], coded(64, 64)[0]
    with pytest.raises(ProtocolError, match="no size"):
        h264_size(first + smaller)  # two sizes in one
    with pytest.raises(ProtocolError, match="ends within its header"):
        h264_size(b"")
    for data in (b"\0\0\1\x67", b"\0\0\1\x67" + bytes(400), b"\0\0\1\x67\x64" + b"\xff" * 400):
        with contextlib.suppress(ProtocolError):
            h264_size(data)
    rng = np.random.default_rng(0)
    start = first.index(b"\x67") + 1
    begun = time.process_time()
    for _ in range(500):
        damaged = bytearray(first[: start + 40])
        damaged[start + rng.integers(40)] = rng.integers(256)
        with contextlib.suppress(ProtocolError):
            h264_size(bytes(damaged))
    assert time.process_time() - begun < 2.0


async def _some_offer(direction: str) -> str:
    peer = new_peer()
    try:
        peer.addTransceiver("video", direction)
        return await offered(peer)
    finally:
        await peer.close()


def test_what_is_no_offer_is_told_why(server: Server) -> None:
    sdp = asyncio.run(_some_offer("sendonly"))
    cases: list[tuple[str, str, dict[str, str], int, str]] = [
        ("/whip", sdp, {"content-type": "application/json"}, 415, "application/sdp"),
        ("/whip", "garbage", {}, 400, "one video track"),
        ("/whip?tolerance=much", sdp, {}, 400, "tolerance is a number"),
        ("/whip?policy=all", sdp, {}, 400, "policy is latest"),
        ("/whip?token=abc", sdp, {}, 400, "bearer"),
        ("/whip?nothing=1", sdp, {}, 400, "unknown field"),
        ("/whip", "v" * 70_000, {}, 413, "bytes"),
        ("/whep?session=none", sdp, {}, 400, "no such session"),
        ("/whip", sdp, {"origin": "http://elsewhere.example"}, 403, "own page"),
    ]
    for path, content, headers, code, told in cases:
        answer = post(server, path, content, **headers)
        assert (answer.status_code, told in answer.text) == (code, True), (path, answer.text)
    assert server.state.connections.open == 0


def test_whip_and_whep_need_the_token_as_a_bearer(pipe: Any) -> None:
    sdp = asyncio.run(_some_offer("recvonly"))
    with serving(pipe, host="0.0.0.0", token=KEY) as server:
        for path in ("/whip", "/whep"):
            assert post(server, path, sdp).status_code == 401
            assert post(server, path, sdp, authorization="Bearer wrong").status_code == 401
        assert post(server, "/whep", sdp, authorization=f"Bearer {KEY}").status_code == 201
        url = f"http://127.0.0.1:{server.port}/whep/name"
        assert httpx.delete(url).status_code == 401


def test_a_watcher_that_is_never_connected_is_let_go(pipe: Any) -> None:
    from stillframe.server.limits import Limits

    sdp = asyncio.run(_some_offer("recvonly"))
    with serving(pipe, limits=Limits(hello_seconds=0.5)) as server:
        assert post(server, "/whep", sdp).status_code == 201
        wait_until(lambda: server.state.connections.open == 0)
        assert len(server.state.watchers) == 0


# in a browser


@pytest.mark.slow
def test_obs_address_shows_the_picture_alone_over_the_whole_window(
    server: Server, tmp_path: Path
) -> None:
    from tests.chromium import CHROMIUM, browsing

    if not CHROMIUM.exists():
        pytest.skip("needs /usr/bin/chromium")
    with server.client() as client, browsing(tmp_path) as browser:
        client.until("ready")
        tab = browser.tab()
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=1920, height=1080, deviceScaleFactor=1,
            mobile=False,
        )  # fmt: skip
        tab.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/view#token={KEY}")
        wait_until(lambda: len(server.state.watchers) == 1)
        client.works(blocks=2)
        tab.until("Number(document.querySelector('canvas').dataset.frames) >= 20")
        place = tab.js(
            "(r => [r.x, r.y, r.width, r.height])("
            "document.querySelector('canvas').getBoundingClientRect())"
        )
        assert place == [0, 0, 1920, 1080]
        assert tab.js("document.body.innerText") == ""
        assert tab.js("document.body.querySelectorAll('*').length") == 1
        assert tab.js("document.documentElement.scrollHeight") == 1080
        assert KEY not in tab.js("location.href")
        assert tab.js("document.querySelector('canvas').width") == 96
