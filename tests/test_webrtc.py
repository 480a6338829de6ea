"""WebRTC from a real client to a real server on this computer, with a tiny random model."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
import pytest
from tests import tiny
from tests.live_fixtures import levels
from tests.server_fixtures import WAIT, Server, get, serving, wait_until

pytest.importorskip("aiortc")

import aiortc
from av import VideoFrame

from stillframe.server.limits import Limits

KEY = "a-key-of-16-chars"
HELLO = {"prompt": "oil", "width": 96, "height": 64}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe, max_sessions=1, limits=Limits(offer_bytes=20_000)) as running:
        yield running


def post(server: Server, fields: Any, **options: Any) -> httpx.Response:
    url = f"http://127.0.0.1:{server.port}/webrtc/offer"
    content = fields if isinstance(fields, bytes) else json.dumps(fields)
    return httpx.post(url, content=content, timeout=WAIT, **options)


class Clip(aiortc.MediaStreamTrack):
    """A clip of something that moves, 15 frames a second, without end."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.clip, self.sent = levels(30, 64, 96, 0), 0

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(1 / 15)
        frame = VideoFrame.from_ndarray(self.clip[self.sent % 30], format="rgb24")
        frame.pts, frame.time_base = self.sent * 6000, Fraction(1, 90_000)
        self.sent += 1
        return frame


class Caller:
    """A client: what it offers, and what came."""

    def __init__(self) -> None:
        self.peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.peer.addTrack(Clip())
        self.channel = self.peer.createDataChannel("stillframe")
        self.texts: list[dict[str, Any]] = []
        self.maps: list[bytes] = []
        self.frames: list[VideoFrame] = []
        self.channel.on("message", self._message)
        self.peer.on("track", self._track)

    def _message(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.texts.append(json.loads(message))
        else:
            self.maps.append(message)

    def _track(self, track: Any) -> None:
        self.task = asyncio.ensure_future(self._watch(track))

    async def _watch(self, track: Any) -> None:
        try:
            while True:
                self.frames.append(await track.recv())
        except aiortc.mediastreams.MediaStreamError:
            return

    async def offer(self) -> dict[str, Any]:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return {"sdp": self.peer.localDescription.sdp, "type": "offer", **HELLO}

    async def call(self, server: Server) -> str:
        """Connect; the connection's name."""
        fields = await self.offer()
        answer = (await asyncio.to_thread(post, server, fields)).json()
        await self.peer.setRemoteDescription(
            aiortc.RTCSessionDescription(answer["sdp"], answer["type"])
        )
        return str(answer["name"])

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [text for text in self.texts if text["type"] == kind]

    async def until(self, condition: Any) -> None:
        for _ in range(int(WAIT / 0.02)):
            if condition():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"it did not happen in time: {self.texts}")


def section(kind: str, name: str) -> str:
    """Another section of a session description, as good as any."""
    lines = [f"m={kind} 9 UDP/TLS/RTP/SAVPF 97", "c=IN IP4 0.0.0.0", "a=sendrecv", f"a=mid:{name}",
             "a=rtcp-mux", "a=rtpmap:97 VP8/90000", "a=ice-ufrag:abcd", f"a=ice-pwd:{'x' * 22}",
             "a=setup:actpass"]  # fmt: skip
    return "".join(f"{line}\r\n" for line in lines)


async def an_offer() -> dict[str, Any]:
    """An offer of a client that goes no further."""
    caller = Caller()
    try:
        return await caller.offer()
    finally:
        await caller.peer.close()


def freed(server: Server) -> None:
    wait_until(lambda: server.state.open_sessions.open == 0)
    assert server.state.sessions == {}
    wait_until(lambda: len(server.state.supervisor.worker) == 0)


def test_frames_are_edited_and_a_prompt_changes(server: Server) -> None:
    async def talk() -> None:
        caller = Caller()
        try:
            name = await caller.call(server)
            await caller.until(lambda: len(caller.frames) >= 13)
            assert caller.texts[0]["type"] == "ready"
            caller.channel.send(json.dumps({"type": "update", "prompt": "night sepia"}))
            await caller.until(lambda: caller.said("updated"))
            changed = caller.said("updated")[0]["from_block"]
            await caller.until(lambda: caller.said("telemetry")[-1]["block"] > changed)
            # a change costs one whole block
            shares = {text["block"]: text["kept_share"] for text in caller.said("telemetry")}
            assert [block for block, share in shares.items() if share == 1] == [0, changed]
            assert caller.said("updated")[0]["what"] == ["prompt"]
            assert {(frame.width, frame.height) for frame in caller.frames} == {(96, 64)}
            steps = np.diff([frame.pts for frame in caller.frames])
            # times are those of the frames sent, some of which are left out
            assert (steps > 0).all()
            assert (np.abs(steps / 6000 - np.round(steps / 6000)) < 1e-2).all()
            blocks = len(caller.said("telemetry"))
            await caller.until(lambda: len(caller.maps) >= blocks)  # each right after its figures
            full = await asyncio.to_thread(post, server, await an_offer())
            assert (full.status_code, "full" in full.json()["detail"]) == (503, True)
            url = f"http://127.0.0.1:{server.port}/webrtc/{name}"
            assert (await asyncio.to_thread(httpx.delete, url)).status_code == 200
            assert (await asyncio.to_thread(httpx.delete, url)).status_code == 404
        finally:
            await caller.peer.close()

    asyncio.run(talk())
    freed(server)


@pytest.mark.parametrize("goodbye", [True, False])
def test_a_client_that_goes_is_freed(server: Server, goodbye: bool) -> None:
    async def talk() -> None:
        caller = Caller()
        await caller.call(server)
        await caller.until(lambda: caller.said("ready"))
        if goodbye:
            caller.channel.send(json.dumps({"type": "bye"}))
            await asyncio.to_thread(freed, server)
        await caller.peer.close()

    asyncio.run(talk())
    freed(server)


def test_frames_that_are_too_large_are_dropped_and_told_of(pipe: Any) -> None:
    async def talk(server: Server) -> None:
        caller = Caller()
        try:
            await caller.call(server)
            await caller.until(lambda: len(caller.said("notice")) >= 2)
            assert server.state.open_sessions.open == 1  # and nothing has ended
            caller.channel.send(json.dumps({"type": "update", "tolerance": -1}))
            await caller.until(lambda: caller.said("notice")[-1]["about"] == "update")
        finally:
            await caller.peer.close()
        told = [text for text in caller.said("notice") if text["about"] == "frame"]
        assert "a picture may have 5760 pixels" in told[-1]["message"]
        assert told[-1]["unusable"] > 1
        assert not caller.said("error")

    with serving(pipe, limits=Limits(picture_pixels=5760)) as small:
        asyncio.run(talk(small))
        freed(small)


def test_a_client_that_hides_its_address_connects(server: Server) -> None:
    async def talk() -> None:
        caller = Caller()
        try:
            shown = (await caller.offer())["sdp"]
            hidden = re.sub(r"(a=candidate:(\S+ ){4})\S+", r"\1a0-b1.local", shown)
            assert "a0-b1.local" in hidden
            assert "a=end-of-candidates" in hidden
            fields = {"sdp": hidden, "type": "offer", **HELLO}
            answer = (await asyncio.to_thread(post, server, fields)).json()
            description = aiortc.RTCSessionDescription(answer["sdp"], answer["type"])
            await caller.peer.setRemoteDescription(description)
            await caller.until(lambda: caller.frames)
        finally:
            await caller.peer.close()

    asyncio.run(talk())
    freed(server)


def test_what_is_no_offer_is_told_why(server: Server) -> None:
    good = asyncio.run(an_offer())
    broken = "m=video 9 x 0\r\nm=application 9 y\r\n"
    cases: list[tuple[Any, int, str]] = [
        (b"\xff", 400, "JSON"),
        ([], 400, "JSON"),
        ({**good, "sdp": "garbage"}, 400, "one video track"),
        ({**good, "sdp": broken}, 400, "sdp"),
        ({**good, "sdp": good["sdp"] + section("video", "2")}, 400, "one video track"),
        (
            {**good, "sdp": good["sdp"].replace("\r\n", "\r") + section("video", "2")},
            400,
            "one video",
        ),
        (
            {**good, "sdp": good["sdp"] + section("video", "2").replace("\r\n", "\r")},
            400,
            "one video",
        ),
        (
            {**good, "sdp": good["sdp"] + section("video", "2").replace("\r\n", "\u2028")},
            400,
            "one",
        ),
        ({**good, "type": "answer"}, 400, "type offer"),
        ({**good, "policy": "all"}, 400, "latest"),
        ({**good, "tolerance": "much"}, 400, "tolerance"),
        ({**good, "recovery": "nothing such"}, 400, "nothing such"),
        (b" " * 20_001, 413, "20000 bytes"),
    ]
    for fields, code, words in cases:
        answer = post(server, fields)
        assert (answer.status_code, words in answer.json()["detail"]) == (code, True), answer.text
    foreign = post(server, good, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert "webrtc" in get(server, "/api/status").json()["transports"]
    freed(server)


def test_a_server_for_others_wants_its_token(pipe: Any) -> None:
    offer = asyncio.run(an_offer())
    with serving(pipe, host="0.0.0.0", token=KEY) as server:
        assert post(server, offer).status_code == 401
        assert post(server, {**offer, "token": KEY[:-1]}).status_code == 401
        # the token is right: what is refused now is the offer
        assert post(server, {**offer, "token": KEY, "policy": "all"}).status_code == 400


def test_a_server_without_the_package_says_so(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = asyncio.run(an_offer())
    monkeypatch.setitem(sys.modules, "aiortc", None)
    with serving(pipe) as server:
        answer = post(server, offer)
        assert (answer.status_code, "stillframe[webrtc]" in answer.text) == (404, True)
        assert get(server, "/api/status").json()["transports"] == ["websocket"]
