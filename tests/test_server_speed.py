"""What the server tells a page: speeds of sizes, and what a prompt is taken for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests import tiny
from tests.server_fixtures import Server, get, pictures, serving

from stillframe.loading.styles import Style
from stillframe.server.limits import Limits
from stillframe.server.speed import SIZES

STYLES = [Style("photo", "photo", "", ("photo",)), Style("oil", "oil", "", ("oil", "van gogh"))]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    limits = Limits(output_pixels=400 * 300)
    with serving(tiny.pipeline(), max_sessions=2, styles=STYLES, limits=limits) as running:
        yield running


def test_nothing_is_measured_while_somebody_is_edited_for(server: Server) -> None:
    with server.client() as client:
        client.until("ready")
        told = get(server, "/api/speed").json()
    assert (told["sizes"], told["chosen"]) == ([], None)


def test_speeds_fall_with_size_and_the_largest_that_is_fast_enough_is_chosen(
    server: Server,
) -> None:
    told = get(server, "/api/speed").json()
    sizes, target = told["sizes"], told["target_fps"]
    allowed = [size for size in SIZES if size[0] * size[1] <= 400 * 300]
    assert [(each["width"], each["height"]) for each in sizes] == allowed
    assert sizes[0]["measured"]
    for before, after in itertools.pairwise(sizes):
        if not after["measured"]:  # in proportion to pixels
            share = after["width"] * after["height"] / (before["width"] * before["height"])
            if not before["measured"]:
                assert after["fps"] * share == pytest.approx(before["fps"], rel=0.05, abs=0.1)
    chosen = told["chosen"]
    assert all(each["fps"] >= target for each in sizes[: chosen + 1]) or chosen == 0
    assert get(server, "/api/speed").json() == told, "it is measured once"
    # a hello of that size is taken
    hello = {name: sizes[chosen][name] for name in ("width", "height")}
    with server.client(hello) as client:
        ready = client.until("ready")
    assert (ready["width"], ready["height"]) == tuple(hello.values())


def test_a_size_that_was_given_is_left_alone() -> None:
    with serving(tiny.pipeline(), height=64, width=96) as server:
        assert get(server, "/api/speed").json()["sizes"] == []


def test_a_client_hears_what_its_prompt_is_taken_for(server: Server) -> None:
    with server.client({"prompt": "a village by van Gogh", "blend": 2}) as client:
        assert client.until("ready")["style"] == {"name": "oil", "score": pytest.approx(2 / 3)}
        client.say("update", prompt="brutalism")
        assert client.until("updated")["style"] is None
        client.say("update", tolerance=4.0)
        assert "style" not in client.until("updated")
        client.say("update", prompt="photo", blend=65)
        assert "blend" in client.until("notice")["message"]


def test_a_seed_is_the_streams_own(server: Server) -> None:
    def edited(seed: int) -> Any:
        with server.client({"seed": seed, "policy": "all"}) as client:
            client.until("ready")
            for number, picture in enumerate(pictures(12)):
                client.send(number / 10, picture)
            client.until("frame", 12)
            return np.stack([frame for _, frame in client.frames])

    assert np.array_equal(edited(3), edited(3))
    assert not np.array_equal(edited(3), edited(4))
