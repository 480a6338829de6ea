"""What a batch has to do: outputs named, costs guessed, and what is done already left out.

Looks at every file's header and ends, and edits nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from stillframe.errors import InputError, StillframeError
from stillframe.jobs.batch.fingerprint import fingerprint
from stillframe.jobs.batch.record import Record
from stillframe.jobs.batch.rows import Row
from stillframe.jobs.batch.stores import identity, is_url, join, size_of
from stillframe.loading.identity import ends_of
from stillframe.video.header import Header, read_header

__all__ = ["Failure", "Item", "Placed", "Plan", "make_plan"]

#: From a prompt or a style to the text to encode, the style that it is, and doubts about that.
Placed = Callable[[str | None, str | None], tuple[str, object, tuple[str, ...]]]

# files are looked at together: a network's answers take their time
_TOGETHER = 8
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Item:
    """A file that is to be edited.

    Attributes:
        label: what to call it.
        source, output: places.
        name: of the output, below the batch's folder.
        values: of all options of its edit, by name.
        prompt: the text to encode.
        fingerprint: of all that it is made from.
        cost: pixels of all frames of the result, as far as headers tell.
        frames, seconds: that it lasts; 0 if nobody says.
    """

    label: str
    source: str
    output: str
    name: str
    values: Mapping[str, Any]
    prompt: str
    fingerprint: str
    cost: float
    frames: int
    seconds: float


class Failure(NamedTuple):
    """A row that was not edited.

    Attributes:
        label: what to call it.
        error: why, in a sentence.
    """

    label: str
    error: str


class Plan(NamedTuple):
    """What there is to do.

    Attributes:
        items: to be edited.
        done: how many outputs are there already.
        failures: rows that cannot be edited.
        doubts: about prompts, a sentence each.
    """

    items: list[Item]
    done: int
    failures: list[Failure]
    doubts: tuple[str, ...]


def make_plan(
    rows: Iterable[Row],
    folder: str,
    record: Record,
    *,
    values: Mapping[str, Any],
    model: str,
    placed: Placed,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Plan:
    """Find out what is to be done, and note in the record which outputs this batch will make.

    Args:
        rows: what was asked for.
        folder: of the outputs.
        record: of this batch.
        values: of all options, by name; a row's own come first.
        model: its identity.
        placed: finds the prompt of a row.
        on_progress: called with the rows looked at so far.

    Raises:
        InputError: the rows cannot be read.
        OutputError: the record cannot be written.
    """
    planner = _Planner(folder, record, values, model, placed)
    items: list[Item] = []
    failures: list[Failure] = []
    seen = 0
    with ThreadPoolExecutor(_TOGETHER) as pool:
        named = iter(rows)
        while batch := list(islice(named, _AT_ONCE)):
            for found in pool.map(planner.look, [planner.claim(row) for row in batch]):
                if isinstance(found, Failure):
                    failures.append(found)
                elif found is not None:
                    items.append(found)
            seen += len(batch)
            if on_progress is not None:
                on_progress(seen, None)
    record.plan(item.name for item in items)
    done = seen - len(items) - len(failures)
    return Plan(list(_with_costs(items)), done, failures, tuple(planner.doubts))


def _with_costs(items: list[Item]) -> Iterator[Item]:
    """Files whose headers say nothing cost what others cost for their bytes: here as negatives."""
    known = [item.cost for item in items if item.cost >= 0]
    typical = sum(known) / len(known) if known else 1.0
    sizes = [-item.cost for item in items if item.cost < 0]
    scale = typical * len(sizes) / sum(sizes) if sum(sizes) else 0.0
    for item in items:
        yield item if item.cost >= 0 else replace(item, cost=-item.cost * scale)


class _Planner:
    """Rows to items, one by one."""

    def __init__(
        self, folder: str, record: Record, values: Mapping[str, Any], model: str, placed: Placed
    ) -> None:
        self.doubts: dict[str, None] = {}
        self._folder, self._record, self._values = folder, record, values
        self._model, self._placed = model, placed
        self._taken: dict[str, str] = {}
        self._prompts: dict[tuple[str | None, str | None], str] = {}

    def claim(self, row: Row) -> Row:
        """The row, with a problem if another one has its output. Not for several threads."""
        if row.problem is None:
            first = self._taken.setdefault(row.name, row.label)
            if first != row.label:
                told = (
                    f"{row.label} would be written to {row.name}, as {first} is: name its output "
                    f"in a table"
                )
                row = row._replace(problem=told)
        return row

    def look(self, row: Row) -> Item | Failure | None:
        """What is to be done about a row; None: it is done."""
        if row.problem is not None:
            return Failure(row.label, row.problem)
        try:
            return self._look(row)
        except (StillframeError, ValueError) as error:
            return Failure(row.label, str(error))
        except OSError as error:
            return Failure(row.label, f"{row.source} cannot be read: {error.strerror or error}")

    def _look(self, row: Row) -> Item | None:
        values, files = self._filled(row)
        prompt = self._prompt(values)
        output = join(self._folder, row.name)
        # options that nobody gave decide nothing: another control may be registered next time
        asked = {name: value for name, value in values.items() if value is not None}
        made = fingerprint(identity(row.source), self._model, prompt, asked, files)
        there, finished = size_of(output), self._record.finished.get(row.name)
        if there is not None:
            if row.name not in self._record.planned:
                raise InputError(f"{output} is there already, and this batch has not made it")
            if finished is not None and finished == (made, there):
                return None
            if not is_url(output) and os.path.samefile(row.source, output):
                raise InputError(f"{output} is the video being read")
        cost, frames, seconds = _cost(row.source, values)
        return Item(
            row.label, row.source, output, row.name, values, prompt, made, cost, frames, seconds
        )

    def _filled(self, row: Row) -> tuple[dict[str, Any], dict[str, str]]:
        """All options of a row, and what tells the files that they name from others."""
        own = dict(row.values)
        values = dict(self._values)
        if "prompt" in own or "style" in own:
            values.update(prompt=None, style=None)
        values.update(own)
        files = {}
        for name, value in values.items():
            if not isinstance(value, str) or name in ("prompt", "style"):
                continue
            near = os.path.join(row.folder, value) if row.folder and name in own else value
            if os.path.isfile(near):
                values[name] = os.path.abspath(near)
                files[name] = ends_of(near)
        return values, files

    def _prompt(self, values: Mapping[str, Any]) -> str:
        asked = values.get("prompt"), values.get("style")
        if asked not in self._prompts:
            text, _, doubts = self._placed(*asked)
            self._prompts[asked] = text
            self.doubts.update(dict.fromkeys(doubts))
        return self._prompts[asked]


def _cost(source: str, values: Mapping[str, Any]) -> tuple[float, int, float]:
    """Pixels of all frames of the result, how many these are, and seconds; where no header tells,
    bytes as a negative number."""
    if is_url(source):
        # to be read it would have to be copied
        return -float(size_of(source) or 0), 0, 0.0
    header = read_header(source)
    if not header.frames or not header.height or not header.width:
        return -float(size_of(source) or 0), 0, 0.0
    frames = min(header.frames, values.get("frames") or header.frames)
    return frames * _pixels(header, values), frames, frames / header.fps


def _pixels(header: Header, values: Mapping[str, Any]) -> float:
    """Of a frame of the result, where its size is asked for, else of the source."""
    height, width = values.get("height"), values.get("width")
    aspect = header.width / header.height
    if height is None:
        return header.width * header.height if width is None else width * width / aspect
    return float(height * (height * aspect if width is None else width))
