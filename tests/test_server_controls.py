"""What clients say of controls, and what a session over a real socket makes of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests import tiny
from tests.live_fixtures import BLOCK, file_path, levels
from tests.server_fixtures import Client, Server, jpeg, pictures, serving, wait_until

from stillframe.controls import Controls, Cuts, Gop, Guard, Rate, Refresh
from stillframe.server.client_config import ClientConfig
from stillframe.server.messages import Hello, Update, parse_message, parse_text
from stillframe.server.pictures import encode_picture
from stillframe.server.protocol import ProtocolError

HELLO = {"type": "hello", "prompt": "oil"}
UPDATE = {"type": "update"}
NAMES = ("target_fps", "target_latency", "target_kept", "rate_mode", "refresh", "gop", "cuts",
         "guard")  # fmt: skip


def said(message: dict[str, Any]) -> Hello | Update:
    parsed = parse_text(json.dumps(message), 4000)
    assert isinstance(parsed, Hello | Update)
    return parsed


def update(**given: Any) -> Update:
    return parse_message(Update, given)


# messages


@pytest.mark.parametrize("first", [HELLO, UPDATE], ids=["hello", "update"])
@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("target_fps", 12, 12.0),
        ("target_latency", 0.25, 0.25),
        ("target_kept", 1, 1.0),
        ("rate_mode", "capped", "capped"),
        ("refresh", 4, 4),
        ("gop", 1, 1),
        ("cuts", True, True),
        ("guard", 0.1, 0.1),
        ("guard", True, Guard().share),
        *((name, away, None) for name in NAMES for away in (None, False)),
    ],
)
def test_controls_are_read(first: dict[str, Any], name: str, value: Any, taken: Any) -> None:
    message = said({**first, name: value})
    assert message.options == {name: taken}
    assert type(message.options[name]) is type(taken)
    assert message.what == [*(["prompt"] if first is HELLO else []), name]


@pytest.mark.parametrize("first", [HELLO, UPDATE], ids=["hello", "update"])
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"target_fps": 0}, "target_fps is a number from 0.001 to 1000000, got 0"),
        ({"target_fps": -1.5}, "target_fps is a number from 0.001 to 1000000, got -1.5"),
        ({"target_fps": 1e-9}, "target_fps is a number from 0.001 to 1000000"),
        ({"target_fps": 10**300}, "target_fps is a number from 0.001 to 1000000"),
        ({"target_fps": True}, "target_fps is a number from 0.001 to 1000000"),
        ({"target_fps": "15"}, "target_fps is a number from 0.001 to 1000000"),
        ({"target_latency": 0}, "target_latency is a number from 0.001 to 3600, got 0"),
        ({"target_latency": [1]}, "target_latency is a number from 0.001 to 3600"),
        ({"target_kept": 1.1}, "target_kept is a number above 0 up to 1, got 1.1"),
        ({"target_kept": 0}, "target_kept is a number above 0 up to 1, got 0"),
        ({"rate_mode": "fast"}, "rate_mode is constant or capped"),
        ({"rate_mode": 1}, "rate_mode is constant or capped"),
        ({"refresh": 0}, "refresh is a whole number from 1 to 65536, got 0"),
        ({"refresh": 2.5}, "refresh is a whole number from 1 to 65536, got 2.5"),
        ({"refresh": 10**30}, "refresh is a whole number from 1 to 65536"),
        ({"refresh": True}, "refresh is a whole number from 1 to 65536"),
        ({"gop": -3}, "gop is a whole number from 1 to 65536, got -3"),
        ({"gop": "4"}, "gop is a whole number from 1 to 65536"),
        ({"cuts": 1}, "cuts is true or false"),
        ({"cuts": "yes"}, "cuts is true or false"),
        ({"guard": 0}, "guard is a number above 0 up to 0.5, got 0"),
        ({"guard": 0.6}, "guard is a number above 0 up to 0.5, got 0.6"),
        ({"guard": "x"}, "guard is a number above 0 up to 0.5"),
        ({"guard": {}}, "guard is a number above 0 up to 0.5"),
        (
            {"target_fps": 8, "target_kept": 0.5},
            "one of target_fps, target_kept may be given, got 2",
        ),
        (
            {"target_fps": 8, "target_latency": 1, "target_kept": 0.5},
            "one of target_fps, target_latency, target_kept may be given, got 3",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(
    first: dict[str, Any], fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ProtocolError) as error:
        said({**first, **fields})
    assert str(error.value).startswith(sentence)
    assert error.value.code == 1008


def test_numbers_that_are_none_are_refused() -> None:
    for text in ('{"type": "update", "target_fps": 1e999}', '{"type": "update", "guard": 1e999}'):
        with pytest.raises(ProtocolError, match="is a number"):
            parse_text(text, 4000)


def test_only_a_first_message_and_an_update_have_controls() -> None:
    for kind in ("pause", "resume", "reset", "bye"):
        with pytest.raises(ProtocolError, match="it may have no fields"):
            parse_text(json.dumps({"type": kind, "refresh": 4}), 4000)


# what is held


def test_what_is_not_named_stays_and_a_target_takes_the_place_of_another() -> None:
    said = {"target_fps": 8.0, "rate_mode": "capped", "refresh": 4, "cuts": True}
    held = ClientConfig().with_values(said)
    assert held.config.control == Controls(Refresh(4), Cuts(), Rate(fps=8.0, mode="capped"))
    held = held.with_values({"target_kept": 0.5, "cuts": None})
    assert held.values == {"target_kept": 0.5, "rate_mode": "capped", "refresh": 4}
    held = held.with_values({"target_latency": None, "gop": 9, "guard": 0.02})
    assert held.config.control == Controls(
        Gop(9), Refresh(4), Rate(kept=0.5, mode="capped"), Guard()
    )
    held = held.with_values(dict.fromkeys(("target_kept", "refresh", "gop", "guard")))
    assert held.config.control is None
    # the mode waits for another target
    again = held.with_values({"target_fps": 3.0})
    assert again.config.control == Controls(Rate(fps=3.0, mode="capped"))


def test_a_rate_rests_while_everything_is_computed() -> None:
    first = ClientConfig().changed(said({**HELLO, "target_fps": 8.0, "refresh": 4}))
    everything = first.changed(update(method="full"))
    assert everything.config.control == Controls(Refresh(4))
    changes = everything.changes(first)
    assert (set(changes), changes["method"].name) == ({"method", "control"}, "full")
    again = everything.changed(update(method="prune"))
    assert again.config.control == Controls(Refresh(4), Rate(fps=8.0))
    assert again.changes(first) == {}
    assert first.changed(update(prompt="sepia")).changes(first) == {}
    assert set(first.changed(update(tolerance=4)).changes(first)) == {"method"}
    for controls in ({"target_fps": 9.0}, {"target_kept": 0.5}, {"guard": 0.02}):
        with pytest.raises(ValueError, match="method 'full'"):
            everything.changed(update(**controls))
    with pytest.raises(ValueError, match="method 'full' has no thresholds"):
        ClientConfig().changed(said({**HELLO, "method": "full", "target_fps": 9.0}))
    # what everybody can have
    every = ClientConfig({"method": "full"}).changed(update(gop=2, cuts=True))
    assert every.config.control == Controls(Gop(2), Cuts())


# over a socket


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def server(pipe: Any) -> Iterator[Server]:
    with serving(pipe) as running:
        yield running


def told(client: Client) -> list[dict[str, Any]]:
    return [text for text in client.texts if text["type"] == "telemetry"]


def feed(client: Client, blocks: int, start: float) -> None:
    """Send blocks of a clip and see them come back."""
    for number, picture in enumerate(pictures(BLOCK * blocks)):
        client.send(start + number / 10, picture)
        if number % BLOCK == BLOCK - 1:
            client.until("frame", BLOCK)


def test_a_rate_and_a_guard_are_turned_on_and_off_while_it_runs(server: Server) -> None:
    with server.client({"policy": "all"}) as client:
        feed(client, 2, 0)
        client.say("update", target_kept=0.4, guard=0.05)
        assert client.until("updated")["what"] == ["guard", "target_kept"]
        feed(client, 4, 10)
        client.say("update", target_kept=0.2)
        client.until("updated")
        feed(client, 3, 20)
        client.say("update", target_kept=None, guard=False)
        client.until("updated")
        feed(client, 2, 30)
        [session] = server.state.sessions.values()
        assert {block.stream for block in session.telemetry.blocks} == {0}
    blocks = told(client)
    assert ["rate" in block for block in blocks] == [False] * 2 + [True] * 7 + [False] * 2
    assert ["guard" in block for block in blocks] == [False] * 2 + [True] * 7 + [False] * 2
    assert [block["rate"]["target_kept"] for block in blocks[2:9]] == [0.4] * 4 + [0.2] * 3
    kept = [block["kept_share"] for block in blocks]
    assert sum(kept[2:6]) / 4 == pytest.approx(0.4, abs=0.01)
    assert sum(kept[6:9]) / 3 == pytest.approx(0.2, abs=0.02)
    assert set(blocks[8]["rate"]) == {
        "target_kept", "mode", "share", "achieved", "behind", "out_of_reach", "limit"
    }  # fmt: skip
    # the guard goes on while the target changes
    drawn = [block["guard"]["drawn"] for block in blocks[2:9]]
    assert drawn == [8 * number for number in range(1, 8)]
    for block in blocks[2:9]:
        guard = block["guard"]
        assert 0 <= guard["low"] <= guard["error"] <= guard["high"]
        assert (guard["share"], guard["confidence"]) == (0.05, 0.95)


def test_a_rate_in_time_says_what_is_out_of_reach(server: Server) -> None:
    with server.client({"policy": "all", "target_fps": 0.01}) as client:
        feed(client, 3, 0)
        client.say("update", target_latency=0.001, rate_mode="capped")
        client.until("updated")
        feed(client, 4, 10)
    blocks = [block["rate"] for block in told(client)]
    assert [block["out_of_reach"] for block in blocks] == [False] * 3 + [True] * 4
    assert [block["mode"] for block in blocks] == ["constant"] * 3 + ["capped"] * 4
    assert blocks[-1]["achieved"] > blocks[-1]["target_latency"] == 0.001
    assert blocks[-1]["limit"] > 0.001


def test_a_session_that_is_told_what_to_hold_is_a_file_that_holds_it(
    server: Server, pipe: Any
) -> None:
    """What comes back is bit for bit the picture of what an edit of the file gives."""
    clip = [jpeg(frame) for frame in levels(6 * BLOCK, 64, 96)]
    hello = {"policy": "all", "refresh": 3, "gop": 4, "target_kept": 0.5}
    with server.client(hello) as client:
        for number, picture in enumerate(clip):
            client.send(number / 10, picture)
        client.until("frame", len(clip))
    shown = np.stack([_decoded(picture) for picture in clip])
    control = Controls(Gop(4), Refresh(3), Rate(kept=0.5))
    text = pipe.encode_prompt("oil")
    edited = file_path(pipe, shown, control=control, text=text)
    expected = np.stack([_decoded(encode_picture(frame, 85)) for frame in edited])
    assert np.array_equal(np.stack([picture for _, picture in client.frames]), expected)
    assert not np.array_equal(file_path(pipe, shown, text=text), edited)
    assert [block["kept_share"] == 1 for block in told(client)] == [True, *[False] * 3, True, False]


def _decoded(picture: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def test_recomputing_all_lets_a_rate_rest(server: Server) -> None:
    with server.client({"policy": "all", "target_kept": 0.3}) as client:
        for start, method in ((0, None), (10, "full"), (20, "prune")):
            if method is not None:
                client.say("update", method=method)
                client.until("updated")
            feed(client, 2, start)
        client.say("update", method="full")
        client.until("updated")
        client.say("update", target_fps=5.0)
        notice = client.until("notice")
    assert ["rate" in block for block in told(client)] == [True] * 2 + [False] * 2 + [True] * 2
    assert "method 'full' has no thresholds" in notice["message"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"target_fps": 8, "target_kept": 0.5},
            "one of target_fps, target_kept may be given, got 2",
        ),
        ({"refresh": 0}, "refresh is a whole number from 1 to 65536, got 0"),
        ({"guard": 0.9}, "guard is a number above 0 up to 0.5, got 0.9"),
        ({"target_fps": 5.0, "method": "nothing such"}, "unknown method 'nothing such'"),
    ],
)
def test_a_wrong_update_changes_nothing_and_ends_nothing(
    server: Server, wrong: dict[str, Any], sentence: str
) -> None:
    with server.client({"policy": "all", "refresh": 3}) as client:
        feed(client, 1, 0)
        [session] = server.state.sessions.values()
        before = session.request
        client.say("update", **wrong)
        notice = client.until("notice")
        assert session.request is before
        assert notice["about"] == "update"
        assert sentence in notice["message"]
        feed(client, 1, 10)


def test_a_server_s_own_holding_is_for_clients_that_say_nothing(pipe: Any) -> None:
    held = {"target_kept": 0.5, "rate_mode": "capped", "cuts": True}
    expected = Controls(Cuts(), Rate(kept=0.5, mode="capped"))
    cases: list[tuple[dict[str, Any], Controls | None]] = [
        ({}, expected),
        ({"refresh": 4}, Controls(Gop(9), Refresh(4), *expected)),
        ({"target_fps": 9}, Controls(Cuts(), Rate(fps=9, mode="capped"))),
        ({"target_kept": None, "cuts": False}, None),
        ({"method": "full"}, Controls(Cuts())),
    ]
    cases[1][0]["gop"] = 9
    with serving(pipe, defaults=held) as server:
        for hello, control in cases:
            with server.client({"policy": "all", **hello}) as client:
                assert client.until("ready")["holding"] == held
                [session] = server.state.sessions.values()
                assert session.request.config.control == control
            wait_until(lambda: server.state.sessions == {})
