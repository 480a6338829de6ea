"""``stillframe batch``: many files, on as many workers as there are."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillframe.cli.command import Given, flag, takes
from stillframe.cli.edit import placed_prompt
from stillframe.cli.interruption import Interruption
from stillframe.cli.options import (
    FRAMES,
    LOADING,
    MODEL,
    OUTPUT,
    PROMPT,
    QUIET,
    RESULT,
    SIZE,
    STREAM,
    load,
    part,
)
from stillframe.cli.screen import counted_progress, numbers_table, say, warn
from stillframe.config import EditConfig, edit_options
from stillframe.options import Option

if TYPE_CHECKING:
    from stillframe.jobs.batch.executors import Executor
    from stillframe.jobs.batch.plan import Failure, Plan
    from stillframe.jobs.batch.record import Record
    from stillframe.jobs.batch.run import BatchProgress, BatchResult

__all__ = ["FAILED", "batch", "columns"]

#: Exit code of a batch that came to its end, with files that could not be edited.
FAILED = 3

_WORKERS = "Workers"
_LOG = "batch.jsonl"
#: Failures that are shown one by one; all are in the log.
_MOST_SHOWN = 20
#: Prompts that a worker encodes while it has the text encoder; others take seconds each.
_MOST_PROMPTS = 256

#: What most people need, in this order.
_FIRST = ("out", "prompt", "style", "model", "workers", "address", "split", "method", "tolerance")

_OWN = {
    "out": Option(
        "str",
        "Write into this folder, or address of a store (s3://...).",
        metavar="DIR",
        required=True,
        short="o",
    ),
    "prompt": Option(
        "str", "Say what results should look like; a table's rows may say it.", metavar="TEXT"
    ),
    "style": PROMPT["style"],
    "workers": Option(
        "int",
        "Start so many workers on Ray: one a GPU by default, and this process where there is none.",
        metavar="N",
        least=1,
        most=100_000,
        group=_WORKERS,
    ),
    "address": Option(
        "str",
        "Join the Ray cluster at this address: auto, HOST:PORT or ray://HOST:PORT.",
        metavar="ADDRESS",
        group=_WORKERS,
    ),
    "split": Option(
        "float",
        "Split files that are half as long again into pieces of about so many seconds.",
        metavar="SECONDS",
        above=0,
        most=86400,
        group=_WORKERS,
    ),
    "log": Option(
        "path",
        "Keep what was done in this file: DIR/batch.jsonl by default.",
        metavar="FILE",
        group=RESULT,
    ),
    "frames": Option(
        "int", "Stop after so many frames of each.", metavar="N", least=1, most=FRAMES, group=RESULT
    ),
}
#: Files that all edits would write.
_NOT_FOR_MANY = ("masks_out", "rate_trace_out")


def options() -> Mapping[str, Option]:
    """Options of the command: what most people need, then the others by what they are about."""
    every = {**_OWN, **MODEL, **SIZE, **_of_edits(), **LOADING}
    rest = {name: option for name, option in every.items() if name not in _FIRST}
    return {**part(every, _FIRST), **QUIET, **rest}


def _of_edits() -> dict[str, Option]:
    """What a single edit may have, beside its prompt, its size and its length."""
    own = {name: o for name, o in edit_options().items() if name not in _NOT_FOR_MANY}
    return {"crf": OUTPUT["crf"], **own, **part(STREAM, ("background", "max_pixels"))}


def columns() -> dict[str, Option]:
    """What a row of a table may have."""
    return {**part(_OWN, ("prompt", "style", "frames")), **SIZE, **_of_edits()}


@takes(options)
def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN...",
            help="The videos to edit: files, folders, patterns, addresses, and tables "
            "(.csv, .jsonl) with a row a file.",
        ),
    ],
    given: Given,
) -> None:
    """Edit many files, on this machine or a cluster; run it again to go on."""
    from stillframe.jobs.batch.record import Record
    from stillframe.jobs.batch.stores import join, remove_folder
    from stillframe.jobs.batch.work import PIECES

    folder = _folder(given)
    _check(given, inputs)
    with closing(Record(_log(folder, given["log"]))) as record:
        _tidy(folder)
        plan = _plan(inputs, folder, given, record)
        result = _run(plan, folder, given, record) if plan.items else None
        _tidy(folder)
        if result is None or not (result.left or result.failures):
            # of files that were changed since, or are no longer asked for
            remove_folder(join(folder, PIECES))
        failures = len(plan.failures) + (0 if result is None else len(result.failures))
        if not given["quiet"]:
            _summarise(plan, result)
        if record.failure is not None:
            warn(f"{record.failure}: files done since then will be edited again")
    if result is not None and result.interrupted:
        say(
            f"interrupted: {result.done} files are done, and the same command goes on with the "
            f"other {result.left}",
            stderr=True,
        )
        raise typer.Exit(130)
    if failures or (result is not None and result.left):
        raise typer.Exit(FAILED)


def _folder(given: Mapping[str, Any]) -> str:
    """The outputs' folder, made if need be."""
    from stillframe.jobs.batch.stores import is_url, make_folder

    folder: str = given["out"]
    if is_url(folder):
        if given["log"] is None:
            raise ValueError(f"a batch into {folder} needs --log FILE on this machine")
        return folder
    make_folder(folder)
    return os.path.abspath(folder)


def _log(folder: str, log: Path | None) -> Path:
    return Path(folder, _LOG) if log is None else log


def _check(given: Mapping[str, Any], inputs: Sequence[str]) -> None:
    """Refuse what would fail for every file.

    Raises:
        ValueError, ModelError: an option is out of range, or there is no such model.
    """
    from stillframe.jobs.batch.rows import is_table
    from stillframe.loading.load import find_model, find_source
    from stillframe.models import bundled_models

    if given["model"] not in bundled_models() or given["vae"] is not None:
        find_source(given["model"], given["vae"])
    else:
        find_model(given["model"])
    if not any(map(is_table, inputs)) or given["prompt"] is not None or given["style"] is not None:
        placed_prompt(given["model"], given["prompt"], given["style"])
    _config(given)


def _config(given: Mapping[str, Any]) -> EditConfig:
    """How files are edited whose rows say nothing else."""
    from stillframe.video.control_files import VideoControlFiles

    # cuts that are looked for beforehand are those of a file
    values = {name: given.get(name) for name in edit_options() if name != "cuts_by"}
    return EditConfig.from_options(values, named=flag, files=VideoControlFiles())


def _tidy(folder: str) -> None:
    """Remove what workers of this machine left half-written when they were killed."""
    from stillframe.jobs.batch.stores import is_url
    from stillframe.whole_file import forget_left_behind

    if not is_url(folder):
        for around, _, _ in os.walk(folder):
            forget_left_behind(Path(around))


def _plan(inputs: Sequence[str], folder: str, given: Mapping[str, Any], record: Record) -> Plan:
    from stillframe.cli.downloads import fetch_shown
    from stillframe.jobs.batch.fingerprint import model_identity
    from stillframe.jobs.batch.plan import make_plan
    from stillframe.jobs.batch.rows import read_rows
    from stillframe.loading.load import missing_files

    if missing := missing_files(given["model"], given["vae"]):
        fetch_shown(missing)
    values = {name: given.get(name) for name in (*columns(), "split")}
    rows = read_rows(inputs, columns(), outside=folder)
    with counted_progress("looking at", "files", given["quiet"]) as show:
        plan = make_plan(
            rows,
            folder,
            record,
            values=values,
            model=model_identity(given),
            placed=partial(placed_prompt, given["model"]),
            on_progress=show,
        )
    for doubt in plan.doubts:
        warn(doubt)
    show_failure = _shown_failures()
    record.refused(plan.failures)
    for failure in plan.failures:
        show_failure(failure)
    return plan


def _shown_failures() -> Callable[[Failure], None]:
    """Shows the first failures."""
    shown = 0

    def show(failure: Failure) -> None:
        nonlocal shown
        shown += 1
        if shown > _MOST_SHOWN:
            return
        named = failure.label in failure.error
        warn(failure.error if named else f"{failure.label}: {failure.error}")
        if shown == _MOST_SHOWN:
            warn(f"{shown} failures were shown; the log has all of them")

    return show


def _run(plan: Plan, folder: str, given: Mapping[str, Any], record: Record) -> BatchResult:
    from stillframe.jobs.batch.run import run_batch

    interrupted = Interruption()
    prompts = list(dict.fromkeys(item.prompt for item in plan.items))[:_MOST_PROMPTS]
    with (
        _executor(folder, given, prompts, interrupted) as executor,
        interrupted,
        _progress(given["quiet"]) as show,
    ):
        return run_batch(
            plan.items,
            executor,
            record,
            split=given["split"],
            stop=interrupted,
            on_progress=show,
            on_failure=_shown_failures(),
        )


def _executor(
    folder: str, given: Mapping[str, Any], prompts: Sequence[str], stop: Callable[[], bool]
) -> AbstractContextManager[Executor]:
    """Where files are edited: on Ray where workers are asked for, or there are several cards."""
    from stillframe.jobs.batch.executors import InProcess
    from stillframe.jobs.batch.on_ray import on_ray
    from stillframe.jobs.batch.work import Editor
    from stillframe.methods import as_method

    method = as_method(_config(given).method)
    recovery = method.recovery if method.prunes else "none"
    wanted = part(given, (*MODEL, *SIZE, *LOADING, "store", "cache", "motion"))
    make_model = partial(load, {**wanted, "quiet": True}, recovery=recovery, prompts=prompts)
    make_work = partial(Editor, make_model, given["model"], folder)
    workers, address, device = given["workers"], given["address"], given["device"]
    if workers is None and address is None:
        workers = _cards() if device in ("auto", "cuda") else 1
    if address is None and workers == 1:
        return closing(InProcess(make_work, stop))
    return on_ray(make_work, workers, address, device)


def _cards() -> int:
    """GPUs that can each have a worker; 1 without Ray or without several."""
    if importlib.util.find_spec("ray") is None:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[BatchProgress], None]]:
    """A progress bar on standard error: files, failures, frames a second, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("editing"),
        BarColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        console=console,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=1.0, told="")

        def show(now: BatchProgress) -> None:
            told = [f"{now.done}/{now.total} files"]
            if now.failed:
                told.append(f"{now.failed} failed")
            told.append(f"{now.fps:.1f} FPS")
            told.append(f"{now.workers} workers" if now.workers != 1 else "1 worker")
            if now.left is not None:
                told.append(f"{_clock(now.left)} left")
            bar.update(task, completed=now.share, told=", ".join(told))

        yield show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _summarise(plan: Plan, result: BatchResult | None) -> None:
    """What became of it, as a table."""
    failed = len(plan.failures)
    rows = [("files that were done before", str(plan.done))]
    if result is not None:
        failed += len(result.failures)
        rows += [
            ("files edited", str(result.done)),
            ("attempts made again", str(result.retried)),
            ("frames", str(result.frames)),
            ("time", _clock(result.seconds)),
            ("time of all workers", _clock(result.work_seconds)),
            ("frames a second", f"{result.frames / max(result.seconds, 1e-9):.1f}"),
        ]
        if result.left:
            rows.append(("files that are left", str(result.left)))
    rows.append(("files that failed", str(failed)))
    numbers_table(("batch", ""), rows, narrow=True)
