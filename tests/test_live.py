"""A live session: order and times, what is dropped, and what it tells of itself."""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tests.live_fixtures import (
    BLOCK,
    VirtualClock,
    embeds,
    file_path,
    levels,
    open_session,
    pipe_fixture,  # noqa: F401
    pipeline,
    pixels,
    play,
    read,
    while_decoding,
)

from stillframe.live import (
    BlockTelemetry,
    EditedFrame,
    LiveSession,
    Telemetry,
    Worker,
)
from stillframe.methods.prune import InterFramePruning
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video.overlay import draw_map

# what hangs shall not hang for long
pytestmark = pytest.mark.timeout(60)


# a session is a file


@pytest.mark.parametrize("kind", ["tiny", "trimming", "wan"])
def test_all_equals_the_file_bit_for_bit_whatever_the_timing(kind: str) -> None:
    pipe, frames, rng = pipeline(kind), levels(40), random.Random(1)
    method = InterFramePruning(tau1=0.22, tau2=0.4, trim=0.2) if kind == "wan" else "prune"
    expected = file_path(pipe, frames, InterFramePruning() if method == "prune" else method)  # type: ignore[arg-type]
    for eager in (0.0, 0.5, 1.0):
        worker, out = Worker(), []
        session = open_session(pipe, worker, policy="all", method=method)
        number = 0
        while session.state != "closed":
            if number == len(frames):
                session.end()
            elif session.push(frames[number], float(number), timeout=0):
                number += 1
            else:
                out += read(session)
                worker.step()
            if rng.random() < eager:
                out += read(session) if rng.random() < eager else []
                worker.step()
            elif number == len(frames):
                out += read(session)
                worker.step()
        out += read(session)
        assert [frame.timestamp for frame in out] == [float(i) for i in range(len(frames))]
        assert np.array_equal(pixels(out), expected)
        assert session.dropped == 0
        assert session.get() is None


def test_frames_of_any_size_are_fitted_as_those_of_a_file(pipe: CausalWanPipeline) -> None:
    frames = levels(24, 70, 101)
    sizes: list[dict[str, Any]] = [{}, {"height": 40}, {"width": 64, "height": 48}]
    for size in sizes:
        worker = Worker()
        session = open_session(pipe, worker, policy="all", **size)
        got = pixels(play(session, worker, frames))
        assert np.array_equal(got, file_path(pipe, frames, **size))
        session.close()


def test_three_threads_give_the_same(pipe: CausalWanPipeline) -> None:
    """One pushes, one edits, one reads."""
    frames = levels(60)
    with LiveSession(pipe, prompt_embeds=embeds(), policy="all") as session:

        def produce() -> None:
            for number, frame in enumerate(frames):
                assert session.push(frame, number / 10)
            session.end()

        producer = threading.Thread(target=produce)
        producer.start()
        out = list(session)
        producer.join()
        assert session.state == "closed"
    assert np.array_equal(pixels(out), file_path(pipe, frames))
    assert [frame.timestamp for frame in out] == [i / 10 for i in range(60)]


def test_a_frame_may_be_overwritten_once_it_was_pushed(pipe: CausalWanPipeline) -> None:
    frames, worker = levels(24), Worker()
    session = open_session(pipe, worker, policy="all")
    buffer = np.empty_like(frames[0])
    for number, frame in enumerate(frames):
        buffer[:] = frame
        session.push(buffer, float(number))
    buffer[:] = 0
    out = []
    while worker.step():
        out += read(session)
    assert np.array_equal(pixels(out), file_path(pipe, frames))


def test_under_all_a_full_queue_refuses_or_waits(pipe: CausalWanPipeline) -> None:
    frames, worker = levels(40), Worker()
    session = open_session(pipe, worker, policy="all", bound=13)
    taken = [session.push(frame, float(i), timeout=0) for i, frame in enumerate(frames)]
    assert taken == [True] * 13 + [False] * 27
    assert not session.push(frames[13], 13.0, timeout=0.01)
    waits = threading.Thread(target=session.push, args=(frames[13], 13.0))
    waits.start()
    assert worker.step()
    waits.join()
    assert [frame.timestamp for frame in read(session)] == [float(i) for i in range(12)]
    assert (session.waiting, session.dropped) == (2, 0)
    session.close()


# latency


class Camera:
    """Frames at given times into a session whose blocks take ``cost`` seconds, by its clock."""

    def __init__(self, session: LiveSession, clock: VirtualClock, arrivals: list[float]) -> None:
        self.session, self.clock = session, clock
        self.arrivals = [clock.now() + t for t in arrivals]
        self.noise = np.random.default_rng(0)  # no two blocks alike: what comes again costs nothing
        self.out: list[EditedFrame] = []

    def advance(self, until: float) -> None:
        """Let time pass, and frames come."""
        while self.arrivals and self.arrivals[0] <= until:
            self.clock.time = self.arrivals.pop(0)
            frame = self.noise.integers(0, 256, levels(1)[0].shape, np.uint8)
            assert self.session.push(frame, self.clock.time)
        self.clock.time = max(until, self.clock.time)

    def run(self, pipe: CausalWanPipeline, worker: Worker, cost: float) -> None:
        """To the last frame; what is edited is read at once."""
        with while_decoding(pipe, lambda: self.advance(self.clock.time + cost)):
            while self.arrivals:
                if not worker.step():
                    self.advance(self.arrivals[0])
                self.out += read(self.session)


def irregular(seconds: float) -> list[float]:
    """Bursts, gaps, and all between: 2 to 60 frames a second."""
    rng, times, now = random.Random(3), [], 0.0
    while now < seconds:
        pace = rng.choice([2, 10, 30, 60])
        for _ in range(rng.randint(1, 20)):
            now += rng.uniform(0.5, 1.5) / pace
            times.append(now)
    return times


RATES = {f"{fps} fps": [i / fps for i in range(int(fps * 12))] for fps in (5, 15, 30)}


@pytest.mark.parametrize("cost", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("arrivals", [*RATES.values(), irregular(12)], ids=[*RATES, "irregular"])
def test_latest_bounds_latency_and_starves_nobody(
    pipe: CausalWanPipeline, arrivals: list[float], cost: float
) -> None:
    clock, worker = VirtualClock(), Worker()
    session = open_session(pipe, worker, clock=clock)
    camera = Camera(session, clock, arrivals)
    camera.run(pipe, worker, cost)
    fill = max(arrivals[i + BLOCK - 1] - arrivals[i] for i in range(len(arrivals) - BLOCK + 1))
    bound = max(fill, cost) + cost + 1e-6
    assert max(frame.latency for frame in camera.out) <= bound
    stamps = [frame.timestamp for frame in camera.out]
    assert all(a < b for a, b in pairwise(stamps))
    assert all(frame.timestamp == frame.arrived for frame in camera.out)
    blocks = session.telemetry.blocks
    # a block follows the other, as soon as there are frames for it
    assert all(b.time - a.time <= fill + 2 / 5 + cost for a, b in pairwise(blocks))
    assert len(blocks) >= arrivals[-1] / (max(fill, cost) + 0.5) - 2
    assert session.dropped + len(camera.out) + session.waiting == len(arrivals)
    if cost < BLOCK / 30 and arrivals in RATES.values():
        assert session.dropped == 0
    session.close()


@pytest.mark.parametrize(("fps", "cost"), [(15, 1.0), (30, 0.5), (30, 0.6), (30, 1.0), (30, 2.5)])
def test_what_latest_drops_is_evenly_spread(pipe: CausalWanPipeline, fps: int, cost: float) -> None:
    clock, worker = VirtualClock(), Worker()
    session = open_session(pipe, worker, clock=clock)
    camera = Camera(session, clock, [i / fps for i in range(int(fps * 14))])
    camera.run(pipe, worker, cost)
    stamps = [frame.timestamp for frame in camera.out][3 * BLOCK :]
    ideal = max(cost / BLOCK, 1 / fps)
    strides = {round((b - a) * fps) for a, b in pairwise(stamps)}
    assert min(strides) >= 1
    assert max(strides) / fps <= max(ideal + 1 / fps, 1.8 * ideal)
    # and the picture keeps pace with the world
    assert (stamps[-1] - stamps[0]) / (len(stamps) - 1) == pytest.approx(ideal, rel=0.12)
    session.close()


def test_a_consumer_that_stops_reading_costs_nothing_and_gets_fresh_frames_after_it(
    pipe: CausalWanPipeline,
) -> None:
    clock, worker, frame = VirtualClock(), Worker(), levels(1)[0]
    session = open_session(pipe, worker, clock=clock, max_wait=2.0)
    for _ in range(900):
        clock.time += 1 / 15
        session.push(frame, clock.time)
        worker.step()
    assert (session.unread, session.waiting) == (BLOCK, 2 * BLOCK)
    assert len(session.telemetry.blocks) == 1
    read(session)
    assert worker.step()
    assert max(frame.latency for frame in read(session)) <= 2.0 + 1e-6
    session.close()


# telemetry


def test_telemetry_tells_what_happened(pipe: CausalWanPipeline) -> None:
    clock, worker, frames = VirtualClock(), Worker(), levels(60)
    session = open_session(pipe, worker, policy="all", clock=clock)
    assert session.telemetry.last is None
    out: list[EditedFrame] = []
    for number, frame in enumerate(frames):
        clock.time += 0.1
        session.push(frame, float(number), timeout=0)
        worker.step()
        out += read(session)
    blocks = session.telemetry.blocks
    assert [block.block for block in blocks] == [0, 1, 2, 3, 4]
    for block in blocks:
        mine = [frame for frame in out if frame.block == block.block]
        assert block.frames == len(mine) == BLOCK
        assert block.latency == max(frame.latency for frame in mine) == pytest.approx(1.1)
        assert block.keep.sum() == block.kept
        assert (block.keep.size, block.kept_share) == (block.tokens, block.kept / block.tokens)
        stages = {"fit", "encode", "mask", "context", "decode", "deliver"}
        assert stages <= set(block.milliseconds) <= stages | {"denoise"}
        assert block.total_milliseconds == sum(block.milliseconds.values())
        assert set(block.figures()) == set(vars(block)) - {"keep", "moved"} | {
            "kept_share",
            "moved_share",
            "total_milliseconds",
        }
        # four frames of a latent frame share its mask
        masks = np.stack([frame.keep for frame in mine])
        assert np.array_equal(masks, block.keep.repeat(4, 0))
        drawn = draw_map(frames[0], mine[0].keep, session.patch)
        assert drawn.shape == frames[0].shape
    assert blocks[0].fps is None
    assert [block.fps for block in blocks[1:]] == pytest.approx([10] * 4)
    assert session.telemetry.last is blocks[-1]
    session.close()


def test_percentiles_are_those_of_the_definition() -> None:
    telemetry, rng = Telemetry(length=50), random.Random(1)
    values = [rng.random() for _ in range(80)]
    assert telemetry.percentile("latency", 0.5) is None
    for number, value in enumerate(values):
        telemetry.add(block_with(number, value))
    kept = np.sort(values[-50:])
    for share in (0.0, 0.01, 0.5, 0.95, 1.0):
        got = telemetry.percentile("latency", share)
        assert got is not None
        assert (kept <= got).mean() >= share
        assert (kept < got).mean() <= share
    assert telemetry.summary()["latency_p95"] == telemetry.percentile("latency", 0.95)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        telemetry.percentile("latency", 1.5)
    with pytest.raises(ValueError, match="positive, got 0 and 5"):
        Telemetry(length=0)


def block_with(number: int, latency: float) -> Any:
    keep = np.ones((1, 1, 1), np.bool_)
    return BlockTelemetry(number, 0, 0.0, 1, 1, 1, {}, 0, 0, latency, 0, None, keep)


def test_frames_a_second_follow_the_last_seconds() -> None:
    telemetry = Telemetry(window=5.0)
    fast = [telemetry.output(i / 2, 12) for i in range(20)]
    assert fast[0] is None
    assert fast[1:] == pytest.approx([24] * 19)
    slow = [telemetry.output(10.0 + 2 * i, 12) for i in range(20)]
    assert slow[-1] == pytest.approx(6)
