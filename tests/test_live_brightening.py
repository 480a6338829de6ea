"""A camera that brightens as it starts, live and with default settings: the result follows it.

The right value is where the same model goes with everything recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.live_fixtures import Pixels

from stillframe.live import EditedFrame, LiveSession, Worker
from stillframe.loading.load import load_pipeline

FPS = 15
DARK, RAMP, LIGHT = 2.0, 1.5, 4.0  # seconds
LATE = 1.0  # seconds after the change by which the result has followed
HEIGHT, WIDTH = 96, 160


@pytest.fixture(scope="module", name="pipe")
def pipe_fixture() -> Any:
    return load_pipeline("tiny")


def exposure(time: float, first: float, last: float) -> float:
    """How much of the light the sensor takes."""
    return first + (last - first) * min(max((time - DARK) / RAMP, 0.0), 1.0)


def camera(first: float, last: float) -> Iterator[tuple[float, Pixels]]:
    """A still scene, exposed from one value to another, with a sensor's noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    scene = 60 + 90 * (x / WIDTH) + 60 * np.sin(y / 9) * (x > WIDTH // 2)
    colours = np.stack([scene, 0.8 * scene + 20, 220 - scene], -1)
    for number in range(round((DARK + RAMP + LIGHT) * FPS)):
        time = number / FPS
        noisy = colours * exposure(time, first, last) + rng.normal(0, 1.0, colours.shape)
        yield time, noisy.clip(0, 255).round().astype(np.uint8)


@cache
def played(pipe: Any, first: float, last: float, **options: Any) -> dict[float, float]:
    """The mean level of each edited frame, by the time of its source."""
    worker = Worker()
    levels: dict[float, float] = {}

    def read(session: LiveSession) -> None:
        while session.unread:
            frame = session.get(0)
            assert isinstance(frame, EditedFrame)
            levels[frame.timestamp] = float(frame.pixels.mean())

    with LiveSession(
        pipe, "an oil painting", height=HEIGHT, width=WIDTH, worker=worker, **options
    ) as session:
        for time, frame in camera(first, last):
            assert session.push(frame, time)
            while worker.step():
                read(session)
    return levels


@pytest.mark.parametrize(("first", "last"), [(0.15, 1.0), (0.5, 1.0), (1.0, 0.3)])
def test_the_result_follows_within_a_second(pipe: Any, first: float, last: float) -> None:
    shown, right = played(pipe, first, last), played(pipe, first, last, method="full")
    assert shown.keys() == right.keys()
    before = float(np.mean([level for time, level in shown.items() if time < DARK]))
    settled = [time for time in right if time >= DARK + RAMP + LATE]
    assert len(settled) > 2 * FPS
    # recomputing everything, the model drifts from what it makes of the last scene alone: the
    # result may be anywhere between these two, and has come most of the way to the nearer one
    fresh = float(np.mean(list(played(pipe, last, last).values())))
    change = np.array([right[time] - before for time in settled])
    assert np.abs(change).min() > 15, "there is something to follow"
    came: NDArray[np.float64] = np.array([shown[time] - before for time in settled]) / change
    most = np.maximum(1.0, (fresh - before) / change)
    assert came.min() > 0.8, came.round(2).tolist()
    assert (came < most + 0.2).all(), came.round(2).tolist()


def test_a_still_scene_stays_as_it_is(pipe: Any) -> None:
    """The test of the test: the source of these differs in its exposure only."""
    levels = list(played(pipe, 1.0, 1.0).values())
    assert max(levels) - min(levels) < 5
