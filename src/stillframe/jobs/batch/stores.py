"""Files by path or by address (``s3://...``): a local copy to read, a whole file when written.

Addresses go through fsspec, which comes with others of our packages; what it needs for a kind of
store (s3fs, gcsfs) is installed by whoever uses one. Knows nothing of videos.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillframe.errors import InputError, OutputError, StillframeError
from stillframe.loading.identity import ends_of

__all__ = [
    "exists",
    "expand",
    "fetched",
    "identity",
    "is_url",
    "join",
    "make_folder",
    "published",
    "remove",
    "remove_folder",
    "size_of",
]

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_url(place: str) -> bool:
    """Whether it is an address, not a path."""
    return _URL.match(place) is not None


def join(folder: str, name: str) -> str:
    """The place of a file in a folder; ``name`` has slashes."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(Path(folder, name))


def _open(place: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        InputError: there is no such kind of store, or what it needs is not installed.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise InputError(f"{place} cannot be reached: {_first_line(error)}") from error
    return system, path


@contextmanager
def _told(place: str, what: str, kind: type[StillframeError]) -> Iterator[None]:
    """Errors of a store as a sentence; every client has some of its own."""
    try:
        yield
    except StillframeError:
        raise
    except FileNotFoundError as error:
        raise kind(f"{place} does not exist") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise kind(f"{place} cannot be {what}: {reason}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def exists(place: str) -> bool:
    """Whether there is something of that name.

    Raises:
        InputError: nobody can say.
    """
    return size_of(place) is not None


def size_of(place: str) -> int | None:
    """Bytes of a file, 0 of what is no file, None if there is nothing of that name.

    Raises:
        InputError: nobody can say.
    """
    with _told(place, "looked at", InputError):
        try:
            if is_url(place):
                system, path = _open(place)
                return int(system.info(path).get("size") or 0)
            return os.stat(place).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None


def identity(place: str) -> str:
    """What tells a file from another of its name: size, time of change, and a hash of its ends.

    Of a file in a store it is what the store has for that: an entity tag, a generation.

    Raises:
        InputError: it is not there, or cannot be read.
    """
    with _told(place, "read", InputError):
        if is_url(place):
            system, path = _open(place)
            return f"{system.size(path)} {system.ukey(path)}"
        facts = os.stat(place)
        return f"{facts.st_size} {facts.st_mtime_ns} {ends_of(place)}"


@contextmanager
def fetched(place: str) -> Iterator[str]:
    """A path to read a file at; one of a store is copied first, and the copy removed after.

    Raises:
        InputError: it is not there, or cannot be read.
    """
    if not is_url(place):
        yield place
        return
    with contextlib.ExitStack() as stack:
        with _told(place, "read", InputError):
            system, path = _open(place)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stillframe-"))
            copy = os.path.join(folder, path.rsplit("/", 1)[-1])
            system.get_file(path, copy)
        yield copy


@contextmanager
def published(place: str) -> Iterator[str]:
    """A path to write a file to, which is sent to its store when the block ends without an error.

    Stores show a file when it was sent whole. A path is handed on as it is: whoever writes there
    makes it whole (`stillframe.whole_file`); its folder is made.

    Raises:
        OutputError: it cannot be sent.
    """
    if not is_url(place):
        make_folder(os.path.dirname(place))
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="stillframe-") as folder:
        copy = os.path.join(folder, place.rsplit("/", 1)[-1])
        yield copy
        with _told(place, "written", OutputError):
            system, path = _open(place)
            system.put_file(copy, path)


def make_folder(place: str) -> None:
    """Make a folder and those around it, where there are such things.

    Raises:
        OutputError: it cannot be made.
    """
    with _told(place, "made", OutputError):
        if is_url(place):
            system, path = _open(place)
            system.makedirs(path, exist_ok=True)
        else:
            os.makedirs(place, exist_ok=True)


def remove(place: str) -> None:
    """Delete a file, if it is there."""
    with contextlib.suppress(StillframeError), _told(place, "deleted", OutputError):
        if is_url(place):
            system, path = _open(place)
            system.rm_file(path)
        else:
            os.unlink(place)


def remove_folder(place: str) -> None:
    """Delete a folder with all that is in it, if it is there."""
    with contextlib.suppress(StillframeError), _told(place, "deleted", OutputError):
        if is_url(place):
            system, path = _open(place)
            if system.exists(path):
                system.rm(path, recursive=True)
        else:
            shutil.rmtree(place, ignore_errors=True)


def expand(text: str) -> list[tuple[str, str]]:
    """The files that a path, a folder, a pattern or an address of these stands for.

    Returns:
        each file's place, and its name below what was given; hidden ones and those in hidden
        folders are left out. A name that nothing bears is returned as it is.

    Raises:
        InputError: a store cannot be asked.
    """
    if is_url(text):
        return _expand_url(text)
    if os.path.isdir(text):
        return sorted(_walk(text))
    if not os.path.lexists(text) and glob.has_magic(text):
        found = sorted(glob.glob(text, recursive=True))
        return [(path, os.path.basename(path)) for path in found if not os.path.isdir(path)]
    return [(text, os.path.basename(text))]


def _walk(folder: str) -> Iterator[tuple[str, str]]:
    for around, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = os.path.join(around, name)
                yield path, Path(os.path.relpath(path, folder)).as_posix()


def _expand_url(text: str) -> list[tuple[str, str]]:
    with _told(text, "listed", InputError):
        system, path = _open(text)
        if glob.has_magic(path):
            found = [(each, each.rsplit("/", 1)[-1]) for each in sorted(system.glob(path))]
        elif system.isdir(path):
            found = [(each, each[len(path) :].lstrip("/")) for each in sorted(system.find(path))]
        else:
            return [(text, path.rsplit("/", 1)[-1])]
        shown = [(each, name) for each, name in found if "/." not in f"/{name}"]
        return [(str(system.unstrip_protocol(each)), name) for each, name in shown]
