"""What goes wrong in the model's process ends one session, or is found: a fault of one session, a
message that cannot be read, a process or a block that hangs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest
import torch
from tests.live_fixtures import BLOCK, embeds, levels, open_session, pipeline, pixels
from tests.live_models import BROKEN, SLOW, faulty, one_thread
from tests.server_fixtures import WAIT, alive
from tests.test_live_process import play

from stillframe.controls import Controls, Cuts
from stillframe.engine.stream import EditStream
from stillframe.errors import StillframeError
from stillframe.live import RemoteSession, SessionError, Worker, WorkerProcess
from stillframe.live.ipc import Channel
from stillframe.methods.prune import InterFramePruning

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def process() -> Iterator[WorkerProcess]:
    with WorkerProcess(faulty) as running:
        yield running


def works(session: RemoteSession, start: float = 0.0) -> None:
    """Push a block and read it."""
    for number, frame in enumerate(levels(BLOCK)):
        assert session.push(frame, start + number / 10)
    assert [session.get(WAIT) is not None for _ in range(BLOCK)] == [True] * BLOCK


def test_a_fault_in_one_session_s_telemetry_is_its_own(process: WorkerProcess) -> None:
    with process.open("oil", policy="all") as other:
        works(other)
        with process.open("oil", policy="all", height=BROKEN, width=96) as broken:
            with pytest.raises(SessionError, match="RuntimeError: of all things"):
                pushes(broken, 0.0)
            with pytest.raises(SessionError, match="RuntimeError: of all things"):
                list(broken)
        works(other, 10)
    assert process.reason is None


def test_what_the_other_end_cannot_read_is_the_caller_s_fault(
    process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("only_here")
    monkeypatch.setitem(sys.modules, "only_here", module)
    elsewhere = type("Elsewhere", (InterFramePruning,), {"__module__": "only_here"})
    module.Elsewhere = elsewhere  # type: ignore[attr-defined]
    with process.open("oil", policy="all") as session:
        with pytest.raises(SessionError, match="only_here"):
            session.change(method=elsewhere())
        with pytest.raises((AttributeError, TypeError), match="pickle"):
            session.change(method=lambda: None)
        works(session)
    assert process._calls == {}


@pytest.mark.parametrize("shape", [(0, 48, 3), (32, 0, 3), (0, 0, 3)])
def test_a_frame_without_pixels_is_refused_and_no_line_is_cut(
    process: WorkerProcess, shape: tuple[int, ...]
) -> None:
    empty = np.zeros(shape, np.uint8)
    with process.open("oil", policy="all") as session:
        with pytest.raises(ValueError, match=f"at least 1 pixel, got {shape[1]}x{shape[0]}"):
            session.push(empty, 0.0)
        # even if it is sent: what cannot be used is said
        with pytest.raises(ValueError, match="at least 1 pixel"):
            process.call(session._number, "push", {"timestamp": 0.0, "timeout": 0}, empty)
        works(session)
    with (
        open_session(pipeline(), Worker()) as here,
        pytest.raises(ValueError, match="at least 1 pixel"),
    ):
        here.push(empty, 0.0)


@pytest.mark.parametrize("shape", [(0, 48, 3), (5, 0, 3), (4, 6, 3)])
def test_pixels_of_any_shape_go_over_a_line(shape: tuple[int, ...]) -> None:
    near, far = (Channel(end) for end in Pipe())
    sent = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    for array in (sent, np.asfortranarray(sent), sent[:, ::-1]):
        near.send(("x",), array)
        message, got = far.receive()
        assert message == ("x",)
        assert got is not None
        assert np.array_equal(got, array)
    near.close()
    far.close()


def test_a_frame_that_waits_is_sent_once(process: WorkerProcess) -> None:
    sent: list[str] = []
    send = process._channel.send

    def counted(message: tuple[Any, ...], pixels: Any = None) -> None:
        sent.append(message[2])
        send(message, pixels)

    process._channel.send = counted  # type: ignore[method-assign]
    try:
        with process.open("oil", policy="all") as session:
            number = 0
            while session.push(levels(1)[0], float(number), timeout=0.3):
                number += 1
            assert sent.count("push") == number + 1
            # and a frame that waits goes in as soon as there is room, or ends with its session
            waiting = threading.Thread(target=session.push, args=(levels(1)[0], float(number)))
            waiting.start()
            while session.get(WAIT).timestamp < number - 1:  # type: ignore[union-attr]
                waiting.join(0)
                if not waiting.is_alive():
                    break
            waiting.join(WAIT)
            assert not waiting.is_alive()
            late = threading.Thread(target=pushes, args=(session, number + 1.0))
            late.start()
            time.sleep(0.5)
        late.join(WAIT)
        assert not late.is_alive()
    finally:
        process._channel.send = send  # type: ignore[method-assign]


def pushes(session: RemoteSession, start: float) -> None:
    """Push until a frame is refused."""
    number = 0.0
    while session.push(levels(1)[0], start + number):
        number += 1


def test_frames_that_wait_for_room_come_out_in_order(process: WorkerProcess) -> None:
    frames = levels(6 * BLOCK)
    with process.open("oil", policy="all") as session:
        out = play(session, frames)
    assert [frame.timestamp for frame in out] == [number / 10 for number in range(len(frames))]
    assert pixels(out).shape == frames.shape


def ended(process: WorkerProcess, session: RemoteSession) -> str:
    """Why a session ended, which has to be soon."""
    begun = time.monotonic()
    with pytest.raises(SessionError) as error:
        list(session)
    assert time.monotonic() - begun < 25
    assert process.wait(10)
    assert process.reason == str(error.value)
    assert not alive(process.pid)
    with pytest.raises(StillframeError, match="killed"):
        process.open("oil")
    return str(error.value)


def test_a_process_that_hangs_is_found_and_killed() -> None:
    with WorkerProcess(one_thread, silence_seconds=6.0) as process:
        session = process.open("oil", policy="all")
        works(session)
        time.sleep(8)  # it says that it is alive, without any frames
        works(session, 10)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        said = ended(process, session)
    assert said == "the process that runs the model was killed: it gave no sign of life for 6 s"


def test_a_block_that_never_ends_is_found() -> None:
    with WorkerProcess(faulty, turn_seconds=2.0) as process:
        session = process.open("oil", policy="all", height=SLOW, width=96)
        for number, frame in enumerate(levels(BLOCK)):
            session.push(frame, float(number))
        said = ended(process, session)
    assert "was killed: it had been at one block for" in said


def test_memory_can_be_asked_for_at_any_moment_of_a_cut() -> None:
    """A cut forgets the state on the model's thread, between any two steps of who asks."""
    pipe = pipeline()
    for asked in (EditStream.memory, EditStream.graphs):
        # at -1 nothing is forgotten: Python 3.12 traces operations from the second call on
        steps, at = 1, -1
        while at < max(steps, 1):
            stream = pipe.stream(
                prompt_embeds=embeds(), method=InterFramePruning(), control=Controls(Cuts())
            )
            video = np.moveaxis(levels(BLOCK), -1, 1)[None].astype(np.float32) / 255
            stream.push(torch.from_numpy(video))
            assert stream._state is not None
            value, steps = asked_while(stream, asked, at)
            assert value in (0, {"cache": 0, "recovery": 0}) or at != 0
            assert isinstance(value, int | dict)
            at += 1
        assert steps > 5


def asked_while(stream: EditStream, asked: Any, at: int) -> tuple[Any, int]:
    """A property's value if the state is forgotten before its step of that number."""
    steps = 0

    def trace(frame: types.FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        nonlocal steps
        if frame.f_code is not asked.fget.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if steps == at:
                stream._state = None
            steps += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        value = asked.fget(stream)
    finally:
        sys.settrace(before)
    return value, steps
