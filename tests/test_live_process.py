"""The model in a process of its own: the same frames, and what happens when that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.live_fixtures import BLOCK, embeds, file_path, levels, pipeline, pixels
from tests.live_models import no_model, one_thread
from tests.server_fixtures import Server, alive, get, serving, wait_until

from stillframe.controls import Controls, Gop, Guard, Rate
from stillframe.errors import ModelError
from stillframe.live import EditedFrame, RemoteSession, SessionError, WorkerProcess
from stillframe.methods.prune import InterFramePruning
from stillframe.server.supervisor import ProcessSupervisor

Pixels = NDArray[np.uint8]

pytestmark = pytest.mark.timeout(120)

WATCHED = Controls(Rate(kept=0.4), Guard(0.05))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    keeper = ProcessSupervisor(one_thread)
    keeper.start()
    with serving(keeper, max_sessions=2) as running:
        yield running
        pid = keeper.pid
    assert not alive(pid)


@pytest.fixture
def process(server: Server) -> Iterator[WorkerProcess]:
    """The server's process, as it is used without a server."""
    process = server.state.supervisor.process
    assert process.sessions == 0
    yield process
    assert process.sessions == 0


def play(session: RemoteSession, frames: Pixels) -> list[EditedFrame]:
    """Push all frames, and read what comes of them."""

    def produce() -> None:
        for number, frame in enumerate(frames):
            assert session.push(frame, number / 10)
        session.end()

    producer = threading.Thread(target=produce)
    producer.start()
    out = list(session)
    producer.join()
    return out


def test_another_process_gives_the_same_frames(process: WorkerProcess) -> None:
    pipe, frames = pipeline(), levels(40)
    for method, control in (("prune", None), (InterFramePruning(tau1=0.3), Controls(Gop(2)))):
        session = process.open(prompt_embeds=embeds(), policy="all", method=method, control=control)
        out = play(session, frames)
        used = InterFramePruning() if isinstance(method, str) else method
        assert np.array_equal(pixels(out), file_path(pipe, frames, used, control=control))
        assert [frame.timestamp for frame in out] == [i / 10 for i in range(40)]
        blocks = session.telemetry.blocks
        assert [block.block for block in blocks] == [0, 1, 2, 3]
        for number, frame in enumerate(out):
            assert np.array_equal(frame.keep, blocks[number // 12].keep[number % 12 // 4])
        assert (session.state, session.dropped, session.error) == ("closed", 0, None)
        session.close()
        assert session.get() is None


def test_what_is_wrong_is_said_on_this_side(process: WorkerProcess) -> None:
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        process.open("oil", method="magic")
    with process.open("oil") as session:
        with pytest.raises(ValueError, match="got float32"):
            session.push(np.zeros((32, 48, 3), np.float32), 0.0)
        assert session.push(levels(1)[0], 1.0)
        with pytest.raises(ValueError, match=r"must rise, got 1\.0 after 1\.0"):
            session.push(levels(1)[0], 1.0)
        with pytest.raises(ValueError, match="strength must be in"):
            session.change(strength=3.0)
        with pytest.raises(TimeoutError, match="within 0 s, 1 wait"):
            session.get(0)
        session.pause()
        assert not session.push(levels(1)[0], 2.0)
        assert (session.paused, session.dropped) == (True, 2)
    with pytest.raises(SessionError, match="closed"):
        session.change(prompt="night")


def test_who_does_not_read_stops_his_own_session_only(process: WorkerProcess) -> None:
    with process.open("oil", policy="all") as deaf, process.open("oil", policy="all") as other:
        number = 0
        while deaf.push(levels(1)[0], float(number), timeout=4.0):  # a block takes less
            number += 1
            assert number < 12 * BLOCK
        # on their way, in the output queue, and before the model: not more than two blocks of each
        assert 3 * BLOCK <= number <= 6 * BLOCK
        assert deaf.unread <= BLOCK
        assert len(play(other, levels(2 * BLOCK))) == 2 * BLOCK


def test_a_change_tells_its_first_block_whether_one_is_running_or_not(
    process: WorkerProcess,
) -> None:
    clip = levels(8 * BLOCK, 64, 96)
    with process.open(prompt_embeds=embeds(), policy="all") as session:
        assert session.change(blend=0) == 0
        push_all(session, clip[: 2 * BLOCK], 0)
        assert None not in [session.get(30) for _ in range(2 * BLOCK)]
        told = [session.change(prompt="night")]
        assert told == [2]
        rest = threading.Thread(target=push_all, args=(session, clip[2 * BLOCK :], 2 * BLOCK))
        rest.start()
        assert None not in [session.get(30) for _ in range(BLOCK)]
        told.append(session.change(prompt="sepia"))
        assert None not in [session.get(30) for _ in range(5 * BLOCK)]
        rest.join()
        shares = [block.kept_share for block in session.telemetry.blocks]
    assert [block for block, share in enumerate(shares) if share == 1] == [0, *told]


def test_a_rate_and_a_guard_come_and_go_there_as_well(process: WorkerProcess) -> None:
    frames = levels(9 * BLOCK, 64, 96)
    with process.open(prompt_embeds=embeds(), policy="all") as session:
        number = 0
        for change in (None, {"control": WATCHED}, {"control": None}):
            if change is not None:
                session.change(**change)
            batch = frames[number : number + 3 * BLOCK]
            pusher = threading.Thread(target=push_all, args=(session, batch, number))
            pusher.start()
            out = [session.get(timeout=30) for _ in range(3 * BLOCK)]
            pusher.join()
            assert all(frame is not None for frame in out)
            number += 3 * BLOCK
        blocks = session.telemetry.blocks
    expected = [False] * 3 + [True] * 3 + [False] * 3
    assert [block.rate is not None for block in blocks] == expected
    assert [block.guard is not None for block in blocks] == expected
    assert {block.stream for block in blocks} == {0}


def push_all(session: RemoteSession, frames: Pixels, start: int) -> None:
    for number, frame in enumerate(frames):
        assert session.push(frame, (start + number) / 10)


def test_a_model_that_cannot_be_loaded_is_reported() -> None:
    with pytest.raises(ModelError, match="of all things"):
        WorkerProcess(no_model).start()  # type: ignore[arg-type]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_kill_9_ends_sessions_with_a_message_and_the_server_recovers(server: Server) -> None:
    keeper = server.state.supervisor
    with server.client() as client:
        client.works()
    wait_until(lambda: server.state.connections.open == 0)
    before = descriptors(), keeper.workers[0].failures
    shared = set(os.listdir("/dev/shm"))
    with server.client() as one, server.client() as two:
        one.works()
        two.until("ready")
        first = keeper.pid
        os.kill(first, signal.SIGKILL)
        for client in (one, two):
            code, last = client.ending()
            assert (code, last["type"]) == (1011, "error")
            assert "the process that runs the model was killed by SIGKILL" in last["message"]
    # who comes now waits for the next one
    with server.client() as client:
        client.until("ready", seconds=90)
        client.works()
        assert keeper.pid != first
    assert not alive(first)
    wait_until(lambda: server.state.connections.open == 0)
    assert get(server, "/api/status").json()["worker_failures"] == before[1] + 1
    assert (server.state.open_sessions.open, server.state.sessions) == (0, {})
    wait_until(lambda: descriptors() <= before[0])
    assert set(os.listdir("/dev/shm")) <= shared


PROGRAM = """
import time
from tests import tiny
from stillframe.live import WorkerProcess
if __name__ == "__main__":
    process = WorkerProcess(tiny.pipeline)
    process.start()
    print(process.pid, flush=True)
    time.sleep(100)
"""


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        assert alive(pid)
        program.kill()
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)
