"""Processes that run one stream: how they start, fail and end, and what is left behind then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import parallel_models
from tests.edit_fixtures import (
    busy_frames,
    clip_path_fixture,  # noqa: F401
    model_folder_fixture,  # noqa: F401
)
from tests.video_samples import decode, make_video
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.errors import ModelError, WorkerError
from stillframe.jobs.edit import Progress, edit_file
from stillframe.jobs.parallel import Followers, _told

COMMAND = [sys.executable, "-m", "stillframe"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
COLD = {**os.environ, "OMP_NUM_THREADS": "1"}


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    """Whether processes have ended, after waiting for that."""
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def edit(
    load: Any, processes: int, clip: Path, out: Path, pids: list[int], *, kill: bool = False
) -> None:
    """Edit a file with some processes; write down which follow, and kill one of them midway."""

    def show(progress: Progress) -> None:
        assert 0 < progress.frames_out < 30
        if kill:
            os.kill(pids[0], signal.SIGKILL)

    pipe = parallel_models.pipeline()
    with Followers(["cpu"] * processes, load) as followers:
        pids += followers.pids
        with followers.leading(pipe):
            edit_file(pipe, clip, out, prompt="oil", on_progress=show)


def test_one_that_is_killed_ends_the_edit_in_one_sentence(tmp_path: Path, clip_path: Path) -> None:
    pids: list[int] = []
    given = parallel_models.transformer, 2, clip_path, tmp_path / "out.mkv", pids
    with pytest.raises(WorkerError, match=r"^process 1 of 2 was killed by SIGKILL$"):
        edit(*given, kill=True)
    assert gone(pids, 0)
    assert list(tmp_path.iterdir()) == []


def test_heads_that_cannot_be_shared_are_refused_before_anybody_is_waited_for(
    tmp_path: Path, clip_path: Path
) -> None:
    pids: list[int] = []
    said = "the model has 4 heads of attention, which 3 processes cannot share evenly"
    with pytest.raises(ModelError, match=f"^{said}$"):
        edit(parallel_models.transformer, 3, clip_path, tmp_path / "out.mkv", pids)
    assert len(pids) == 2
    assert gone(pids, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_one_that_cannot_load_the_model_says_why(tmp_path: Path, clip_path: Path) -> None:
    pids: list[int] = []
    with pytest.raises(WorkerError, match=r"^there is no transformer for cpu$"):
        edit(parallel_models.damaged, 2, clip_path, tmp_path / "out.mkv", pids)
    assert gone(pids, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "environment", "said"),
    [
        (["--parallel", 4, "--method", "tome"], {}, "method 'tome' merges tokens, which cannot"),
        (["--parallel", 0], {}, "greater than or equal to 1"),
        (["--parallel", 2, "--device", "cuda:99"], {}, "device 'cuda:99' is not there"),
        (["--parallel", 2], {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}, "started 3"),
    ],
)
def test_what_is_refused_before_anything_starts(
    tmp_path: Path,
    clip_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[Any],
    environment: dict[str, str],
    said: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = ["edit", clip_path, "-o", tmp_path / "out.mkv", "--prompt", "oil"]
    done = CliRunner().invoke(app, [str(x) for x in (*given, "--model", model_folder, *more)])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert done.stderr.count("Error") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "environment"),
    [(["--parallel", "2"], {}), ([], {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})],
)
def test_random_weights_are_measured_in_one_process(
    monkeypatch: pytest.MonkeyPatch, more: list[str], environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["bench", "--random-weights", "--model", "1.3b", *more])
    assert done.exit_code == 2
    assert "are those of 1 process, not of 2" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelError("the model has 5 heads"), "the model has 5 heads"),
        (torch.OutOfMemoryError("CUDA: 2 GiB"), "process 1 of 2 has not enough memory on cuda:1"),
        (KeyError("x"), "process 1 of 2 failed with KeyError: 'x'"),
    ],
)
def test_what_a_process_says_of_its_end(error: Exception, said: str) -> None:
    assert _told(error, "process 1 of 2", "cuda:1") == said


# whole commands: each starts several interpreters


@contextmanager
def started(folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A command that edits a long clip, once its output is being written."""
    clip = make_video(folder / "in.mkv", busy_frames(2000))
    out = folder / "out"
    out.mkdir()
    command = [*COMMAND, "edit", clip, "-o", out / "out.mkv", "--style", "oil", *more]
    with subprocess.Popen(
        list(map(str, command)),
        env=COLD,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        end = time.monotonic() + 120
        while not list(out.iterdir()):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(2)
        yield process


def session_of(process: subprocess.Popen[str]) -> list[int]:
    """All processes of a command, itself included."""
    told = subprocess.run(
        ["ps", "-o", "pid=", "--sid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return list(map(int, told.stdout.split()))


@pytest.mark.slow
def test_ctrl_c_leaves_the_blocks_that_are_done_and_nobody(tmp_path: Path) -> None:
    with started(tmp_path, "--parallel", "2", "--device", "cpu") as process:
        pids = session_of(process)
        assert len(pids) >= 2
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        assert "Traceback" not in process.communicate()[1]
    assert gone(pids)
    assert 0 < len(decode(tmp_path / "out" / "out.mkv")) < 2000


@pytest.mark.slow
def test_the_others_end_with_the_one_that_leads(tmp_path: Path) -> None:
    with started(tmp_path, "--parallel", "2", "--device", "cpu") as process:
        pids = session_of(process)
        process.kill()
    assert gone(pids)


@pytest.mark.slow
def test_four_processes_and_torchrun_give_the_pictures_of_one(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "in.mkv", busy_frames(40))
    found, reports = {}, {}
    for name, command, more in (
        ("alone", COMMAND, ()),
        ("four", COMMAND, ("--parallel", 4)),
        ("torchrun", [*TORCHRUN, 2, "-m", "stillframe"], ("--execution", "fused")),
    ):
        (tmp_path / name).mkdir()
        out, report = tmp_path / name / "%02d.png", tmp_path / f"{name}.json"
        given = ["edit", clip, "-o", out, "--style", "oil", "--report", report]
        done = subprocess.run(
            [str(x) for x in (*command, *given, "--device", "cpu", *more)],
            env=COLD,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("40 frames") == 1
        pictures = [Image.open(path) for path in sorted((tmp_path / name).iterdir())]
        found[name] = np.stack([np.asarray(picture).astype(int) for picture in pictures])
        reports[name] = json.loads(report.read_text())
    alone = reports["alone"]
    assert len(found["alone"]) == 40
    for name, count in (("four", 4), ("torchrun", 2)):
        # numbers that round the other way
        different = abs(found[name] - found["alone"])
        assert different.max() <= 1
        assert (different > 0).mean() < 1e-3
        assert reports[name]["kept_share_blocks"] == alone["kept_share_blocks"]
        assert 1 <= reports[name]["cache_bytes"] * count / alone["cache_bytes"] < 1.01
