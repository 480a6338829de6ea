"""The matrix: cells in, rows out, every row a file, so that a run goes on where it ended.

What is kept in the output folder: ``cells/`` rows, ``frames/`` sources and dense edits as arrays
(references of the metrics), ``videos/`` to look at. Rows of older code are taken as they are: after
a change, take another folder.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillframe.errors import ModelError
from stillframe.evaluation.cells import Cell, Conditions, Row, RowStore, identity
from stillframe.evaluation.editing import (
    Prepared,
    as_video,
    edit_frames,
    keep_array,
    prepare,
    worst_patches,
    write_video,
)
from stillframe.evaluation.sources import Clip
from stillframe.evaluation.variants import FULL
from stillframe.metrics import Metric, find_metric, metrics
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["Matrix", "Progress", "fingerprint", "pick_metrics"]

Pixels = NDArray[np.uint8]
_T = TypeVar("_T")

_SAMPLE = 64  # numbers of each weight that a fingerprint looks at


class Progress(NamedTuple):
    """Who is told how far it is, and who may end it.

    Attributes:
        report: called with what is being done, steps done and steps there are.
        stop: asked between steps and, in edits, after every frame; true ends the run.
    """

    report: Callable[[str, int, int], None] = lambda what, done, total: None
    stop: Callable[[], bool] = lambda: False

    def steps(self, what: str, items: Sequence[_T]) -> Iterator[_T]:
        """The items one by one, telling before each.

        Raises:
            KeyboardInterrupt: ``stop`` said so.
        """
        for done, item in enumerate(items):
            if self.stop():
                raise KeyboardInterrupt
            self.report(what, done, len(items))
            yield item
        self.report(what, len(items), len(items))


def fingerprint(pipe: CausalWanPipeline) -> str:
    """A name for a pipeline's weights: the first numbers of every one of them, hashed."""
    digest = hashlib.sha256()
    for part in (pipe.transformer, pipe.vae):
        for name, weight in part.state_dict().items():
            sample = weight.detach().flatten()[:_SAMPLE].float().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:12]


def pick_metrics(names: Sequence[str] | None) -> tuple[list[Metric], dict[str, str]]:
    """The metrics of some names (None: all), and a sentence for each that cannot be had here.

    Raises:
        ValueError: for an unknown name.
    """
    kinds = [find_metric(name) for name in (metrics() if names is None else names)]
    found = [kind() for kind in kinds]
    reasons = {metric.name: metric.available() for metric in found}
    return (
        [metric for metric in found if reasons[metric.name] is None],
        {name: reason for name, reason in reasons.items() if reason is not None},
    )


class Matrix:
    """Runs cells and keeps what came of them.

    Args:
        pipe: the model.
        clips: those that cells may name.
        conditions: what all cells have in common.
        out: folder to write; made if missing.
        metric_names: what to measure; None for all metrics.
        progress: who is told how far it is, and may end it.

    Attributes:
        skipped: metrics that cannot be had here, one sentence each.

    Raises:
        OutputError: the folder cannot be made.
        ValueError: for an unknown metric.
    """

    def __init__(
        self,
        pipe: CausalWanPipeline,
        clips: Sequence[Clip],
        conditions: Conditions,
        out: Path,
        metric_names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.pipe, self.conditions, self.out = pipe, conditions, out
        self.progress = progress or Progress()
        self.metrics, self.skipped = pick_metrics(metric_names)
        self._clips = {clip.name: clip for clip in clips}
        self._rows = RowStore(out / "cells")
        self._frames, self._videos = RowStore(out / "frames"), RowStore(out / "videos")
        self._embeds: dict[str, Tensor] = {}
        self._seen: dict[Cell, Row] = {}
        # a clip and a dense edit serve many cells in a row
        self.source = functools.lru_cache(maxsize=2)(self._source)
        self._reference = functools.lru_cache(maxsize=2)(self._dense)

    @property
    def rows(self) -> list[Row]:
        """Every row that was asked for so far."""
        return list(self._seen.values())

    def run(self, cells: Iterable[Cell], what: str = "cells") -> list[Row]:
        """Rows of some cells, in order; what is on disk already is not done again.

        The dense edit of each clip, prompt, seed and conditioning is made first.

        Raises:
            KeyboardInterrupt: the run was to end; what was done is kept.
            OutputError: a row cannot be written.
        """
        wanted = list(cells)
        # one clip after another, so that references are read once
        first = {cell.on: place for place, cell in reversed(list(enumerate(wanted)))}
        order = sorted(wanted, key=lambda cell: first[cell.on])
        rows = {cell: self._row(cell) for cell in self.progress.steps(what, order)}
        self._seen |= rows
        return [rows[cell] for cell in wanted]

    def once(self, what: str, given: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """Plain JSON values that take a while: computed, or read if they have been.

        Args:
            what: a few words.
            given: plain values on which the result depends, besides model and conditions.
            compute: makes it.
        """
        key = identity(what, given, asdict(self.conditions))
        found = self._rows.get(what, key)
        if found is None:
            found = {"what": what, "given": given, "found": compute()}
            self._rows.put(what, key, found)
        return found["found"]

    def dense(self, cell: Cell) -> Pixels:
        """The dense edit of what a cell edits, uint8 (T, H, W, 3).

        Raises:
            ModelError: it failed.
        """
        return self._reference(replace(cell, variant=FULL, paired=False))

    def embeds(self, prompt: str) -> Tensor:
        """A prompt's embeddings."""
        if prompt not in self._embeds:
            self._embeds[prompt] = self.pipe.encode_prompt(prompt)
        return self._embeds[prompt]

    def source_video(self, name: str) -> str:
        """The clip at its working size as a video, relative to the output folder."""
        path = self._videos.path(f"source {name}", self._clip_key(name), ".mp4")
        if not path.is_file():
            write_video(path, self.source(name))
        return str(path.relative_to(self.out))

    def _clip_key(self, name: str) -> str:
        clip, conditions = self._clips[name], self.conditions
        size = (conditions.frames, conditions.height, conditions.width)
        return identity(clip.name, str(clip.path.resolve()), *size)

    def _key(self, cell: Cell) -> str:
        return identity(asdict(cell), self._clip_key(cell.clip), asdict(self.conditions))

    def _source(self, name: str) -> Prepared:
        """A clip at its working size, made once."""
        clip = self._clips[name]
        path = self._frames.path(f"source {name}", self._clip_key(name), ".npy")
        if not path.is_file():
            keep_array(path, prepare(clip, self.pipe, self.conditions).frames)
        return Prepared(name, np.load(path, mmap_mode="r"), clip.fps)

    def _dense(self, cell: Cell) -> Pixels:
        row = self._row(cell)
        if row.error is not None:
            raise ModelError(f"the dense edit failed: {row.error}")
        return np.load(self._dense_path(cell), mmap_mode="r")

    def _dense_path(self, cell: Cell) -> Path:
        return self._frames.path(self._title(cell), self._key(cell), ".npy")

    @staticmethod
    def _title(cell: Cell) -> str:
        return f"{cell.clip} {cell.variant.label}"

    def _row(self, cell: Cell) -> Row:
        """The row of a cell: what is kept, or else the cell is run. Failures are rows, too."""
        kept = self._kept(cell)
        if kept is None and not cell.paired:
            # the same edit with a dense one beside it has been measured as well
            kept = self._kept(replace(cell, paired=True))
            kept = None if kept is None else replace(kept, cell=cell)
        if kept is not None:
            return kept
        try:
            row = self._run(cell)
        except Exception as error:  # whatever a method or a metric does, the others go on
            reason = " ".join(str(error).split()) or type(error).__name__
            row = Row(cell=cell, error=reason)
        self._rows.put(self._title(cell), self._key(cell), row.as_json())
        return row

    def _kept(self, cell: Cell) -> Row | None:
        """The row on disk, if it is complete: no failure, and every metric of this run."""
        values = self._rows.get(self._title(cell), self._key(cell))
        row = None if values is None else Row.from_json(values)
        if row is None or row.error is not None:
            return None
        if cell.variant == FULL and not cell.paired and not self._dense_path(cell).is_file():
            return None
        known = row.metrics.keys() | row.skipped.keys()
        return row if {metric.name for metric in self.metrics} <= known else None

    def _run(self, cell: Cell) -> Row:
        method = cell.variant.build()
        is_dense = cell.variant == FULL
        reference = None if is_dense else self.dense(cell)
        source, key = self.source(cell.clip), self._key(cell)
        videos = {"edit": self._videos.path(self._title(cell), key, ".mp4")}
        if method.prunes:
            videos["map"] = videos["edit"].with_name(f"{videos['edit'].stem}-map.mp4")
        edit = edit_frames(
            self.pipe,
            source,
            self.embeds(cell.prompt),
            method,
            videos["edit"],
            map_path=videos.get("map"),
            seed=cell.seed,
            paired=cell.paired,
            stop=self.progress.stop,
            conditioning=cell.conditioning,
        )
        if is_dense and not cell.paired:
            keep_array(self._dense_path(cell), edit.frames)
        found, skipped = self._measure(edit.frames, source.frames, reference)
        return Row(
            cell=cell,
            kept_share=edit.run.kept_share,
            moved_share=edit.run.moved_share,
            frames=len(edit.frames),
            width=edit.frames.shape[2],
            height=edit.frames.shape[1],
            seconds=edit.run.seconds,
            fps=edit.run.fps,
            full_seconds={} if edit.full is None else edit.full.seconds,
            full_fps=float("nan") if edit.full is None else edit.full.fps,
            blocks=edit.blocks,
            cache_bytes=edit.run.cache_bytes,
            recovery_bytes=edit.run.recovery_bytes,
            staleness=edit.run.staleness or {},
            worst_patch=(
                {} if reference is None else worst_patches([(edit.frames, reference)], self.pipe)
            ),
            metrics=found,
            skipped=skipped,
            videos={name: str(path.relative_to(self.out)) for name, path in videos.items()},
        )

    def _measure(
        self, edited: Pixels, source: Pixels, dense: Pixels | None
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Metrics of an edit by name; the dense edit itself has none that compare with it."""
        video = as_video(edited)
        references: dict[str, Tensor | None] = {"none": None, "source": as_video(source)}
        if dense is not None:
            references["dense"] = as_video(dense)
        found, skipped = {}, {}
        for metric in self.metrics:
            if metric.reference not in references:
                skipped[metric.name] = "the dense edit is what it compares with"
                continue
            try:
                found[metric.name] = metric(video, references[metric.reference])
            except (ValueError, ModelError, torch.OutOfMemoryError) as error:
                skipped[metric.name] = str(error)
        return found, skipped
