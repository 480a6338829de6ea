"""Cells of a matrix and their rows: one edit to be made, and what came of it.

A row is a file of its own, written when everything else about its cell is; so whatever happens, at
most one cell is lost.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stillframe.errors import InputError, OutputError
from stillframe.evaluation.variants import Variant
from stillframe.jobs.report import write_json
from stillframe.whole_file import forget_left_behind

__all__ = ["Block", "Cell", "Conditions", "Row", "RowStore", "identity"]

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


@dataclass(frozen=True)
class Conditions:
    """What all cells of a run have in common.

    Attributes:
        model: its name, as it was asked for.
        weights: a fingerprint of its weights.
        frames: most frames of a clip.
        height, width: working size in pixels; None as `fit.fit_to_grid` chooses.
        device, dtype: where and in which number format it runs.
    """

    model: str
    weights: str
    frames: int
    height: int | None
    width: int | None
    device: str
    dtype: str


@dataclass(frozen=True)
class Cell:
    """One edit.

    Attributes:
        variant: the method.
        clip: name of the clip.
        prompt, seed: of the edit.
        conditioning: "source" or "sdedit"; None for the model's own.
        paired: whether the dense edit runs beside it, block by block, for a speedup.
    """

    variant: Variant
    clip: str
    prompt: str
    seed: int = 0
    conditioning: str | None = None
    paired: bool = False

    @property
    def on(self) -> tuple[str, str, int, str | None]:
        """What is edited: cells that agree in it can be compared pair by pair."""
        return self.clip, self.prompt, self.seed, self.conditioning


@dataclass(frozen=True)
class Block:
    """One block of an edit: tokens computed, tokens there are, seconds of its denoising."""

    kept: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a cell.

    Attributes:
        cell: what it was.
        error: one sentence, if it failed; everything below is empty then.
        kept_share: computed tokens / all tokens, the first block included.
        moved_share: tokens reused from another place / all tokens; 0 in rows of earlier versions.
        frames, width, height: of the edit.
        seconds, fps: wall time by stage, frames a second in all; reading the clip is not in it.
        full_seconds, full_fps: those of the dense edit beside it, if the cell is paired.
        blocks: one by one.
        cache_bytes, recovery_bytes: held by the stream.
        staleness: of what was reused, see `staleness.Staleness`; empty if nothing was.
        worst_patch: differences from the dense edit after the first block, see
            `measures.WorstPatch`; empty for the dense edit and in rows of earlier versions.
        metrics: by name.
        skipped: metrics that could not be had, with a sentence each.
        videos: the edit and the map of what was recomputed, relative to the output folder.
    """

    cell: Cell
    error: str | None = None
    kept_share: float = math.nan
    moved_share: float = 0.0
    frames: int = 0
    width: int = 0
    height: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    fps: float = math.nan
    full_seconds: Mapping[str, float] = field(default_factory=dict)
    full_fps: float = math.nan
    blocks: tuple[Block, ...] = ()
    cache_bytes: int = 0
    recovery_bytes: int = 0
    staleness: Mapping[str, float] = field(default_factory=dict)
    worst_patch: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    videos: Mapping[str, str] = field(default_factory=dict)

    def speedup(self, *stages: str) -> float:
        """Dense seconds / own seconds over some stages; nan where the cell is not paired."""
        own = sum(self.seconds.get(stage, 0.0) for stage in stages)
        full = sum(self.full_seconds.get(stage, 0.0) for stage in stages)
        return full / own if own and full else math.nan

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        """Undo `as_json`."""
        given = {**values, "cell": cell_from_json(values["cell"])}
        given["blocks"] = tuple(Block(**block) for block in values["blocks"])
        for name in ("kept_share", "fps", "full_fps"):
            given[name] = _finite(values[name])
        given["metrics"] = {name: _finite(value) for name, value in values["metrics"].items()}
        return cls(**given)

    def as_json(self) -> dict[str, Any]:
        """Plain values; numbers that JSON does not have are the words inf and nan."""
        values = asdict(self)
        values["cell"]["variant"]["params"] = dict(self.cell.variant.params)
        for name in ("kept_share", "fps", "full_fps"):
            values[name] = _named(values[name])
        values["metrics"] = {name: _named(value) for name, value in self.metrics.items()}
        return values


def cell_from_json(values: Mapping[str, Any]) -> Cell:
    """A cell from its plain values."""
    variant = values["variant"]
    params = tuple(sorted(variant["params"].items()))
    return Cell(**{**values, "variant": Variant(variant["method"], params)})


def _named(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _finite(value: float | str) -> float:
    return _NOT_FINITE[value] if isinstance(value, str) else float(value)


def identity(*parts: Any) -> str:
    """A short name for plain values: equal values have equal names, on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RowStore:
    """A folder of JSON files, each complete or not there.

    Args:
        folder: made if missing.

    Raises:
        OutputError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be made a folder: {error.strerror}") from error
        forget_left_behind(folder)

    def path(self, title: str, key: str, suffix: str = ".json") -> Path:
        """Where something is kept; ``title`` is for people, ``key`` tells it from others."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:60]
        return self.folder / f"{slug}-{key}{suffix}"

    def get(self, title: str, key: str) -> Any:
        """What was put there, None if nothing was.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path(title, key)
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged; delete it to have it made again") from error

    def put(self, title: str, key: str, values: dict[str, Any]) -> None:
        """Keep plain values.

        Raises:
            OutputError: they cannot be written.
        """
        write_json(values, self.path(title, key))
