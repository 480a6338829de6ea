"""Life and death of a live session: what it refuses, how it ends, and what is left of it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.live_fixtures import (
    embeds,
    file_path,
    levels,
    open_session,
    pipe_fixture,  # noqa: F401
    pixels,
    play,
    read,
    while_decoding,
)
from torch import Tensor

from stillframe.engine.stream import EditStream
from stillframe.errors import WorkerError
from stillframe.live import (
    LiveSession,
    SessionError,
    Worker,
)
from stillframe.pipelines.causal_wan import CausalWanPipeline

# what hangs shall not hang for long
pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("out of luck"), "block 0 failed with RuntimeError: out of luck"),
        (WorkerError("one has gone"), "block 0 failed: one has gone"),
    ],
)
def test_of_our_own_errors_the_sentence_is_told(
    pipe: CausalWanPipeline, error: Exception, sentence: str
) -> None:
    worker = Worker()
    session = open_session(pipe, worker, policy="all")
    for number, frame in enumerate(levels(12)):
        session.push(frame, float(number))

    def burst() -> None:
        raise error

    with while_decoding(pipe, burst):
        assert worker.step()
    assert session.error == sentence


def test_life_of_a_session(pipe: CausalWanPipeline) -> None:
    worker = Worker()
    session = open_session(pipe, worker)
    states = [session.state]
    with pytest.raises(TimeoutError, match="within 0 s"):
        session.get(0)
    session.push(levels(1)[0], 0.0)
    states.append(session.state)
    for _ in range(2):
        session.close()
        states.append(session.state)
    assert states == ["ready", "running", "closed", "closed"]
    assert session.get() is None
    assert list(session) == []
    assert not session.push(levels(1)[0], 1.0)
    assert (len(worker), session.waiting, session.error) == (0, 0, None)
    with pytest.raises(SessionError, match="closed"):
        session.change(strength=0.5)
    session.end()
    unused = open_session(pipe, worker)
    unused.end()
    assert unused.state == "closed"


@pytest.mark.parametrize(
    ("frame", "timestamp", "said"),
    [
        (np.zeros((32, 48, 3), np.float32), 9.0, r"uint8 \(H, W, 3\), got float32 \(32, 48, 3\)"),
        (np.zeros((32, 48), np.uint8), 9.0, r"got uint8 \(32, 48\)"),
        (np.zeros((32, 48, 4), np.uint8), 9.0, r"got uint8 \(32, 48, 4\)"),
        (np.zeros((8, 48, 3), np.uint8), 9.0, "need 16 or more"),
        (np.zeros((0, 48, 3), np.uint8), 9.0, "at least 1 pixel"),
        (levels(1)[0], float("nan"), "finite number, got nan"),
        (levels(1)[0], 1.0, "must rise, got 1.0 after 1.0"),
        (levels(1)[0], -3.0, "must rise, got -3.0 after 1.0"),
    ],
)
def test_a_frame_that_cannot_be_used_is_refused_and_the_session_goes_on(
    pipe: CausalWanPipeline, frame: Any, timestamp: float, said: str
) -> None:
    worker, frames = Worker(), levels(12)
    session = open_session(pipe, worker, policy="all")
    session.push(frames[0], 0.0)
    session.push(frames[1], 1.0)
    with pytest.raises(ValueError, match=said):
        session.push(frame, timestamp)
    for number in range(2, 12):
        session.push(frames[number], float(number))
    assert worker.step()
    assert np.array_equal(pixels(read(session)), file_path(pipe, frames))
    session.close()


def test_an_error_in_the_model_ends_the_session_with_a_message(pipe: CausalWanPipeline) -> None:
    worker, frames = Worker(), levels(36)
    session, other = (open_session(pipe, worker, policy="all") for _ in range(2))
    for number in range(24):
        session.push(frames[number], float(number))
    assert worker.step()

    def burst() -> None:
        raise RuntimeError("out of luck")

    first = session.get(0)
    assert first is not None
    with while_decoding(pipe, burst):
        assert worker.step()
    said = "block 1 failed with RuntimeError: out of luck"
    assert (session.state, session.error) == ("closed", said)
    # what was edited before can still be read, then everybody is told
    for number in range(1, 12):
        frame = session.get(0)
        assert frame is not None
        assert frame.timestamp == number
    for _ in range(2):
        with pytest.raises(SessionError, match=said) as caught:
            session.get()
        assert "burst" in caught.value.trace
    with pytest.raises(SessionError, match=said):
        session.push(frames[0], 99.0)
    assert len(worker) == 1
    session.close()
    # the weights are as they were, for the others
    assert np.array_equal(pixels(play(other, worker, frames)), file_path(pipe, frames))
    other.close()


def test_an_error_releases_whoever_waits(pipe: CausalWanPipeline) -> None:
    told: list[str] = []

    def burst() -> None:
        raise RuntimeError("out of luck")

    def consume() -> None:
        try:
            session.get()
        except SessionError as error:
            told.append(str(error))

    with LiveSession(pipe, prompt_embeds=embeds()) as session, while_decoding(pipe, burst):
        consumers = [threading.Thread(target=consume) for _ in range(3)]
        for consumer in consumers:
            consumer.start()
        for number, frame in enumerate(levels(12)):
            session.push(frame, float(number))
        for consumer in consumers:
            consumer.join(10)
        assert told == ["block 0 failed with RuntimeError: out of luck"] * 3


@pytest.mark.parametrize("shared", [False, True])
def test_closing_waits_for_the_block_that_runs_and_releases_whoever_waits(
    pipe: CausalWanPipeline, shared: bool
) -> None:
    inside, go = threading.Event(), threading.Event()
    got: list[object] = []

    def linger() -> None:
        inside.set()
        assert go.wait(10)

    worker = Worker() if shared else None
    if worker is not None:
        worker.start()
    session = LiveSession(pipe, prompt_embeds=embeds(), policy="all", bound=12, worker=worker)
    with while_decoding(pipe, linger):
        consumer = threading.Thread(target=lambda: got.append(session.get()))
        consumer.start()
        for number, frame in enumerate(levels(24)):
            session.push(frame, float(number))
        assert inside.wait(10)
        producer = threading.Thread(target=lambda: got.append(session.push(levels(1)[0], 99.0)))
        producer.start()
        closer = threading.Thread(target=session.close)
        closer.start()
        consumer.join(10)
        producer.join(10)
        assert sorted(map(str, got)) == ["False", "None"]
        assert closer.is_alive(), "the block still runs"
        go.set()
        closer.join(10)
    if worker is not None:
        worker.stop()
    assert (session.state, session.unread, session.memory["cache"]) == ("closed", 0, 0)


def test_a_session_closed_from_within_its_block_ends_there(pipe: CausalWanPipeline) -> None:
    worker = Worker()
    session = open_session(pipe, worker)
    with while_decoding(pipe, session.close):
        out = play_until_closed(session, worker)
    assert out == 0
    assert session.memory == {"cache": 0, "recovery": 0}


def play_until_closed(session: LiveSession, worker: Worker) -> int:
    for number, frame in enumerate(levels(12)):
        session.push(frame, float(number))
    worker.step()
    return session.unread


@pytest.fixture
def _only_new() -> Iterator[None]:
    """What is there already is out of the collector's sight, which also makes it fast."""
    gc.collect()
    gc.freeze()
    yield
    # as after collection: what is left of tests is not frozen for good, what was imported is
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def living(kind: type) -> int:
    """Objects of exactly that type, those of other tests left out."""
    gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())


@pytest.mark.usefixtures("_only_new")
@pytest.mark.parametrize("way", ["close", "end", "error"])
def test_the_end_frees_the_memory(pipe: CausalWanPipeline, way: str) -> None:
    worker = Worker()
    # what a model's first stream derives from its weights stays with the model
    with open_session(pipe, worker, policy="all") as first:
        play(first, worker, levels(30))
    del first
    tensors, streams = living(Tensor), living(EditStream)
    session = open_session(pipe, worker, policy="all", prompt_embeds=pipe.encode_prompt("night"))
    play(session, worker, levels(30))
    assert session.memory["cache"] > 0
    assert session._editor is not None
    dies = weakref.ref(session._editor._stream)
    assert living(EditStream) == streams + 1
    if way == "close":
        session.close()
    elif way == "end":
        session.end()
        assert worker.step()
        assert len(read(session)) == 6
    else:

        def burst() -> None:
            raise RuntimeError("out of luck")

        with while_decoding(pipe, burst):
            for number in range(6):
                session.push(levels(1)[0], 100.0 + number)
            worker.step()
    assert session.state == "closed"
    assert session.memory == {"cache": 0, "recovery": 0}
    assert dies() is None, "without the collector's help"
    assert living(EditStream) == streams
    # the prompt's embeddings go with the session itself
    assert living(Tensor) <= tensors + 1
    del session
    assert living(Tensor) == tensors


@pytest.mark.usefixtures("_only_new")
def test_fifty_sessions_leak_neither_threads_nor_tensors(pipe: CausalWanPipeline) -> None:
    frames = levels(14)

    def visit(number: int) -> None:
        with LiveSession(pipe, prompt_embeds=embeds(), policy="all") as session:
            for i, frame in enumerate(frames):
                session.push(frame, float(i))
            if number % 3 == 0:
                session.end()
                assert len(list(session)) == 14
            elif number % 3 == 1:
                assert session.get() is not None

    visit(0)
    threads, tensors = threading.active_count(), living(Tensor)
    sizes = [living(kind) for kind in (LiveSession, Worker, EditStream)]
    for number in range(50):
        visit(number)
    assert threading.active_count() == threads
    assert living(Tensor) == tensors
    assert [living(kind) for kind in (LiveSession, Worker, EditStream)] == sizes
