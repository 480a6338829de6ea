"""Rows into table files: CSV always, Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillframe.errors import OutputError
from stillframe.untrusted.printable import csv_cell
from stillframe.whole_file import write_whole

__all__ = ["write_table", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a text file that is complete or not there.

    Raises:
        OutputError: it cannot be written.
    """
    _write(path, text.encode(errors="backslashreplace"))


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror}") from error
    write_whole(path, (content,))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write rows of plain values; columns are those of all rows, in order of appearance.

    What was not measured (None or nan) is an empty field; what a spreadsheet would take for a
    formula is text (`printable.csv_cell`).

    Args:
        path: ending in ``.csv``; the Parquet file gets the same name.
        rows: at least one.

    Returns:
        the files written.

    Raises:
        OutputError: a file cannot be written.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in columns])
    for row in rows:
        writer.writerow([csv_cell(row.get(name)) for name in columns])
    write_text(path, text.getvalue())
    written = [path]
    if importlib.util.find_spec("pyarrow") is not None:
        written.append(_write_parquet(path.with_suffix(".parquet"), columns, rows))
    return written


def _write_parquet(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {_encodable(name): [_encodable(row.get(name)) for row in rows] for name in columns}
    )
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    _write(path, sink.getvalue())
    return path


def _encodable(value: Any) -> Any:
    """The value; of a text, what UTF-8 has no bytes for as escapes."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
