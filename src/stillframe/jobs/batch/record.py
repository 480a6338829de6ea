"""What a batch has done, as lines of JSON that are on the disk before much more is done.

The same file is the log for people and what a batch goes on from. Lines outlive a kill at once, and
a power cut once they are synced, which is done several times a second at most. A line that was torn
by a full disk is left out. Knows nothing of videos.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from stillframe.whole_file import LineFile

__all__ = ["Finished", "Record"]

# of a line; others are not of a batch
_LONGEST = 1 << 20
_SYNC_EVERY_S = 0.1


class Finished(NamedTuple):
    """An output that was made.

    Attributes:
        fingerprint: of what it was made from.
        size: bytes.
    """

    fingerprint: str
    size: int


class Record:
    """The log of a batch, open for this process alone.

    Args:
        path: of the file; made if need be.

    Attributes:
        finished: outputs that were made, by name.
        planned: names of outputs that this batch has said it will make, before there was anything.
        failure: why the latest lines could not be written; None if they were. They are kept, and
            written with the next one.

    Raises:
        OutputError: it cannot be opened, or another batch has it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.finished: dict[str, Finished] = {}
        self.planned: set[str] = set()
        self.failure: str | None = None
        self._waiting = b""
        self._is_synced, self._synced = True, time.monotonic()
        self._file = LineFile(self.path, _LONGEST, "batch", self._take)

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            output = entry["output"]
            if entry["event"] == "planned":
                self.planned.add(str(output))
            elif entry["event"] == "done":
                finished = Finished(str(entry["fingerprint"]), int(entry["bytes"]))
                self.finished[str(output)] = finished
        except (ValueError, TypeError, KeyError, RecursionError):
            return

    def plan(self, outputs: Iterable[str]) -> None:
        """Say that outputs will be made by this batch."""
        new = [name for name in outputs if name not in self.planned]
        self.planned.update(new)
        if new:
            self._write(b"".join(_line(event="planned", output=name) for name in new))

    def done(self, output: str, fingerprint: str, size: int, **facts: Any) -> None:
        """An output is there."""
        self._write(
            _line(event="done", output=output, fingerprint=fingerprint, bytes=size, **facts)
        )

    def failed(self, output: str, error: str, **facts: Any) -> None:
        """An attempt at an output has failed."""
        self._write(_line(event="failed", output=output, error=error, **facts))

    def refused(self, failures: Iterable[tuple[str, str]]) -> None:
        """Rows cannot be edited: what to call them, and why."""
        lines = [_line(event="refused", input=label, error=error) for label, error in failures]
        if lines:
            self._write(b"".join(lines))

    def tell(self, event: str, **facts: Any) -> None:
        """Something else."""
        self._write(_line(event=event, **facts))

    def _write(self, lines: bytes) -> None:
        """Append; what a full disk does not take waits for the next time."""
        self._waiting += lines
        try:
            self._file.append(self._waiting)
        except OSError as error:
            self.failure = str(self._file.explained(error))
            return
        self._waiting, self.failure = b"", None
        self._is_synced = False
        self.sync()

    def sync(self, *, at_once: bool = False) -> None:
        """Have lines on the disk, if there are new ones and it is not a moment since."""
        is_due = at_once or time.monotonic() - self._synced >= _SYNC_EVERY_S
        if self._is_synced or not is_due:
            return
        try:
            self._file.sync()
        except OSError as error:
            self.failure = str(self._file.explained(error))
        self._is_synced, self._synced = True, time.monotonic()

    def close(self) -> None:
        """Let another batch have it."""
        self.sync(at_once=True)
        self._file.close()


def _line(**facts: Any) -> bytes:
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}
    text = json.dumps(entry, ensure_ascii=False)
    return text.encode(errors="backslashreplace") + b"\n"
