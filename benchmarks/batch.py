"""What a batch costs beside its edits, and what more workers gain.

By default a table of made rows is planned and run with work that does nothing: seconds a file of
looking at it, of giving it out and of writing the log, and the memory of the process as it goes on.
With ``--workers`` short clips are edited on Ray by so many workers, whose models are loaded before
the clock starts.

    python -m benchmarks.batch                              # 10,000 rows, nothing edited
    python -m benchmarks.batch --ray                        # the same, through one worker of Ray
    OMP_NUM_THREADS=1 python -m benchmarks.batch --workers 1,2 --clips 24
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks import say
from stillframe.config import edit_options
from stillframe.jobs.batch.executors import Executor, InProcess
from stillframe.jobs.batch.on_ray import on_ray
from stillframe.jobs.batch.plan import Item, Plan, make_plan
from stillframe.jobs.batch.record import Record
from stillframe.jobs.batch.rows import read_rows
from stillframe.jobs.batch.run import BatchProgress, BatchResult, run_batch
from stillframe.jobs.batch.work import Editor, Work
from stillframe.loading.load import load_pipeline

_PAGE = resource.getpagesize()


def make_clip(path: Path, frames: int, width: int, height: int) -> Path:
    """A square that moves over stripes."""
    stripes = np.arange(width) // 8 % 2 * 90 + 60
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            picture = np.broadcast_to(stripes[None, :, None], (height, width, 3)).astype(np.uint8)
            left = index * 3 % (width - 16)
            picture[8:24, left : left + 16] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def nothing() -> Work:
    """Work that makes nothing and says so."""
    return lambda task, stop: {"frames": 1, "bytes": 1, "seconds": 0.0}


def plan_of(rows: list[str], folder: Path, record: Record) -> Plan:
    """A plan, with the options that nobody gave."""
    options = edit_options()
    values = {name: option.default for name, option in options.items()}
    return make_plan(
        read_rows(rows, {**options, "prompt": options["conditioning"]}), str(folder), record,
        values={**values, "prompt": "oil painting", "style": None}, model="none",
        placed=lambda prompt, style: (str(prompt), style, ()),
    )  # fmt: skip


def workers(count: int, make_work: Callable[[], Work]) -> AbstractContextManager[Executor]:
    """So many on Ray; none is this process."""
    if count:
        return on_ray(make_work, count, None, "cpu")
    return closing(InProcess(make_work, lambda: False))


def overhead(count: int, on_ray: bool) -> dict[str, Any]:
    """Rows that are planned and given out; nothing is edited."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = make_clip(folder / "clip.mp4", 10, 64, 48)
        (folder / "in").mkdir()
        for number in range(count):
            os.link(clip, folder / "in" / f"{number}.mp4")
        table = folder / "rows.csv"
        lines = [f"in/{number}.mp4,{number}.mp4,{number % 7}" for number in range(count)]
        table.write_text("\n".join(["input,output,seed", *lines]) + "\n")
        (folder / "out").mkdir()
        with closing(Record(folder / "out" / "log")) as record:
            before, started, cpu = resident(), time.perf_counter(), time.process_time()
            plan = plan_of([str(table)], folder / "out", record)
            planned, looked = resident(), time.perf_counter() - started
            assert len(plan.items) == count, plan.failures[:3]
            memory: list[int] = []

            def note(now: BatchProgress) -> None:
                if now.done % max(1, count // 10) == 0:
                    memory.append(resident())

            with workers(int(on_ray), nothing) as executor:
                result = run_batch(plan.items, executor, record, on_progress=note)
            spent = time.process_time() - cpu
        assert result.done == count
    return {
        "rows": count,
        "workers": "one of Ray's" if on_ray else "this process",
        "plan_ms_a_file": 1e3 * looked / count,
        "run_ms_a_file": 1e3 * result.seconds / count,
        "ms_a_file": 1e3 * (looked + result.seconds) / count,
        "cpu_ms_a_file": 1e3 * spent / count,
        "planned_bytes_a_file": (planned - before) / count,
        "memory_mb": [round(each / 1e6, 1) for each in [planned, *memory]],
    }


def edits(counts: list[int], clips: int, frames: int, model: str) -> list[dict[str, Any]]:
    """Clips edited by so many workers, each with its model in memory."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = make_clip(folder / "clip.mp4", frames, 208, 112)
        for turn, count in enumerate(counts):
            out = folder / str(turn)
            out.mkdir()
            load = partial(load_pipeline, model, device="cpu")
            with (
                closing(Record(out / "log")) as record,
                workers(count, partial(Editor, load, model, str(out))) as executor,
            ):
                while executor.free < count:
                    executor.wait(1.0)
                run_batch(_items(clip, out, "warm", count), executor, record)
                result = run_batch(_items(clip, out, "", clips), executor, record)
            assert result.done == clips, result
            rows.append(_told(count, result, rows[0]["seconds"] if rows else result.seconds))
            say(
                "{workers} workers: {seconds:.1f} s, {fps:.1f} FPS, {speedup:.2f}x".format(
                    **rows[-1]
                )
            )
    return rows


def _items(clip: Path, out: Path, name: str, count: int) -> list[Item]:
    return [
        Item(f"{name}{n}", str(clip), str(out / f"{name}{n}.mp4"), f"{name}{n}.mp4", {},
             "oil painting", f"{name}{n}", 1.0, 0, 0.0)
        for n in range(count)
    ]  # fmt: skip


def _told(count: int, result: BatchResult, first: float) -> dict[str, Any]:
    return {
        "workers": count,
        "seconds": result.seconds,
        "fps": result.frames / result.seconds,
        "work_seconds": result.work_seconds,
        "speedup": first / result.seconds,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="benchmarks.batch", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="of the made table")
    parser.add_argument("--ray", action="store_true", help="through a worker of Ray")
    parser.add_argument("--workers", help="edit clips with so many workers, in turn: 1,2")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=36, help="of a clip of 208x112 pixels")
    parser.add_argument("--model", default="tiny")
    given = parser.parse_args()
    if given.workers:
        counts = [int(text) for text in given.workers.split(",")]
        say(json.dumps({"edits": edits(counts, given.clips, given.frames, given.model)}))
        return
    found = overhead(given.rows, given.ray)
    say("{rows} rows, worker: {workers}".format(**found))
    say(
        "a file: {plan_ms_a_file:.2f} ms to look at, {run_ms_a_file:.2f} ms to give out; of both "
        "{cpu_ms_a_file:.2f} ms on a CPU".format(**found)
    )
    say("memory in MB, planned and after each tenth: " + ", ".join(map(str, found["memory_mb"])))
    say(json.dumps(found))


if __name__ == "__main__":
    main()
