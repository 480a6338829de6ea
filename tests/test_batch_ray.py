"""Batches on Ray: real workers in processes of their own, some of which are killed."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from tests.batch_fixtures import begun, clips, first_cannot, item, log, start, times
from tests.edit_fixtures import model_folder_fixture  # noqa: F401
from tests.video_samples import decode

from stillframe.jobs.batch.on_ray import on_ray
from stillframe.jobs.batch.record import Record
from stillframe.jobs.batch.run import run_batch

pytest.importorskip("ray")
# ray leaves sockets and files to the end of its process
pytestmark = pytest.mark.filterwarnings("ignore")

COUNT, FRAMES = 5, 40


def check(out: Path) -> None:
    """Every output is there, whole, and was made once."""
    assert sorted(times(out)) == [f"{n}.mp4" for n in range(COUNT)]
    assert sorted(entry["output"] for entry in log(out, "done")) == sorted(times(out))
    found = [len(decode(out / f"{n}.mp4")) for n in range(COUNT)]
    assert found == [FRAMES + n for n in range(COUNT)]
    assert not list(out.glob(".stillframe-*"))


@pytest.fixture
def command(model_folder: Path, tmp_path: Path) -> list[object]:
    source = clips(tmp_path / "in", COUNT, FRAMES)
    return [
        source, "-o", tmp_path / "out", "--style", "oil", "--model", model_folder, "--workers", 2,
    ]  # fmt: skip


def test_killing_a_worker_loses_no_file(command: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(*command)
    begun(out, process.poll, 2)
    workers = {entry["worker"] for entry in log(out, "done")}
    os.kill(int(log(out, "done")[-1]["worker"].split()[-1]), signal.SIGKILL)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    check(out)
    lost = log(out, "failed")
    assert len(lost) <= 1
    assert all(entry["error"] == "the worker died over it" for entry in lost)
    # another one has taken its place
    assert len({entry["worker"] for entry in log(out, "done")} | workers) >= 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopping_the_driver_loses_what_was_in_flight(
    command: list[object], tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start(*command)
    begun(out, process.poll, 2)
    process.send_signal(how)
    _, told = process.communicate(timeout=120)
    assert process.returncode == (-how if how == signal.SIGKILL else 130), told
    made = {entry["output"] for entry in log(out, "done")}
    assert 2 <= len(made) < COUNT
    # its workers end by themselves
    pids = {int(entry["worker"].split()[-1]) for entry in log(out, "done")}
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "a worker outlives its driver"
        time.sleep(0.1)
    before = times(out)
    again = start(*command)
    _, told = again.communicate(timeout=200)
    assert again.returncode == 0, told
    check(out)
    assert {name: times(out)[name] for name in made} == {name: before[name] for name in made}


def test_a_batch_without_the_cards_it_asks_for_says_so(
    command: list[object], tmp_path: Path
) -> None:
    process = start(*command, "--device", "cuda", "-q")
    told, errors = process.communicate(timeout=200)
    assert process.returncode == 3, errors
    assert told == ""
    assert errors.splitlines() == [
        "Warning: a worker: device 'cuda' is not there: torch sees 0 CUDA devices"
    ]
    assert times(tmp_path / "out") == {}


def test_workers_that_cannot_work_leave_the_rest_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # workers import the tests' package
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    record = Record(tmp_path / "log")
    with on_ray(partial(first_cannot, tmp_path), 2, None, "cpu") as workers:
        items = [item(f"{number}.mp4") for number in range(20)]
        result = run_batch(items, workers, record)
        assert workers.workers == 1
    record.close()
    assert (result.done, result.left, result.retried) == (20, 0, 0)
    assert result.worker_errors == ("this machine has 0 GPUs",)


def test_clusters_that_cannot_be_had_are_told_in_a_sentence() -> None:
    with (
        pytest.raises(ValueError, match=r"there is no Ray at auto: .*"),
        on_ray(partial(first_cannot, Path()), 1, "auto", "cpu"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="a worker's device is auto, cpu or cuda"),
        on_ray(partial(first_cannot, Path()), 1, None, "cuda:1"),
    ):
        pass
