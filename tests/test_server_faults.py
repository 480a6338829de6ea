"""What goes wrong with one prompt, one update or one frame costs that one, and never a session.

Over real sockets, on a tiny random model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from tests.server_fixtures import Server, frame_message, jpeg, pictures, serving, wait_until

from stillframe.cli.edit import placed_prompt
from stillframe.live import LiveSession, Worker
from stillframe.loading.prompts import clean_prompt
from stillframe.server.limits import Limits

LIMITS = Limits(picture_pixels=320 * 240, frames_per_second=2000.0, texts_per_second=200.0)

# as people type and paste them, and what the text encoder is to get
PROMPTS = [
    ("full-width space", "油絵\u3000夜", "油絵 夜"),
    ("no-break space", "peinture\u00a0à l\u2019huile", "peinture à l\u2019huile"),
    ("narrow no-break space", "huile\u202f!", "huile !"),
    ("Persian non-joiner", "می\u200cخواهم", "می\u200cخواهم"),
    ("joined emoji", "👨\u200d👩\u200d👧 oil", "👨\u200d👩\u200d👧 oil"),
    ("mark of direction", "\u200fציור שמן", "\u200fציור שמן"),
    ("soft hyphen", "water\u00adcolour", "water\u00adcolour"),
    ("tab", "oil\tpainting", "oil painting"),
    ("lines of Windows", "oil\r\npainting\r\n", "oil painting"),
    ("line and paragraph separator", "oil\u2028on\u2029canvas", "oil on canvas"),
    ("next line", "oil\u0085painting", "oil painting"),
    ("byte order mark", "\ufeffoil", "oil"),
    ("spaces around", "  oil  painting ", "oil painting"),
    ("nothing", "", ""),
]
REFUSED = ["oil\0", "\x1b[31moil", "oil\x7f", "\x9boil", "\b", "oil \ud800", "x" * 1001]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe, limits=LIMITS, max_sessions=2) as running:
        yield running


@pytest.fixture(autouse=True)
def _everything_is_given_back(server: Server) -> Iterator[None]:
    yield
    wait_until(lambda: server.state.connections.open == 0)
    assert (server.state.open_sessions.open, server.state.sessions) == (0, {})


@pytest.mark.parametrize(("name", "typed", "meant"), PROMPTS)
def test_prompts_are_cleaned_alike_everywhere(name: str, typed: str, meant: str) -> None:
    assert clean_prompt(typed) == meant
    assert clean_prompt(meant) == meant
    assert placed_prompt("tiny", typed, None)[0] == meant


def test_prompts_that_people_paste_are_taken_at_first_and_while_it_runs(server: Server) -> None:
    with server.client({"policy": "all", "prompt": PROMPTS[0][1]}) as client:
        client.until("ready")
        [session] = server.state.sessions.values()
        assert session.request.prompt == PROMPTS[0][2]
        for name, typed, meant in PROMPTS:
            client.say("update", prompt=typed)
            assert client.until("updated")["what"] == ["prompt"], name
            assert session.request.prompt == meant, name
        client.works()
    assert not [text for text in client.texts if text["type"] == "notice"]


def test_white_space_of_any_kind_gives_the_same_picture(pipe: Any) -> None:
    plain, pasted = (pipe.encode_prompt(clean_prompt(p)) for p in ("a b", "\ufeffa\u3000\r\nb\t"))
    assert torch.equal(plain, pasted)


def test_a_prompt_that_is_no_text_is_refused_where_it_is_given(pipe: Any) -> None:
    for wrong in REFUSED[:-1]:
        with pytest.raises(ValueError, match=r"control characters|not valid text"):
            clean_prompt(wrong)
        with pytest.raises(ValueError, match=r"control characters|not valid text"):
            placed_prompt("tiny", wrong, None)
    worker = Worker()
    with LiveSession(pipe, "oil", worker=worker) as session:
        before = session.request
        with pytest.raises(ValueError, match=r"no control characters, got U\+0007"):
            session.change(prompt="oil\a")
        with pytest.raises(ValueError, match="a prompt is text, got list"):
            session.change(prompt=["oil"])  # type: ignore[arg-type]
        assert session.request is before
        assert session.state == "ready"


def test_a_refused_update_changes_nothing_and_its_session_goes_on(server: Server) -> None:
    updates: list[dict[str, Any]] = [{"prompt": prompt} for prompt in REFUSED]
    updates += [
        {}, {"file": "/etc/passwd"}, {"tolerance": "0"}, {"tolerance": -1}, {"tolerance": 1e300},
        {"strength": 0},
        {"recovery": "nothing such"}, {"method": "magic"}, {"width": 64}, {"refresh": 0},
        {"target_fps": 8, "target_kept": 0.5}, {"prompt": "night", "tolerance": "x"},
        {"prompt": "night", "method": "magic"},
    ]  # fmt: skip
    with server.client({"policy": "all"}) as client:
        client.works(0)
        [session] = server.state.sessions.values()
        before = session.request
        for fields in updates:
            client.say("update", **fields)
            notice = client.until("notice")
            assert notice["about"] == "update", fields
            assert len(notice["message"]) > 10, fields
            assert session.request is before, fields
        client.say("update", prompt="night")
        assert client.until("updated")["what"] == ["prompt"]
        client.works(10)
    assert len([text for text in client.texts if text["type"] == "notice"]) == len(updates)


GOOD = pictures(1)[0]
LATE = "timestamps must rise"
UNUSABLE: list[tuple[str, bytes, str]] = [
    ("cut off", frame_message(0.65, GOOD[: len(GOOD) // 2]), "cannot be decoded"),
    ("torn in its header", frame_message(0.65, GOOD[:40]), "ends within its header"),
    ("no picture", frame_message(0.65, b"\xff\xd8\xff" + bytes(99)), "damaged"),
    ("too large", frame_message(0.65, jpeg(np.zeros((400, 400, 3), np.uint8))), "400x400"),
    ("short", b"\x01", "this message has 1 bytes"),
    ("a map", b"\x02" + bytes(30), "begins with 1"),
    ("no number", frame_message(float("nan"), GOOD), "finite number"),
    ("the same time", frame_message(0.6, GOOD), LATE),
    ("a time before", frame_message(0.3, GOOD), LATE),
]


@pytest.mark.parametrize(("name", "message", "why"), UNUSABLE)
def test_one_frame_that_cannot_be_used_is_dropped_counted_and_told_of(
    server: Server, name: str, message: bytes, why: str
) -> None:
    clip = pictures(24)
    with server.client({"policy": "all"}) as client:
        for number in range(24):
            client.send(number / 10, clip[number])
            if number == 6:
                client.socket.send(message)
        client.until("frame", 24)
    told = [text for text in client.texts if text["type"] == "notice"]
    assert [(text["about"], text["unusable"]) for text in told] == [("frame", 1)]
    assert told[0]["message"].startswith("1 frame could not be used: ")
    assert why in told[0]["message"]
    # all others came back, each under its own time
    assert [at for at, _ in client.frames] == [number / 10 for number in range(24)]
    last = [text for text in client.texts if text["type"] == "telemetry"][-1]
    assert (last["unusable"], last["dropped"]) == (1, 1)


@pytest.mark.parametrize("leap", [-3600.0, 3600.0, -0.35])
def test_a_clock_that_is_set_does_not_silence_a_session(server: Server, leap: float) -> None:
    clip = pictures(60)
    stamps = [1000 + number / 10 + (leap if number >= 24 else 0.0) for number in range(60)]
    with server.client({"policy": "all"}) as client:
        for stamp, picture in zip(stamps, clip, strict=True):
            client.send(stamp, picture)
        client.until("frame", 48)
        # and they, and the maps, come back under the client's own timestamps
        times = [at for at, _ in client.frames]
        assert times[:24] == stamps[:24]
        assert set(times) <= set(stamps)
        assert [at for at, _ in client.maps] == times[::12]


def test_a_clock_that_stands_still_is_told_of(server: Server) -> None:
    with server.client() as client:
        for _ in range(50):
            client.send(5.0, GOOD)
        assert LATE in client.until("notice")["message"]
        client.works(10)
