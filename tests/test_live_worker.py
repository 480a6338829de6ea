"""One thread for several sessions: whose turn it is, and what happens when it stops."""

from __future__ import annotations

import random
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from tests.live_fixtures import (
    BLOCK,
    VirtualClock,
    embeds,
    file_path,
    levels,
    open_session,
    pipeline,
    read,
    while_decoding,
)

from stillframe.live import EditedFrame, LiveSession, SessionError, SystemClock, Worker
from stillframe.pipelines.causal_wan import CausalWanPipeline

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def pipe() -> CausalWanPipeline:
    return pipeline()


class Job:
    """Has work at times, and notes when it is served."""

    def __init__(self, name: int, log: list[int]) -> None:
        self.name, self.log = name, log
        self.has_work = True
        self.failure = ""

    def serve(self) -> None:
        self.log.append(self.name)

    def fail(self, message: str, trace: str = "") -> None:
        self.failure = message


def test_sessions_that_always_have_work_take_turns() -> None:
    worker, log = Worker(), list[int]()
    for name in range(5):
        worker.add(Job(name, log))
    for _ in range(23):
        assert worker.step()
    rounds = [log[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(turn) == list(range(5)) for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) == 1
    counts = [log.count(name) for name in range(5)]
    assert max(counts) - min(counts) <= 1


def test_who_waits_is_served_before_anybody_is_served_twice() -> None:
    """Whatever comes and goes, and whoever has work at times only."""
    rng, worker, log = random.Random(1), Worker(), list[int]()
    jobs = [Job(name, log) for name in range(6)]
    for job in jobs:
        worker.add(job)
    since = dict.fromkeys(range(6), 0)  # blocks served when each of them last was idle or served
    for _ in range(800):
        for job in jobs:
            if rng.random() < 0.3:
                job.has_work = not job.has_work
            if not job.has_work:
                since[job.name] = len(log)
        if rng.random() < 0.05:
            gone = jobs.pop(rng.randrange(len(jobs)))
            worker.remove(gone)
            jobs.append(Job(gone.name, log))
            worker.add(jobs[-1])
            since[gone.name] = len(log)
        done = len(log)
        assert worker.step() == any(job.has_work for job in jobs)
        for name in log[done:]:
            since[name] = len(log)
        for job in jobs:
            served = log[since[job.name] :]
            assert len(served) == len(set(served)), "somebody was served twice meanwhile"


def test_busy_sessions_of_different_cost_get_as_many_blocks(pipe: CausalWanPipeline) -> None:
    """A large and three small ones; every one has frames waiting all the time."""
    worker, clock = Worker(), VirtualClock()
    sizes = [(32, 48), (32, 48), (64, 96), (32, 48)]
    sessions = [open_session(pipe, worker, clock=clock) for _ in sizes]
    frames = [levels(1, *size)[0] for size in sizes]
    for _ in range(2 * BLOCK):
        clock.time += 0.05
        for session, frame in zip(sessions, frames, strict=True):
            session.push(frame, clock.time)
    served = []
    for _ in range(24):
        worker.step()
        clock.time += 0.5
        for session, frame in zip(sessions, frames, strict=True):
            for i in range(BLOCK):
                session.push(frame, clock.time + i / 1000)
            read(session)
        served = [len(session.telemetry.blocks) for session in sessions]
        assert max(served) - min(served) <= 1
    assert max(served) / min(served) <= 1.3
    for session in sessions:
        session.close()


def test_a_session_that_shares_is_edited_as_one_that_does_not(pipe: CausalWanPipeline) -> None:
    """Four at once on one thread, each with its own producer and consumer."""
    clips = [levels(40, seed=seed) for seed in range(4)]
    results: dict[int, list[EditedFrame]] = {}
    with Worker() as worker:
        sessions = [
            LiveSession(pipe, prompt_embeds=embeds(), policy="all", worker=worker) for _ in clips
        ]

        def produce(name: int) -> None:
            for number, frame in enumerate(clips[name]):
                assert sessions[name].push(frame, number / 7)
            sessions[name].end()

        def consume(name: int) -> None:
            results[name] = list(sessions[name])

        threads = [
            threading.Thread(target=job, args=(name,))
            for name in range(4)
            for job in (produce, consume)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(worker) == 0
    for name, frames in enumerate(clips):
        got = np.stack([frame.pixels for frame in results[name]])
        assert np.array_equal(got, file_path(pipe, frames))
        stamps = [frame.timestamp for frame in results[name]]
        assert stamps == [i / 7 for i in range(40)]


def test_latest_keeps_up_in_real_time(pipe: CausalWanPipeline) -> None:
    """Two sessions, and frames far faster than the model: what comes out is fresh."""
    frame = levels(1)[0]
    with Worker() as worker:
        pair = [LiveSession(pipe, prompt_embeds=embeds(), worker=worker) for _ in range(2)]
        out: dict[int, list[EditedFrame]] = {0: [], 1: []}
        with while_decoding(pipe, lambda: time.sleep(0.05)):
            begun = time.monotonic()
            while any(len(session.telemetry.blocks) < 5 for session in pair):
                now = time.monotonic() - begun
                for session in pair:
                    session.push(frame, now)
                time.sleep(0.001)
                for name, session in enumerate(pair):
                    out[name] += read(session)
        for name, session in enumerate(pair):
            blocks = session.telemetry.blocks
            assert session.dropped > 0
            stamps = [one.timestamp for one in out[name]]
            assert all(a < b for a, b in pairwise(stamps))
            # it came after the block before had begun, which was after the one before that was done
            done = [block.time for block in blocks]
            for index, block in enumerate(blocks[2:], 2):
                assert block.latency is not None
                assert block.latency <= done[index] - done[index - 2]
            session.close()


def test_a_worker_refuses_more_sessions_than_it_may_have(pipe: CausalWanPipeline) -> None:
    worker = Worker(max_sessions=2)
    first, second = (open_session(pipe, worker) for _ in range(2))
    with pytest.raises(SessionError, match="2 sessions are open, and there may be 2 at a time"):
        open_session(pipe, worker)
    first.close()
    third = open_session(pipe, worker)
    assert len(worker) == 2
    for session in (second, third):
        session.close()
    assert len(worker) == 0


def test_when_a_worker_is_stopped_its_sessions_say_so(pipe: CausalWanPipeline) -> None:
    worker = Worker()
    worker.start()
    sessions = [LiveSession(pipe, prompt_embeds=embeds(), worker=worker) for _ in range(2)]
    told: list[str] = []

    def consume(session: LiveSession) -> None:
        with pytest.raises(SessionError) as caught:
            session.get()
        told.append(str(caught.value))

    consumers = [threading.Thread(target=consume, args=(session,)) for session in sessions]
    for consumer in consumers:
        consumer.start()
    worker.stop()
    for consumer in consumers:
        consumer.join(10)
    assert told == ["the worker was stopped"] * 2
    with pytest.raises(SessionError, match="takes no more sessions"):
        open_session(pipe, worker)
    worker.stop()
    assert not [t for t in threading.enumerate() if t.name == "stillframe-live"]


def test_a_worker_that_breaks_ends_its_sessions_with_the_reason() -> None:
    """A session must not raise; if one does, nobody is left waiting."""

    class Broken(Job):
        def serve(self) -> None:
            raise ZeroDivisionError("of all things")

    worker, log = Worker(), list[int]()
    jobs = [Job(0, log), Broken(1, log)]
    for job in jobs:
        worker.add(job)
    with pytest.raises(ZeroDivisionError):
        worker.run()
    assert {job.failure for job in jobs} == {
        "the worker failed with ZeroDivisionError: of all things"
    }


def test_a_signal_is_never_missed() -> None:
    """Work that comes just after the worker looked, and before it goes to sleep, is done."""
    worker, served = Worker(), threading.Event()

    class Late(Job):
        looks = 0

        @property
        def has_work(self) -> bool:
            self.looks += 1
            if self.looks == 1:
                worker.notify()
            return self.looks == 2

        @has_work.setter
        def has_work(self, _: bool) -> None: ...

        def serve(self) -> None:
            served.set()

    worker.add(Late(0, []))
    with worker:
        assert served.wait(10)


def test_the_clock_of_the_computer_does_not_run_backwards() -> None:
    clock = SystemClock()
    times = [clock.now() for _ in range(100)]
    assert times == sorted(times)
    assert abs(clock.now() - time.monotonic()) < 5
