"""Messages of clients, of every kind: read or refused with a sentence, and nobody is disturbed."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import tiny
from tests.fuzz.server_watch import ODD, check_sentence, seeds, watched, wild
from tests.server_fixtures import Server, frame_message, jpeg, pictures, serving
from websockets.exceptions import ConnectionClosed

from stillframe.server.client_config import ClientConfig
from stillframe.server.limits import Limits
from stillframe.server.messages import Command, Hello, Update, live_options, parse_offer, parse_text
from stillframe.server.pictures import decode_picture
from stillframe.server.protocol import ProtocolError, parse_frame

LIMITS = Limits(
    frames_per_second=5000.0, texts_per_second=500.0, hello_seconds=0.3, message_bytes=200_000,
    picture_pixels=320 * 240,
)  # fmt: skip
HELLO = {"type": "hello", "prompt": "oil", "width": 96, "height": 64}
NAMES = [*Hello.model_fields, *live_options(), "type", "sdp", "", "__class__", "self", "kind"]
TYPES = ["hello", "update", "pause", "resume", "reset", "bye", "ready", "", "HELLO"]
PICTURES = [
    *pictures(3), jpeg(np.zeros((30, 40, 3), np.uint8), "WEBP"),
    jpeg(np.zeros((30, 40, 3), np.uint8), progressive=True),
]  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(ODD),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(NAMES), inner),
    max_leaves=6,
)
MESSAGES = st.dictionaries(st.sampled_from(NAMES), JSON | st.sampled_from(TYPES))


def settled(scale: int) -> Any:
    """So many cases, the same ones each time; a failure prints the blob that repeats it."""
    return settings(
        max_examples=150 * scale, derandomize=True, database=None, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def spoiled(data: bytes, rng: random.Random) -> bytes:
    """Bytes that were right once."""
    spoilt = bytearray(data)
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(spoilt) + 1)
        how = rng.randrange(4)
        if how == 0:
            del spoilt[at : at + rng.randrange(9)]
        elif how == 1:
            spoilt[at:at] = rng.randbytes(rng.randrange(9))
        elif how == 2 and spoilt:
            spoilt[at % len(spoilt)] = rng.randrange(256)
        else:
            del spoilt[rng.randrange(len(spoilt) + 1) :]
    return bytes(spoilt)


def text(rng: random.Random) -> str:
    """A text message that was right once, or never."""
    message: Any = dict(rng.choice([HELLO, {"type": "update"}, {"type": rng.choice(TYPES)}]))
    for name in rng.sample(NAMES, rng.randrange(4)):
        message[name] = wild(rng)
    how = rng.randrange(12)
    said = json.dumps(message)
    if how == 0:
        said = rng.choice(["[", '{"a":', '"']) * rng.choice([1, 10, 3000, 9000])
    elif how == 1:
        said = said[:-1] + f', "type": "update", "{rng.choice(NAMES)}": 1' + "}"  # a name twice
    elif how == 2:
        said = said.replace("96", "1" + "0" * rng.choice([30, 400, 4000, 9000]))
    elif how == 3:
        said = json.dumps(wild(rng))
    elif how == 4:
        said = spoiled(said.encode(), rng).decode(errors="replace")
    elif how == 5:
        said = " " * rng.choice([16_384, 20_000]) + said
    return said


def binary(rng: random.Random) -> bytes:
    """A binary message that was right once, or never."""
    stamp = rng.choice([0.0, 1.0, -1.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 2.0**60])
    data = frame_message(stamp, rng.choice(PICTURES))
    how = rng.randrange(8)
    if how == 0:
        return rng.randbytes(rng.choice([0, 1, 15, 16, 17, 22, 5000]))
    if how == 1:
        return struct.pack("<B7sd", rng.randrange(256), rng.randbytes(7), stamp) + data[16:]
    if how == 2:
        return data[: rng.randrange(len(data))]
    if how == 3:
        return frame_message(stamp, b"\xff\xd8\xff" + rng.randbytes(rng.randrange(200)))
    return data[:16] + spoiled(data[16:], rng)


def invalid_text(rng: random.Random) -> list[bytes]:
    """A text message in pieces, whose bytes are no text."""
    data = spoiled(json.dumps(HELLO).encode() + b"\xff\xed\xa0\x80\xc0\xaf", rng) + b"\xfe"
    cut = rng.randrange(len(data))
    return [data[:cut], data[cut:]]


# without a network


def read(said: str) -> None:
    try:
        message = parse_text(said, LIMITS.text_bytes)
    except ProtocolError as error:
        check_sentence(str(error))
        return
    assert isinstance(message, Hello | Update | Command)
    if isinstance(message, Update):
        assert set(message.options) <= set(live_options())
        assert set(message.what) <= {"prompt", *live_options()}
        try:
            assert ClientConfig().changed(message).config
        except ValueError as error:
            check_sentence(str(error))


def test_any_json_is_a_message_or_refused(fuzz_scale: int) -> None:
    @settled(fuzz_scale)
    @given(MESSAGES | JSON)
    def run(message: Any) -> None:
        read(json.dumps(message))
        data = json.dumps(message).encode()
        for offer in (data, data.decode().encode("utf-16", "replace")):
            try:
                sdp, hello = parse_offer(offer)
            except ProtocolError as error:
                check_sentence(str(error))
            else:
                assert isinstance(sdp, str)
                assert isinstance(hello, Hello)

    run()


def test_any_bytes_are_a_frame_or_refused(fuzz_scale: int) -> None:
    @settled(fuzz_scale)
    @given(st.binary(max_size=100) | st.builds(frame_message, st.floats(), st.binary(max_size=60)))
    def run(data: bytes) -> None:
        try:
            frame = parse_frame(data, LIMITS.message_bytes)
            decode_picture(frame.picture, LIMITS)
        except ProtocolError as error:
            check_sentence(str(error))

    run()


def test_texts_and_pictures_that_were_right_once(fuzz_scale: int) -> None:
    for rng in seeds("texts", 1000 * fuzz_scale):
        read(text(rng))
    for rng in seeds("pictures", 600 * fuzz_scale):
        try:
            frame = parse_frame(binary(rng), LIMITS.message_bytes)
            assert decode_picture(frame.picture, LIMITS).dtype == np.uint8
        except ProtocolError as error:
            check_sentence(str(error))


# over sockets


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny.pipeline(), limits=LIMITS, max_sessions=3) as running:
        yield running


def one_client(server: Server, rng: random.Random) -> int:
    """Say some things, and hear what comes; how many were said."""
    said = 0
    with server.client({}) as client:
        try:
            if rng.random() < 0.8:
                client.socket.send(json.dumps(HELLO))
            for _ in range(rng.randrange(1, 12)):
                how = rng.random()
                if how < 0.05:
                    client.socket.send(invalid_text(rng), text=True)
                else:
                    client.socket.send(binary(rng) if how < 0.5 else text(rng))
                said += 1
            if rng.random() < 0.3:
                client.say("bye")
        except ConnectionClosed:
            pass
        else:
            while client.hear(0.02 if rng.random() < 0.5 else 0.2) not in ("closed", ""):
                pass
    for told in client.texts:
        for name in {"message", "reason"} & told.keys():
            check_sentence(told[name])
        assert "the server failed" not in str(told), told
    assert client.code in (None, 1000, 1006, 1007, 1008, 1009, 1013)
    return said


def test_messages_disturb_nobody(server: Server, fuzz_scale: int) -> None:
    with watched(server):
        said = sum(one_client(server, rng) for rng in seeds("clients", 40 * fuzz_scale))
    assert said > 100 * fuzz_scale
