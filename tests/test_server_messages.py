"""The protocol's messages, pictures and rules, without a network."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from tests.live_fixtures import levels
from tests.server_fixtures import frame_message, jpeg

from stillframe.server import messages, protocol
from stillframe.server.access import AccessPolicy, is_loopback, new_token
from stillframe.server.limits import ConnectionLimit, Limits, RateLimit, RefusedError
from stillframe.server.messages import Command, Hello, Update, parse_text
from stillframe.server.pages import packaged_file
from stillframe.server.pictures import decode_picture, encode_picture, picture_size
from stillframe.server.protocol import ProtocolError
from stillframe.server.serving import address

LIMITS = Limits()
PIXELS = levels(1, 48, 66)[0]
HELLO = {"type": "hello", "prompt": "oil"}
TOKENS = ["a&b=c" * 4, "50%41" * 4, "a+b%20c" * 3, "x#y?z/;," * 2, '"quoted\\"' * 2, new_token()]


def parse(message: Any) -> Hello | Update | Command:
    return parse_text(message if isinstance(message, str) else json.dumps(message), 2000)


def test_what_clients_may_say_is_understood() -> None:
    full: dict[str, Any] = {
        **HELLO, "token": "t", "width": 96, "height": 64, "policy": "all", "method": "full",
        "recovery": "none", "tolerance": 0, "strength": 1, "quality": 7, "motion": "off",
    }  # fmt: skip
    hello = parse(full)
    assert isinstance(hello, Hello)
    assert {k: getattr(hello, k) for k in full if k != "type"} == {
        k: v for k, v in full.items() if k != "type"
    }
    alone = parse({**HELLO, "token": None, "recovery": None})
    assert isinstance(alone, Hello)
    assert (alone.prompt, alone.token, alone.options) == ("oil", None, {})
    update = parse({"type": "update", "prompt": "", "tolerance": 0.0})
    assert isinstance(update, Update)
    assert update.what == ["prompt", "tolerance"]
    for name in ("pause", "resume", "reset", "bye"):
        command = parse({"type": name})
        assert (isinstance(command, Command), command.type) == (True, name)


def test_another_message_is_one_class() -> None:
    class Nudge(Command):
        type = "nudge"
        times: int = 1

        def run(self, session: Any) -> None:
            session.extend(["nudged"] * self.times)

    try:
        told: list[str] = []
        command = parse({"type": "nudge", "times": 2})
        assert isinstance(command, Nudge)
        command.run(told)
        assert told == ["nudged", "nudged"]
        with pytest.raises(ProtocolError, match="nudge has an unknown field; it may have times"):
            parse({"type": "nudge", "by": "whom"})
    finally:
        del messages._TYPES["nudge"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("", 1007),
        ("{", 1007),
        ("[1]", 1007),
        ("[" * 1500, 1007),
        ('{"type": "update", "tolerance": NaN}', 1007),
        ('{"type": "update", "tolerance": 1e999}', 1008),
        ('{"type": "update", "tolerance": 1' + "0" * 400 + "}", 1008),
        (json.dumps({**HELLO, "prompt": "x" * 3000}), 1009),
        ({}, 1008),
        ({"type": ["hello"]}, 1008),
        ({"type": "ready"}, 1008),
        ({"type": "hello"}, 1008),
        ({**HELLO, "path": "/etc/passwd"}, 1008),
        ({"type": "bye", "now": True}, 1008),
        ({"type": "update"}, 1008),
        ({"type": "update", "width": 64}, 1008),
        ({**HELLO, "prompt": 3}, 1008),
        ({**HELLO, "prompt": "x" * 1001}, 1008),
        ({**HELLO, "prompt": "a\x00b"}, 1008),
        ({**HELLO, "prompt": "a\x9bb"}, 1008),
        ('{"type": "hello", "prompt": "\\ud800"}', 1008),
        ({**HELLO, "width": 64.5}, 1008),
        ({**HELLO, "width": 15}, 1008),
        ({**HELLO, "height": True}, 1008),
        ({**HELLO, "height": 10**9}, 1008),
        ({**HELLO, "quality": 101}, 1008),
        ({**HELLO, "policy": "some"}, 1008),
        ({**HELLO, "strength": 0}, 1008),
        ({**HELLO, "strength": "1"}, 1008),
        ({**HELLO, "tolerance": -0.1}, 1008),
    ],
)
def test_what_they_may_not_say_is_refused(message: Any, code: int) -> None:
    with pytest.raises(ProtocolError) as error:
        parse(message)
    assert error.value.code == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", 1007),
        (bytes(16), 1007),
        (frame_message(0, b""), 1007),
        (b"\x02" + frame_message(0, b"x")[1:], 1007),
        (frame_message(0, b"x")[:3] + b"\x01" + frame_message(0, b"x")[4:], 1007),
        (frame_message(float("nan"), b"x"), 1007),
        (frame_message(float("-inf"), b"x"), 1007),
        (frame_message(0, bytes(100)), 1009),
    ],
)
def test_binary_messages_other_than_frames_are_refused(data: bytes, code: int) -> None:
    with pytest.raises(ProtocolError) as error:
        protocol.parse_frame(data, 100)
    assert error.value.code == code
    assert protocol.parse_frame(frame_message(1.5, b"abc"), 100) == (1.5, b"abc")


def test_maps_and_frames_are_packed_as_the_table_says() -> None:
    keep = np.random.default_rng(0).random((3, 5, 7)) < 0.4
    data = protocol.pack_map(2.25, keep)
    assert data[:8] == b"\x02" + bytes(7)
    assert struct.unpack("<dHHH", data[8:22]) == (2.25, 3, 5, 7)
    bits = [byte >> (7 - at) & 1 for byte in data[22:] for at in range(8)]
    assert bits[:105] == keep.flatten().tolist()
    assert len(bits) == 112
    moved = ~keep & (np.random.default_rng(1).random((3, 5, 7)) < 0.4)
    both = protocol.pack_map(2.25, keep, moved)
    assert both[: len(data)] == data
    assert protocol.pack_map(2.25, moved)[22:] == both[len(data) :]
    assert protocol.pack_frame(2.25, b"xy") == frame_message(2.25, b"xy")


@pytest.mark.parametrize(
    "data",
    [
        jpeg(PIXELS),
        jpeg(PIXELS, progressive=True),
        jpeg(np.repeat(PIXELS[..., :1], 3, 2)),
        jpeg(PIXELS, comment=b"x" * 999),
        jpeg(PIXELS, "WEBP"),
        jpeg(PIXELS, "WEBP", lossless=True),
        jpeg(PIXELS, "WEBP", exif=b"Exif\0\0" + bytes(20)),
    ],
)
def test_sizes_in_headers_are_those_of_the_pixels(data: bytes) -> None:
    assert picture_size(data) == (66, 48)
    assert decode_picture(data, LIMITS).shape == (48, 66, 3)
    small = Limits(picture_pixels=66 * 48 - 1)
    narrow = Limits(picture_side=65)
    for limits in (small, narrow):
        with pytest.raises(ProtocolError, match="66x48") as error:
            decode_picture(data, limits)
        assert error.value.code == 1009


def test_a_large_size_is_refused_before_it_is_decoded() -> None:
    """The header alone is there; decoding would say that it is cut off, or take gigabytes."""
    baseline = jpeg(PIXELS)
    at = baseline.index(b"\xff\xc0")
    huge = baseline[: at + 5] + struct.pack(">2H", 65535, 65535) + baseline[at + 9 :]
    still = b"RIFF" + bytes(4) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6
    for data in (huge, still):
        with pytest.raises(ProtocolError, match=r"65535x65535|16777216x16777216") as error:
            decode_picture(data, LIMITS)
        assert error.value.code == 1009


def test_pictures_that_are_damaged_cut_off_or_something_else_are_refused() -> None:
    good, webp = jpeg(PIXELS), jpeg(PIXELS, "WEBP")
    moving = jpeg(PIXELS, "WEBP", save_all=True, append_images=[Image.fromarray(255 - PIXELS)])
    cut = [data[:end] for data in (good, webp) for end in range(1, len(data) - 2, 37)]
    many = good + b"\xff\xda" * 100
    for data in (b"GIF89a" + bytes(50), jpeg(PIXELS, "PNG"), moving, many, *cut):
        with pytest.raises(ProtocolError):
            decode_picture(data, LIMITS)


def test_damaged_pictures_are_pixels_or_refused_but_nothing_else() -> None:
    rng = np.random.default_rng(3)
    for original in (jpeg(PIXELS), jpeg(PIXELS, "WEBP")):
        for _ in range(100):
            data = np.frombuffer(original, np.uint8).copy()
            data[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
            with contextlib.suppress(ProtocolError):
                assert decode_picture(data.tobytes(), LIMITS).dtype == np.uint8


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_pictures_are_turned_as_their_exif_says(kind: str) -> None:
    """Each orientation is how the sensor lay; what is seen is the same."""
    seen = PIXELS.astype(int)
    # what a camera stores, held so that the picture of that orientation is `seen`; EXIF 2.32, 4.6.4
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1],
        5: seen.swapaxes(0, 1), 6: np.rot90(seen, 1), 7: seen[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(seen, -1),
    }  # fmt: skip
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        lying = np.ascontiguousarray(pixels.astype(np.uint8))
        got = decode_picture(jpeg(lying, kind, quality=100, exif=exif.tobytes()), LIMITS)
        assert got.shape == PIXELS.shape, orientation
        assert np.abs(got - seen).mean() < 3, orientation


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, once a process
def test_damaged_exif_leaves_a_picture_as_it_lies() -> None:
    whole = Image.Exif()
    whole[0x0112] = 6
    for cut in range(7, len(whole.tobytes())):
        data = jpeg(PIXELS, exif=whole.tobytes()[:cut])
        assert decode_picture(data, LIMITS).shape in {(48, 66, 3), (66, 48, 3)}
    nonsense = jpeg(PIXELS, exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert np.array_equal(decode_picture(nonsense, LIMITS), decode_picture(jpeg(PIXELS), LIMITS))


def test_pictures_go_out_and_come_back() -> None:
    back = decode_picture(encode_picture(PIXELS, 95), LIMITS)
    assert np.abs(back.astype(int) - PIXELS).mean() < 4
    assert len(encode_picture(PIXELS, 95)) > len(encode_picture(PIXELS, 20))


def test_only_this_computer_needs_no_token() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"):
        assert is_loopback(host)
        assert AccessPolicy(host).accepts(None)
    for host in ("0.0.0.0", "::", "192.168.0.2", "example.org", "localhost.example.org", ""):
        assert not is_loopback(host)
        for token in (None, ""):
            with pytest.raises(ValueError, match="token"):
                AccessPolicy(host, token)
    token = new_token()
    assert len({new_token() for _ in range(20)} | {token}) == 21
    policy = AccessPolicy("0.0.0.0", token)
    assert policy.accepts(token)
    for wrong in (None, "", token[:-1], token + "x", "ä", "\ud800"):
        assert not policy.accepts(wrong)


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "127.0.0.1:7860", True),
        ("http://127.0.0.1:7860", "127.0.0.1:7860", True),
        ("http://localhost:5000", "127.0.0.1:7860", True),
        ("https://box.lan:7860", "box.lan:7860", True),
        ("http://box.lan:7861", "box.lan:7860", False),
        ("http://localhost:7860", "box.lan:7860", False),
        ("http://evil.example", "127.0.0.1:7860", False),
        ("http://127.0.0.1.evil.example:7860", "127.0.0.1:7860", False),
        ("http://127.0.0.1@evil.example", "127.0.0.1", False),
        ("null", "127.0.0.1:7860", False),
        ("", "127.0.0.1:7860", False),
        ("http://[::1", "127.0.0.1:7860", False),
        ("http://a:b", "a:b", False),
        ("file://", "", False),
    ],
)
def test_pages_of_others_may_not_open_a_socket(
    origin: str | None, host: str, allowed: bool
) -> None:
    assert AccessPolicy("127.0.0.1").origin_allowed(origin, host) is allowed


def test_a_local_server_answers_to_local_names_only() -> None:
    local = AccessPolicy("127.0.0.1", names=["box.example"])
    open_one = AccessPolicy("0.0.0.0", TOKENS[0], names=["Box.Example."])
    for name in ("127.0.0.1:7860", "localhost", "[::1]:7860", "LOCALHOST:80"):
        assert local.host_allowed(name)
        assert open_one.host_allowed(name)
    for other in ("evil.example:7860", "127.0.0.1.evil.example", "", None, "a:b:c"):
        assert not local.host_allowed(other)
        assert not open_one.host_allowed(other)
    # an address leads nowhere else, and these are its names
    own = socket.gethostname()
    for name in ("192.168.0.2:7860", "[fe80::1]", "box.example", f"{own}:80", f"{own.upper()}."):
        assert not local.host_allowed(name)
        assert open_one.host_allowed(name)
    assert not open_one.host_allowed(f"{own}.evil.example")


@pytest.mark.parametrize("token", ["x", "x" * 15, "x" * 201, "pässwörd" * 3, "x y" * 8, "x\n" * 9])
def test_tokens_that_can_be_guessed_or_not_be_sent_are_refused(token: str) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(ValueError, match=r"16 to 200 characters, this one has|of ASCII"):
            AccessPolicy(host, token)


def test_connections_are_counted_up_to_their_limit() -> None:
    limit = ConnectionLimit(2)
    with limit.one(), limit.one():
        with pytest.raises(RefusedError, match="2 of 2 sessions"), limit.one():
            pass
        assert limit.open == 2
    assert limit.open == 0


def test_a_rate_holds_in_the_long_run() -> None:
    now = [0.0]
    rate = RateLimit(10.0, lambda: now[0])
    allowed = 0
    for step in range(1000):
        now[0] = step / 100
        allowed += rate.allows()
    assert allowed in range(118, 121)  # 10 s of 10, and 20 at once
    now[0] += 1000.0
    assert sum(rate.allows() for _ in range(100)) == 20


def test_only_files_of_the_folder_are_served(tmp_path: Path) -> None:
    inside, secret = tmp_path / "static", tmp_path / "secret.txt"
    (inside / "deep").mkdir(parents=True)
    secret.write_text("x")
    for name in ("a.js", "deep/b.css", ".hidden"):
        (inside / name).write_text("x")
    (inside / "link").symlink_to(secret)
    assert packaged_file(inside, "a.js") == inside / "a.js"
    assert packaged_file(inside, "deep/b.css") == inside / "deep/b.css"
    wrong = ["../secret.txt", "deep/../../secret.txt", str(secret), f"/{secret}", "link", ".hidden",
             "", ".", "deep", "deep/", "a.js\0", "..\\secret.txt", "x" * 5000]  # fmt: skip
    assert [name for name in wrong if packaged_file(inside, name)] == []


def test_addresses_can_be_opened() -> None:
    assert address("127.0.0.1", 80) == "http://127.0.0.1:80/"
    assert address("::1", 80) == "http://[::1]:80/"
    assert address("192.168.0.2", 80, "t") == "http://192.168.0.2:80/#token=t"
    assert "0.0.0.0" not in address("0.0.0.0", 80, "t")
    assert address("fe80::1%eth0", 80) == "http://[fe80::1%25eth0]:80/"


@pytest.mark.parametrize("token", TOKENS, ids=range(len(TOKENS)))
def test_a_token_comes_out_of_an_address_as_it_went_in(token: str) -> None:
    parts = urlsplit(address("192.168.0.2", 80, token))
    # a fragment is not sent
    assert (parts.netloc, parts.path, parts.query) == ("192.168.0.2:80", "/", "")
    assert parse_qs(parts.fragment) == {"token": [token]}
