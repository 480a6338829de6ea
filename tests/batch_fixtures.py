"""Clips for batches, the command line that edits them, and what its log says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.edit_fixtures import busy_frames
from tests.video_samples import make_video
from typer.testing import CliRunner

import stillframe
from stillframe.cli.app import app
from stillframe.errors import ModelError
from stillframe.jobs.batch.plan import Item
from stillframe.jobs.batch.work import Work

__all__ = ["batch", "begun", "clips", "first_cannot", "item", "log", "start", "times"]


def clips(folder: Path, count: int, frames: int = 14) -> Path:
    """A folder of short clips: 0.mp4 and so on, each a frame longer than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        make_video(folder / f"{number}.mp4", busy_frames(frames + number, move=2 + number % 9))
    return folder


def batch(*arguments: object) -> Any:
    """``stillframe batch`` in this process."""
    return CliRunner().invoke(app, ["batch", *map(str, arguments)], env={"COLUMNS": "200"})


def start(*arguments: object) -> subprocess.Popen[str]:
    """``stillframe batch`` in a process of its own."""
    source = str(Path(stillframe.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "stillframe", "batch", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def log(folder: Path, event: str) -> list[dict[str, Any]]:
    """Lines of a batch's log that tell of one kind of event."""
    path = folder / "batch.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [entry for entry in whole if entry["event"] == event]


def begun(folder: Path, ended: Callable[[], int | None], count: int, seconds: float = 150) -> None:
    """Wait until so many outputs are in the log, and another one grows.

    ``ended`` is how the batch ended, None while it runs.
    """
    end = time.monotonic() + seconds
    while len(log(folder, "done")) < count or not list(folder.glob(".stillframe-*.part")):
        assert ended() is None, ended()
        assert time.monotonic() < end, "the batch takes too long"
        time.sleep(0.01)


def times(folder: Path, suffix: str = ".mp4") -> dict[str, int]:
    """When each output was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob(f"*{suffix}"))}


def item(name: str, cost: float = 1.0, values: Sequence[tuple[str, Any]] = ()) -> Item:
    """A file that nobody will open."""
    return Item(name, f"/{name}", f"/out/{name}", name, dict(values), "oil", name, cost, 25, 1.0)


def first_cannot(folder: Path) -> Work:
    """Work of a worker; the first of them cannot do any."""
    try:
        (folder / "first").mkdir()
    except FileExistsError:
        return lambda task, stop: {"frames": 1}
    raise ModelError("this machine has 0 GPUs")
