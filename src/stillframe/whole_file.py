"""Files and folders that are complete or not there, whatever happens while they are written.

What grows does so under its final name in a hidden folder of its own beside its place. Nobody else
has that folder's name or may write in it, so no link can have been planted there and nothing of
others is in it; and unlike ``mkstemp``'s files, what is made in it gets the permissions that the
user's files usually have. Does not know formats nor which names are allowed.

Files of lines grow where they are, a line at a time, by one process at a time (`LineFile`). Lines
outlive a kill at once, and a power cut once they are synced; a last line that was torn by a kill or
a full disk is left out, and written over by the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from stillframe.errors import OutputError

__all__ = [
    "LineFile",
    "WholeFile",
    "check_name",
    "forget_left_behind",
    "open_whole",
    "own_folder",
    "whole_folder",
    "whole_lines",
    "write_whole",
]

# bytes: what file systems allow, all of the usual ones alike
_LONGEST_NAME = 255

_MARK = ".stillframe-"
_END = ".part"
_OWN = re.compile(rf"{re.escape(_MARK)}(\d+)-\w+{re.escape(_END)}")


def own_folder(parent: Path) -> Path:
    """A new empty folder in `parent` that only this user may use, with a name that nobody guesses.

    Raises:
        OSError: it cannot be made.
    """
    return Path(tempfile.mkdtemp(prefix=f"{_MARK}{os.getpid()}-", suffix=_END, dir=parent))


class WholeFile:
    """A file that grows out of sight and replaces what has its name when it is complete.

    Links are followed once, when this is made: a link stays, and what it points to is replaced.
    Between `open` and `publish` or `discard`, `open`'s path is for whoever writes.

    Args:
        path: its name in the end.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._target = Path(os.path.realpath(path))
        self._folder: Path | None = None

    def open(self) -> Path:
        """Where the file is to be written; there is none yet.

        Raises:
            OSError: the folder cannot be written in.
        """
        self._folder = own_folder(self._target.parent)
        return self._folder / self._target.name

    def publish(self) -> None:
        """Give the complete file its name, with the permissions of the one that it replaces.

        Raises:
            OSError: that is not possible; what there is can still be discarded.
        """
        assert self._folder is not None
        grown = self._folder / self._target.name
        with contextlib.suppress(OSError):  # there is none, or its permissions cannot be given
            os.chmod(grown, stat.S_IMODE(os.stat(self._target).st_mode) & 0o777)
        os.replace(grown, self._target)
        self.discard()

    def discard(self) -> None:
        """Delete what there is. Idempotent."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None


@contextmanager
def open_whole(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which is complete at the end of the block; see `WholeFile`.

    Raises:
        OutputError: it cannot be written, or something that is no regular file is in the way.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{path} is not a regular file and cannot be replaced")
    growing = WholeFile(path)
    try:
        with growing.open().open("xb") as file:
            yield file
        growing.publish()
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        growing.discard()


def check_name(path: Path) -> None:
    """Refuse a name that no usual file system takes; touches nothing.

    Raises:
        OutputError: it is too long, or has a NUL in it.
    """
    length = len(os.fsencode(path.name))
    if length > _LONGEST_NAME or "\0" in path.name:
        what = f"has {length} bytes, and {_LONGEST_NAME} are the most" if length else "is empty"
        what = "has a NUL in it" if "\0" in path.name else what
        raise OutputError(f"{path} cannot be written: its name {what}")


def write_whole(path: str | PathLike[str], parts: Iterable[bytes]) -> None:
    """Write a file whole, see `open_whole`.

    Raises:
        OutputError: see there.
    """
    with open_whole(path) as file:
        file.writelines(parts)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `path` at the end of the block, or is removed.

    Raises:
        OutputError: there is something at `path`, or it cannot be written.
    """
    if os.path.lexists(path):
        raise OutputError(f"{path} is there already, and what is written needs a new folder")
    own: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = own_folder(path.parent)
        growing = own / path.name
        growing.mkdir()
        yield growing
        growing.rename(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def forget_left_behind(folder: Path) -> None:
    """Remove what killed processes of this user left half-written in `folder`.

    Only folders that were made here are touched, and of them those of processes that are no more.
    """
    for found in list(folder.glob(f"{_MARK}*{_END}")):
        named = _OWN.fullmatch(found.name)
        if named is not None and _is_own(found) and not _runs(int(named[1])):
            shutil.rmtree(found, ignore_errors=True)


def _is_own(path: Path) -> bool:
    """Whether it is a folder, not a link to one, that this user alone may use."""
    try:
        found = path.lstat()
    except OSError:
        return False
    if os.name != "posix":
        return stat.S_ISDIR(found.st_mode)
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077 == 0
    return private and found.st_uid == os.geteuid()


def _runs(process: int) -> bool:
    """Whether there is such a process; where that cannot be asked, yes."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def whole_lines(path: Path, longest: int) -> Iterator[bytes]:
    """The lines of a file, without a torn last one.

    Args:
        path: the file.
        longest: bytes of a line; what is longer comes in parts.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as lines:
        for line in iter(lambda: lines.readline(longest), b""):
            if not line.endswith(b"\n") and len(line) < longest:
                return
            yield line


class LineFile:
    """A file of lines, open for this process alone.

    Args:
        path: of the file; made if need be.
        longest: see `whole_lines`.
        owner: what has the file open, for messages: "batch".
        take: is given each line that is there, in order.

    Raises:
        OutputError: it cannot be opened, or another process has it.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, longest: int, owner: str, take: Callable[[bytes], None]) -> None:
        self.path = path
        try:
            # lines of a file that is opened for appending cannot be taken back
            self._file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self.explained(error) from error
        self._end = 0
        try:
            self._lock(owner)
            for line in whole_lines(path, longest):
                take(line)
                self._end += len(line)
        except BaseException:
            self._file.close()
            raise

    def _lock(self, owner: str) -> None:
        try:
            import fcntl
        except ImportError:  # not a Unix
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{self.path} is in use by another {owner}") from error

    def append(self, lines: bytes, *, sync: bool = False) -> None:
        """Add whole lines: all of them, or none.

        Args:
            lines: each with its end.
            sync: whether they have to be on the disk.

        Raises:
            OSError: they cannot be written, or not be synced.
        """
        self._file.seek(self._end)
        self._file.truncate()
        rest = memoryview(lines)
        while rest:
            rest = rest[self._file.write(rest) :]
        if sync:
            self.sync()
        self._end += len(lines)

    def sync(self) -> None:
        """Have all lines on the disk.

        Raises:
            OSError: that cannot be done.
        """
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()

    def explained(self, error: OSError) -> OutputError:
        """The error as a sentence."""
        return OutputError(f"{self.path} cannot be written: {error.strerror}")
