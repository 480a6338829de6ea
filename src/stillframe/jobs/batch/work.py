"""What a worker of a batch does: load a model once, then edit files, and parts of long ones.

A worker is anywhere: in this process, or in one of a cluster. What goes to it and comes back is
plain data.
"""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stillframe.config import EditConfig, edit_options
from stillframe.errors import InputError, StillframeError
from stillframe.jobs.batch.plan import Item
from stillframe.jobs.batch.stores import (
    exists,
    fetched,
    join,
    published,
    remove,
    size_of,
)

if TYPE_CHECKING:
    from stillframe.jobs.batch.split import Piece
    from stillframe.pipelines.causal_wan import CausalWanPipeline
    from stillframe.video import Source

__all__ = ["PIECES", "Editor", "Outcome", "Task", "Work", "attempt"]

#: Folder of pieces, below a batch's own.
PIECES = ".stillframe-pieces"


@dataclass(frozen=True)
class Task:
    """Something for a worker to do.

    Attributes:
        kind: edit a file; look where to part a long one; edit a part; join the parts.
        item: the file.
        piece: to edit.
        pieces: to join.
    """

    kind: Literal["edit", "look", "piece", "join"]
    item: Item
    piece: Piece | None = None
    pieces: tuple[Piece, ...] = ()

    @property
    def cost(self) -> float:
        """Expected, as that of an item."""
        if self.piece is not None:
            return self.item.cost * self.piece.keep / max(1, self.item.frames, self.piece.keep)
        # what others wait for goes first
        return float("inf") if self.kind in ("look", "join") else self.item.cost


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        task: it; None of a worker that never began one.
        facts: what was found or made; None if it failed.
        error: why it failed, a sentence.
        blame: what failed: the "file", the "worker" that cannot work at all, or a worker that
            "died" over it; "options" that will never do.
        trace: of an error that nobody foresaw.
    """

    task: Task | None
    facts: dict[str, Any] | None = None
    error: str = ""
    blame: Literal["file", "options", "worker", "died"] = "file"
    trace: str = ""


#: Does a task; asked to stop, it raises KeyboardInterrupt and leaves nothing behind.
Work = Callable[[Task, Callable[[], bool]], dict[str, Any]]


def attempt(work: Work, task: Task, stop: Callable[[], bool]) -> Outcome:
    """Do a task; what goes wrong becomes a sentence.

    Raises:
        KeyboardInterrupt: ``stop`` said so.
    """
    try:
        return Outcome(task, {**work(task, stop), "worker": _whereabouts()})
    except Exception as error:
        known = isinstance(error, StillframeError | ValueError | OSError | MemoryError)
        trace = "" if known or _lacks_memory(error) else traceback.format_exc()
        blame: Literal["file", "options"] = "options" if isinstance(error, ValueError) else "file"
        return Outcome(task, error=told(error), blame=blame, trace=trace)


def _whereabouts() -> str:
    """Machine and process."""
    return f"{platform.node()} {os.getpid()}"


def told(error: Exception) -> str:
    """An error as a sentence."""
    if _lacks_memory(error):
        return "there is not enough memory; a smaller height needs less"
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename} "
        return f"{name}cannot be used: {error.strerror.lower()}"
    if isinstance(error, StillframeError | ValueError):
        return str(error)
    return (
        f"the edit failed with {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    )


def _lacks_memory(error: Exception) -> bool:
    name = type(error).__name__
    return (
        isinstance(error, MemoryError)
        or name == "OutOfMemoryError"
        or ("allocate memory" in str(error))
    )


class Editor:
    """Edits files with one model.

    Args:
        load: makes the model.
        model: its name, for reports.
        folder: of the batch.

    Raises:
        ModelError, ValueError: see ``load``.
    """

    def __init__(self, load: Callable[[], CausalWanPipeline], model: str, folder: str) -> None:
        self._pipe = load()
        self._model, self._folder = model, folder

    def __call__(self, task: Task, stop: Callable[[], bool]) -> dict[str, Any]:
        """Do a task; see `Work`."""
        do = {"edit": self._edit, "look": self._look, "piece": self._piece, "join": self._join}
        started = time.perf_counter()
        facts = do[task.kind](task, stop)
        return {**facts, "seconds": round(time.perf_counter() - started, 3)}

    def _edit(self, task: Task, stop: Callable[[], bool]) -> dict[str, Any]:
        item = task.item
        with fetched(item.source) as path, published(item.output) as target:
            facts = self._run(item, path, target, stop, max_frames=item.values.get("frames"))
        return {**facts, "bytes": size_of(item.output) or 0}

    def _run(
        self, item: Item, path: str, target: str, stop: Callable[[], bool], **options: Any
    ) -> dict[str, Any]:
        from stillframe.jobs.edit import edit_file

        def check(_: object) -> None:
            # a file that is cut short would pass for a whole one
            if stop():
                raise KeyboardInterrupt

        source, values = _source(item, path), item.values
        report = edit_file(
            self._pipe, source, target, prompt=item.prompt, config=_config(item, source),
            height=values.get("height"), width=values.get("width"), crf=values.get("crf", 18),
            two_pass=bool(values.get("two_pass")), model=self._model, on_progress=check, **options,
        )  # fmt: skip
        return {
            "frames": report.frames_out,
            "width": report.width,
            "height": report.height,
            "fps": round(report.fps, 3),
            "kept_share": round(report.kept_share, 4),
            "device": report.device,
            "warnings": list(report.warnings),
        }

    def _look(self, task: Task, stop: Callable[[], bool]) -> dict[str, Any]:
        """Where to part a file."""
        from stillframe.jobs.batch.split import check_split, find_cuts, find_pieces, run_in
        from stillframe.video import VideoReader

        item, pipe = task.item, self._pipe
        with fetched(item.source) as path:
            source = _source(item, path)
            check_split(_config(item, source), bool(item.values.get("two_pass")))
            with VideoReader(source) as reader:
                length = round(item.values["split"] * reader.fps)
            cuts, total = find_cuts(source, item.values.get("frames"), stop)
        lead = run_in(pipe.timeline, pipe.config.window_frames)
        return {"pieces": find_pieces(cuts, total, length, pipe.timeline, lead), "cuts": len(cuts)}

    def _place(self, item: Item, piece: Piece) -> str:
        """Where a piece lies. Its name says what it was made from, so it is only ever made once."""
        name = f"{item.fingerprint}-{piece.number:04d}-{piece.block}-{piece.frames}.mkv"
        return join(self._folder, f"{PIECES}/{name}")

    def _piece(self, task: Task, stop: Callable[[], bool]) -> dict[str, Any]:
        from stillframe.jobs.edit import Part

        item, piece = task.item, task.piece
        assert piece is not None
        place = self._place(item, piece)
        if exists(place):
            return {"frames": piece.frames, "again": True}
        with fetched(item.source) as path, published(place) as target:
            part = Part(piece.block, piece.frames)
            return self._run(item, path, target, stop, part=part)

    def _join(self, task: Task, stop: Callable[[], bool]) -> dict[str, Any]:
        from stillframe.jobs.batch.split import join_pieces

        item, places = task.item, [self._place(task.item, piece) for piece in task.pieces]
        with ExitStack() as stack:
            path = stack.enter_context(fetched(item.source))
            target = stack.enter_context(published(item.output))
            parts = [
                (piece, stack.enter_context(fetched(place)))
                for piece, place in zip(task.pieces, places, strict=True)
            ]
            crf = item.values.get("crf", 18)
            frames = join_pieces(_source(item, path), parts, target, crf, stop)
        for place in places:
            remove(place)
        return {"frames": frames, "pieces": len(places), "bytes": size_of(item.output) or 0}


def _source(item: Item, path: str) -> Source:
    from stillframe.video import Source
    from stillframe.video.formats import MAX_PIXELS

    background = item.values.get("background") or "black"
    most = item.values.get("max_pixels") or MAX_PIXELS
    source = Source.of(path, background=background, max_pixels=most)
    if source.kind != "file":
        raise InputError(f"{source.name} is not a file that can be edited in a batch")
    return source


def _config(item: Item, source: Source) -> EditConfig:
    from stillframe.video.control_files import VideoControlFiles

    values = {name: item.values.get(name) for name in edit_options()}
    files = VideoControlFiles(source, item.values.get("frames"))
    return EditConfig.from_options(values, named=_flag, files=files)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
