"""What a WebRTC client may offer and send, and what is left when it goes: nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from tests import tiny
from tests.server_fixtures import Server, serving, wait_until

pytest.importorskip("aiortc")

import aiortc
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.sdp import SessionDescription
from av import VideoFrame
from tests.live_fixtures import levels
from tests.test_webrtc import Caller, an_offer, freed, post, section

from stillframe.server.decoding import codecs, limit_decoding, vp8_size
from stillframe.server.limits import Limits
from stillframe.server.protocol import ProtocolError
from stillframe.server.sdp import checked_offer
from stillframe.server.webrtc import WebRtcTransport


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe, max_sessions=2) as running:
        yield running


@pytest.fixture(scope="module")
def sdp() -> str:
    return str(asyncio.run(an_offer())["sdp"])


# offers


def refused(sdp: str) -> str:
    with pytest.raises(ProtocolError) as error:
        checked_offer(sdp)
    return str(error.value)


def test_what_is_judged_is_what_aiortc_reads(sdp: str) -> None:
    told, first = SessionDescription.parse(checked_offer(sdp)), SessionDescription.parse(sdp)
    assert [str(media) for media in told.media] == [str(media) for media in first.media]
    assert checked_offer(checked_offer(sdp)) == checked_offer(sdp)
    assert checked_offer(sdp.replace("\r\n", "\n")) == checked_offer(sdp)


@pytest.mark.parametrize("end", ["\r", "\n", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028"])
def test_no_line_end_smuggles_a_section(sdp: str, end: str) -> None:
    many = "".join(section("video", str(number)) for number in range(2, 12))
    assert "one video track" in refused(sdp + many.replace("\r\n", end))
    hidden = sdp.replace("s=-", f"s=-{end}{section('audio', '9').rstrip()}".replace("\r\n", end))
    assert "one video track" in refused(hidden)


def test_an_offer_has_bounds(sdp: str) -> None:
    one = next(line for line in sdp.splitlines() if line.startswith("a=candidate:"))
    assert "64 candidates" in refused(sdp + f"{one}\r\n" * 65)
    assert "768 lines" in refused(sdp + "a=x\r\n" * 800)
    assert "32768 characters" in refused(sdp + "a=" + "x" * 40_000 + "\r\n")
    # and what fits into them is read in no time
    worst = "".join(f"a=rtpmap:97 V{n}/9\r\na=fmtp:97 x\r\na=rtcp-fb:* x\r\n" for n in range(220))
    # of this thread: others may still be ending
    begun = time.thread_time()
    checked_offer(section("video", "0") + worst + sdp[sdp.index("m=application") :])
    assert time.thread_time() - begun < 0.5


@pytest.mark.parametrize(
    ("find", "put"),
    [
        ("a=group:BUNDLE 0 1", "a=group:BUNDLE 7 0 1"),
        ("a=mid:1", "a=mid:0"),
        ("a=mid:1", "a=mid:"),
        ("a=setup:actpass", "a=setup:never"),
        ("a=ice-pwd", "a=x"),
        ("a=fingerprint", "a=x"),
        ("VP8/90000", "VP8/zero"),
        ("a=sctp-port:5000", "a=sctp-port:" + "9" * 30),
        ("a=max-message-size:", "a=max-message-size:-"),
        ("a=sendrecv", "a=inactive"),
        ("UDP/TLS/RTP/SAVPF", "X"),
        ("a=rtpmap", "a=x"),
        ("m=application ", "m=text "),
    ],
)
def test_a_broken_offer_leaves_nothing_open(server: Server, sdp: str, find: str, put: str) -> None:
    assert find in sdp
    fields = {"sdp": sdp.replace(find, put), "type": "offer", "prompt": "oil"}
    answer = post(server, {**fields, "width": 96, "height": 64})
    assert answer.status_code in (200, 400, 503), answer.text
    if answer.status_code == 200:  # it lacks what nobody missed
        leave_all(server)
    else:
        assert "object at" not in answer.text
    freed(server)
    wait_until(lambda: not peers())


def leave_all(server: Server) -> None:
    for peer, task in list(server.app.state.webrtc._open.values()):
        task.get_loop().call_soon_threadsafe(peer.leave)


def peers() -> list[Any]:
    """Connections of the server that are not closed."""
    gc.collect()
    own = [each for each in gc.get_objects() if type(each) is WebRtcTransport]
    # one that is being made has no connection yet
    return [
        each for each in own if not hasattr(each, "_peer") or each._peer.connectionState != "closed"
    ]


def test_what_fails_while_closing_skips_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(_: Any) -> None:
        raise RuntimeError("of all things")

    monkeypatch.setattr(aiortc.RTCPeerConnection, "close", breaks)
    offer = {"sdp": asyncio.run(good_until_read()), "type": "offer", "prompt": "oil"}
    answer = post(server, {**offer, "width": 96, "height": 64})
    assert (answer.status_code, answer.json()["detail"]) == (400, "the offer's sdp cannot be used")
    freed(server)
    wait_until(lambda: not server.app.state.webrtc._open)


async def good_until_read() -> str:
    """A description that can be parsed, and that nothing can be negotiated with."""
    peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
    peer.addTransceiver("video")
    peer.createDataChannel("x")
    sdp = (await peer.createOffer()).sdp
    return sdp.replace("VP8/90000", "VP7/90000").replace("H264/90000", "H261/90000")


# frames


def encoded(count: int, height: int = 64, width: int = 96) -> list[bytes]:
    """A clip as VP8, each frame whole, without the headers of the network."""
    encoder, found = Vp8Encoder(), []
    for number, pixels in enumerate(levels(count, height, width, 0)):
        frame = VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = number * 6000
        frame.time_base = aiortc.mediastreams.VIDEO_TIME_BASE
        payloads, _ = encoder.encode(frame, force_keyframe=number == 0)
        found.append(b"".join(aiortc.codecs.depayload(VP8, part) for part in payloads))
    return found


VP8 = next(codec for codec in aiortc.codecs.CODECS["video"] if codec.mimeType == "video/VP8")


class Frame:
    def __init__(self, data: bytes, timestamp: int = 0) -> None:
        self.data, self.timestamp = data, timestamp


def receiver() -> RTCRtpReceiver:
    class Transport:
        state = "new"

    return RTCRtpReceiver("video", cast(Any, Transport()))


def test_a_video_frame_tells_its_size() -> None:
    frames = encoded(3, 80, 112)
    assert [vp8_size(data) for data in frames] == [(112, 80), None, None]
    for broken in (b"", b"\0\0", frames[0][:9], b"\0" * 20, frames[0][:6] + bytes(8)):
        with pytest.raises(ProtocolError):
            vp8_size(broken)
    assert {codec.mimeType for codec in codecs()} <= {"video/VP8", "video/rtx"}


def test_few_frames_wait_to_be_decoded_and_each_is_looked_at() -> None:
    async def run() -> None:
        told: list[str] = []
        each = receiver()
        limits = Limits(picture_pixels=10_000, message_bytes=50_000, frames_per_second=1e6)
        decoding = limit_decoding(each, limits, told.append, lambda: told.append("left"))
        whole, *deltas = encoded(20)
        for data in deltas[:3]:  # built upon what never came
            decoding.put((VP8, Frame(data)))
        assert (decoding.qsize(), decoding.dropped) == (0, 3)
        large = whole[:6] + (4000).to_bytes(2, "little") * 2 + whole[10:]
        for data in (whole, large, *deltas, b"", whole[:3] + bytes(20), whole + bytes(60_000)):
            decoding.put((VP8, Frame(data)))
        assert (decoding.qsize(), decoding.dropped) == (1, 3 + 1 + len(deltas) + 3)
        assert [word in " ".join(told) for word in ("4000x4000", "ends within")] == [True, True]
        for data in (whole, *deltas):
            decoding.put((VP8, Frame(data)))
        assert decoding.qsize() == 8
        decoding.put((VP8, Frame(whole)))  # there is no room for whole ones either
        assert decoding.qsize() == 8
        decoding.put(None)
        assert decoding.qsize() == 1
        decoding.join()

    asyncio.run(run())


def test_a_client_sends_under_few_numbers() -> None:
    async def run() -> None:
        left: list[int] = []
        each = receiver()
        limit_decoding(each, Limits(), lambda _: None, lambda: left.append(1))
        for number in range(100):
            packet = aiortc.rtp.RtpPacket(payload_type=97, ssrc=number)
            await each._handle_rtp_packet(packet, arrival_time_ms=0)
        assert len(left) == 92
        assert len(each._RTCRtpReceiver__active_ssrc) == 8  # type: ignore[attr-defined]

    asyncio.run(run())


def test_a_slow_decoder_holds_up_nobody(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real client's frames, decoded by something that takes its time, and a goodbye meanwhile."""
    begun, waiting, late = threading.Event(), list[int](), list[float]()

    class Slow:
        def decode(self, _: Any) -> list[Any]:
            begun.set()
            time.sleep(1.5)
            return []

    monkeypatch.setattr(aiortc.rtcrtpreceiver, "get_decoder", lambda _: Slow())

    async def watched() -> None:
        """How late the server's loop is at most."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            await asyncio.sleep(0.01)
            late.append(loop.time() - now)
            waiting.extend(
                peer._decoding.qsize() for peer, _ in server.app.state.webrtc._open.values()
            )

    async def talk() -> None:
        caller = Caller()
        try:
            await caller.call(server)
            await caller.until(begun.is_set)
            [(peer, task)] = server.app.state.webrtc._open.values()
            loop = task.get_loop()
            watch = asyncio.run_coroutine_threadsafe(watched(), loop)
            await asyncio.sleep(1)
            loop.call_soon_threadsafe(peer.leave)
            await caller.until(lambda: not server.app.state.webrtc._open)
            watch.cancel()
        finally:
            await caller.peer.close()

    asyncio.run(talk())
    assert max(late) < 1.0
    assert 0 < max(waiting) <= 8
    freed(server)
    assert not [each for each in threading.enumerate() if each.name == "video-decoder"]
