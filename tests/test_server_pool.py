"""Several devices behind one door: two processes on a CPU that stand for two cards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tests.live_fixtures import embeds, file_path, levels, pipeline, pixels
from tests.live_models import one_after, one_thread
from tests.server_fixtures import WAIT, Server, alive, get, serving, wait_until
from tests.test_live_process import play
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.cli.serve import _threads
from stillframe.errors import ModelError
from stillframe.loading.devices import environment_of, pick_devices
from stillframe.loading.load import pick_device
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.server.limits import RefusedError
from stillframe.server.pool import WorkerPool

pytestmark = pytest.mark.timeout(300)

NAMES = ["cpu:0", "cpu:1"]


def no_model() -> CausalWanPipeline:
    raise ModelError(f"sees {os.environ['CUDA_VISIBLE_DEVICES']} of all things")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two devices with two sessions each; the second one is slow to load."""
    sign = tmp_path_factory.mktemp("pool") / "sign"
    pool = WorkerPool({"cpu:0": one_thread, "cpu:1": partial(one_after, sign)}, 2, patience=90)
    pool.start()
    # the door opens with the first
    assert [each.ready for each in pool.workers] == [True, False]
    sessions = [pool.open("oil") for _ in range(2)]
    assert [each.device for each in sessions] == ["cpu:0"] * 2
    for session in sessions:
        session.close()
    sign.touch()
    wait_until(lambda: all(each.ready for each in pool.workers), 120)
    with serving(pool, max_sessions=4) as running:
        yield running
        # one that loads when the server ends is not waited for
        sign.unlink()
        os.kill(pid(running, 1), signal.SIGKILL)
        loading = pool._members[1].supervisor
        wait_until(lambda: loading._starting is not None and loading._starting.pid is not None)
        late = loading._starting
    assert late is not None
    assert not alive(late.pid)


def counts(server: Server) -> list[int]:
    """Sessions of each device."""
    workers = get(server, "/api/status").json()["workers"]
    assert [each["device"] for each in workers] == NAMES
    return [each["sessions"] for each in workers]


def pid(server: Server, number: int) -> int:
    found = server.state.supervisor._members[number].supervisor.pid
    assert found is not None
    return int(found)


def test_sessions_are_spread_and_each_is_edited_as_if_alone(server: Server) -> None:
    pool, clips = server.state.supervisor, [levels(30, seed=seed) for seed in (1, 2)]
    opened = partial(pool.open, None, prompt_embeds=embeds(), policy="all")
    sessions = [opened(), opened()]
    assert [each.device for each in sessions] == NAMES
    results: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda s=s, c=c: results.update({s.device: play(s, c)}))
        for s, c in zip(sessions, clips, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in sessions:
        session.close()
    for name, clip in zip(NAMES, clips, strict=True):
        assert np.array_equal(pixels(results[name]), file_path(pipeline(), clip)), name
    # where there are as few on each, the first one has it; a place that was left is taken again
    left = [opened() for _ in range(3)]
    assert [each.device for each in left] == [*NAMES, "cpu:0"]
    left[1].close()
    left.append(opened())
    assert left[-1].device == "cpu:1"
    for session in left:
        session.close()
    assert counts(server) == [0, 0]


def test_at_once_as_many_are_opened_as_there_is_room_for(server: Server) -> None:
    """However they come: none of them finds a device that is full."""
    start, found = threading.Barrier(4), []

    def come() -> None:
        start.wait()
        found.append(server.state.supervisor.open("oil"))

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.device for each in found) == sorted(NAMES * 2)
    for session in found:
        session.close()


def test_all_are_told_where_they_are_and_one_more_that_it_is_full(server: Server) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(4)]
        told = [client.until("ready") for client in clients]
        assert sorted(each["device"] for each in told) == sorted(NAMES * 2)
        with server.client() as fifth:
            code, last = fifth.ending()
        assert (code, last["type"]) == (1013, "refused")
        assert "the server is full: 4 of 4 sessions are open" in last["reason"]
        status = get(server, "/api/status").json()
        assert status["sessions"] == {"open": 4, "max": 4}
        where = {each["session"]: each["device"] for each in status["telemetry"]}
        assert where == {each["session"]: each["device"] for each in told}
        assert counts(server) == [2, 2]
    wait_until(lambda: server.state.connections.open == 0)


def test_kill_9_of_a_process_ends_its_own_sessions(server: Server) -> None:
    before = get(server, "/api/status").json()["worker_failures"]
    with server.client() as one, server.client() as other:
        devices = [client.until("ready")["device"] for client in (one, other)]
        assert sorted(devices) == NAMES
        gone, there = (one, other) if devices == NAMES else (other, one)
        gone.works()
        there.works()
        first, second = pid(server, 0), pid(server, 1)
        os.kill(first, signal.SIGKILL)
        code, last = gone.ending()
        assert (code, last["type"]) == (1011, "error")
        assert "the process that runs the model was killed by SIGKILL" in last["message"]
        there.works(10.0)
        # who calls again has the place that is left, and then one waits for the other device
        with server.client() as again, server.client() as later:
            assert again.until("ready")["device"] == "cpu:1"
            assert later.until("ready", seconds=120)["device"] == "cpu:0"
            later.works()
            there.works(20.0)
            assert (pid(server, 0) != first, pid(server, 1)) == (True, second)
    wait_until(lambda: server.state.connections.open == 0)
    status = get(server, "/api/status").json()
    assert status["worker_failures"] == before + 1
    assert [each["failures"] for each in status["workers"]] == [1, 0]


def test_where_no_device_has_a_model_the_door_stays_shut() -> None:
    pool = WorkerPool(dict.fromkeys(NAMES, lambda: pipeline()), 1, patience=0)
    with pytest.raises(Exception, match="pickle"):  # it cannot be told to a process
        pool.start()
    assert [each.failures for each in pool.workers] == [1, 1]
    with pytest.raises(RefusedError, match="0 of 2 devices are ready, and each has up to 1"):
        pool.open("oil")
    with pytest.raises(ValueError, match="got 0 and 1"):
        WorkerPool({}, 1)


@pytest.mark.slow
def test_each_sees_its_own_card_alone() -> None:
    with pytest.raises(ModelError, match=r"sees 3 of all things"):
        WorkerPool({"cuda:3": no_model}, 1).start()


@pytest.mark.slow
def test_one_that_cannot_load_is_tried_again(tmp_path: Path) -> None:
    pool = WorkerPool({"cpu:0": partial(later, tmp_path / "seen"), "cpu:1": one_thread}, 1)
    pool.start()
    try:
        wait_until(lambda: all(each.ready for each in pool.workers), 120)
        assert [each.failures for each in pool.workers] == [1, 0]
    finally:
        pool.stop()


def later(seen: Path) -> CausalWanPipeline:
    """Fails the first time."""
    if not seen.exists():
        seen.touch()
        raise ModelError("not yet")
    return one_thread()


# names


def test_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert pick_devices("0,2") == pick_devices("cuda:0, cuda:2") == ["cuda:0", "cuda:2"]
    assert pick_devices("all") == ["cuda:0", "cuda:1", "cuda:2"]
    assert pick_devices("cpu,1,cpu") == ["cpu:0", "cuda:1", "cpu:1"]
    for text, sentence in (
        ("0,3", "device 'cuda:3' is not there: torch sees 3 CUDA devices"),
        ("256", "device 'cuda:256' is not there: torch sees 3 CUDA devices"),
        ("1,cuda:1", "device 'cuda:1' is named 2 times, and may be once"),
        ("0,,1", "got ''"),
        ("", "got ''"),
        ("-1", "got '-1'"),
        ("mps", "got 'mps'"),
        ("all,cpu", "got 'all'"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            pick_devices(text)
    # torch would take it for cuda:0
    with pytest.raises(ValueError, match="'cuda:256' is not there: torch sees 3"):
        pick_device("cuda:256")


def test_a_process_sees_the_card_that_its_parent_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment_of("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5, 7")
    assert environment_of("cuda:1") == {"CUDA_VISIBLE_DEVICES": "7"}
    assert environment_of("cpu:1") == environment_of(None) == {}


def test_a_process_has_its_card_before_torch_is_imported() -> None:
    """Which, and what is imported with it, may ask once how many there are."""
    program = "import stillframe.loading.host, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_processes_share_the_threads() -> None:
    torch_threads = torch.get_num_threads()
    assert _threads({"threads": 8}, 3) == 2
    assert _threads({"threads": None}, 1) == torch_threads
    assert _threads({"threads": 1}, 4) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--devices", "0,999"], "is not there: torch sees"),
        (["--devices", "cpu,cpu", "--device", "cpu"], "give either --device or --devices"),
        (["--devices", "cpu,cpu", "--one-process"], "--one-process has one device"),
    ],
)
def test_the_command_refuses_devices(options: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "0", *options])
    assert (done.exit_code, sentence in " ".join(done.stderr.split())) == (2, True)


@pytest.mark.slow
def test_the_command_serves_on_two_devices() -> None:
    command = [sys.executable, "-m", "stillframe", "serve", "--port", "0", "--devices", "cpu,cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ran:
        assert ran.stdout is not None
        assert ran.stderr is not None
        try:
            line = ran.stdout.readline()
            url = re.search(r"http://[^/]+/", line)
            assert url, line
            end = time.monotonic() + 180
            ready = [False]
            while not all(ready) and time.monotonic() < end:
                status = httpx.get(f"{url[0]}api/status", timeout=WAIT).json()
                ready = [each["ready"] for each in status["workers"]]
                time.sleep(0.2)
            assert [each["device"] for each in status["workers"]] == NAMES
            assert (ready, status["sessions"]["max"]) == ([True, True], 8)
            speeds = httpx.get(f"{url[0]}api/speed", timeout=180).json()
            assert speeds["sizes"][0]["measured"]
        finally:
            ran.send_signal(signal.SIGINT)
        assert "devices, after" in ran.stderr.read()
        assert ran.wait(60) == 0
