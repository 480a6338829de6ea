"""The files that a batch is asked to edit, one row each: of folders, patterns, addresses, tables.

A table (CSV or JSON lines) has a row a file: ``input``, ``output`` if its name is to be another,
and any option of an edit. What is wrong with a row is noted in it, and the others go on. Opens no
video.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stillframe.errors import InputError, OutputError
from stillframe.jobs.batch.stores import expand, fetched, is_url, join
from stillframe.options import Option
from stillframe.untrusted.small_files import parse_json
from stillframe.video.containers import CONTAINERS, VIDEO_SUFFIXES
from stillframe.whole_file import check_name

__all__ = ["Row", "is_table", "read_rows"]

_TABLES = frozenset({".csv", ".jsonl", ".ndjson"})
_LONGEST_LINE = 1 << 20


class Row(NamedTuple):
    """One file to edit.

    Attributes:
        label: what to call it in sentences.
        source: its place: a path or an address.
        name: of its output, below the batch's folder; with slashes.
        values: of options that the row has, by name.
        folder: that files which its options name are looked for in; None for the current one.
        problem: why it cannot be edited, in a sentence; None if nothing is known.
    """

    label: str
    source: str
    name: str
    values: Mapping[str, Any] = {}
    folder: str | None = None
    problem: str | None = None


def read_rows(
    inputs: Sequence[str], options: Mapping[str, Option], outside: str | None = None
) -> Iterator[Row]:
    """All rows, in the order in which they are named.

    Args:
        inputs: files, folders, patterns, addresses of these, and tables.
        options: that a table may have.
        outside: a folder whose files are not taken: the batch's own.

    Raises:
        InputError: a table or a store cannot be read, or a folder or a pattern has no video.
    """
    for text in inputs:
        if is_table(text):
            yield from _read_table(text, options)
        else:
            yield from _named(text, outside)


def is_table(text: str) -> bool:
    """Whether an input has rows of its own."""
    return Path(text).suffix.lower() in _TABLES


def _named(text: str, outside: str | None) -> Iterator[Row]:
    found = expand(text)
    if found == [(text, text.rsplit("/", 1)[-1])] or found == [(text, os.path.basename(text))]:
        yield Row(text, _absolute(text), _usual_name(found[0][1]))
        return
    own = None if outside is None or is_url(outside) else os.path.realpath(outside)
    taken = 0
    for place, name in found:
        is_own = own is not None and os.path.realpath(place).startswith(own + os.sep)
        if Path(name).suffix.lower() in VIDEO_SUFFIXES and not is_own:
            taken += 1
            yield Row(place, _absolute(place), _usual_name(name))
    if not taken:
        raise InputError(f"{text} has no video in it: of {len(found)} files, 0 are named like one")


def _absolute(place: str) -> str:
    """Workers may have another current folder."""
    return place if is_url(place) else os.path.abspath(place)


def _usual_name(name: str) -> str:
    """An input's name, in a container that is written."""
    path = Path(name)
    return name if path.suffix.lower() in CONTAINERS else path.with_suffix(".mp4").as_posix()


def _read_table(text: str, options: Mapping[str, Option]) -> Iterator[Row]:
    folder = text.rsplit("/", 1)[0] if is_url(text) else os.path.dirname(os.path.abspath(text))
    is_csv = text.lower().endswith(".csv")
    count = 0
    try:
        with fetched(text) as path, open(path, encoding="utf-8-sig", newline="") as file:
            for number, cells in _csv(file) if is_csv else _json_lines(file):
                count += 1
                yield _row(f"{text} row {number}", folder, cells, options, parse=is_csv)
    except UnicodeDecodeError as error:
        raise InputError(f"{text} is not text in UTF-8, from byte {error.start} on") from error
    except csv.Error as error:
        raise InputError(f"{text} is not CSV behind its row {count}: {error}") from error
    except OSError as error:
        raise InputError(f"{text} cannot be read: {error.strerror}") from error
    if not count:
        raise InputError(f"{text} has 0 rows")


#: Cells by column, or why there are none.
_Cells = dict[str, Any] | str


def _csv(file: Any) -> Iterator[tuple[int, _Cells]]:
    reader = csv.reader(file, strict=True)
    columns = [name.strip() for name in next(reader, [])]
    for number, cells in enumerate(reader, 1):
        if not cells:
            continue
        if len(cells) > len(columns):
            yield number, f"it has {len(cells)} cells, and there are {len(columns)} columns"
        else:
            yield number, dict(zip(columns, cells, strict=False))


def _json_lines(file: Any) -> Iterator[tuple[int, _Cells]]:
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), 1):
        if not line.strip():
            continue
        try:
            found = parse_json(line)
        except ValueError as error:
            yield number, f"it is not JSON: {error}"
            continue
        yield number, found if isinstance(found, dict) else "it holds no fields"


def _row(
    label: str, folder: str, cells: _Cells, options: Mapping[str, Option], *, parse: bool
) -> Row:
    """A row of a table; what is wrong with it is its problem."""
    if isinstance(cells, str):
        return Row(label, "", "", problem=f"{label} cannot be edited: {cells}")
    source, values = "", {}
    try:
        source = _text(cells, "input") or ""
        if not source:
            raise ValueError("it has no input")
        place = source
        if not is_url(source):
            place = join(folder, source) if is_url(folder) else os.path.join(folder, source)
        name = _text(cells, "output")
        base = source.replace(os.sep, "/").rstrip("/").rsplit("/", 1)[-1]
        name = _usual_name(base) if name is None else _checked_name(name)
        for column, cell in cells.items():
            value = _value(column, cell, options, parse)
            if value is not None:
                values[column] = value
        if "prompt" in values and "style" in values:
            raise ValueError("it has a prompt and a style, and one of them is to be given")
    except (ValueError, OutputError) as error:
        return Row(label, source, "", problem=f"{label} cannot be edited: {error}")
    return Row(label, _absolute(place), name, values, folder)


def _text(cells: Mapping[str, Any], column: str) -> str | None:
    cell = cells.get(column)
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    if not isinstance(cell, str):
        raise ValueError(f"{column} is a text, got {cell!r}")
    return cell.strip()


def _value(column: str, cell: Any, options: Mapping[str, Option], parse: bool) -> Any:
    """The value of an option's cell; None where there is none."""
    if column in ("input", "output") or cell is None or (parse and not cell.strip()):
        return None
    option = options.get(column)
    if option is None:
        raise ValueError(f"there is no column {column!r}; known are input, output and options")
    return option.parsed(column, cell) if parse else option.checked(column, cell)


def _checked_name(name: str) -> str:
    """The name of an output as a table gives it.

    Raises:
        ValueError: it leads out of the batch's folder, or names no container.
        OutputError: no file system takes it.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or is_url(name) or path.name.startswith("."):
        raise ValueError(f"output is the name of a file below the batch's folder, got {name!r}")
    if path.suffix.lower() not in CONTAINERS:
        raise ValueError(f"output ends in one of {', '.join(CONTAINERS)}, got {name!r}")
    check_name(path)
    return path.as_posix()
