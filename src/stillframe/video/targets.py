"""What becomes of an output: a file gets its name when it is complete, a stream is sent as it is.

Knows paths, descriptors and addresses, and which errors mean what. Does not know encoders.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit

from stillframe.errors import OutputClosedError, OutputError
from stillframe.video.containers import CONTAINERS, SEQUENCES, STREAMS
from stillframe.video.places import Pattern, Sink, split_pattern
from stillframe.video.srt import SrtProgram, has_srt
from stillframe.whole_file import WholeFile, check_name, own_folder

__all__ = [
    "FileTarget",
    "SequenceTarget",
    "StreamTarget",
    "check_file",
    "check_output",
    "find_target",
]

_CONNECT_S = 10.0
_RTMP_PORT = 1935
_RTMP_VERSION = b"\3"
_RTMP_HANDSHAKE_BYTES = 1536
# Seven packets of a transport stream, which fit into one of Ethernet.
_UDP_PACKET_BYTES = 1316
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ESHUTDOWN})


def check_file(path: str | PathLike[str]) -> Path:
    """The real path of a file to be written, of any kind; touches nothing.

    Raises:
        OutputError: the folder is missing or not writable, or something that is not a regular file
            is in the way.
    """
    target = Path(os.path.realpath(path))
    if os.path.isdir(target):
        raise OutputError(f"{path} is a folder, not a file that can be written")
    if os.path.exists(target) and not os.path.isfile(target):
        raise OutputError(f"{path} is not a regular file and cannot be replaced")
    check_name(target)
    _check_folder(path, target.parent)
    return target


def _check_folder(path: str | PathLike[str], folder: Path) -> None:
    if not os.path.isdir(folder):
        raise OutputError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: no permission in {folder}")


def check_output(path: str | PathLike[str], *, source: str | PathLike[str] | None = None) -> Path:
    """The real path that a video written to `path` will have, if one can be written there.

    Touches nothing, so that a program can ask before it loads a model. Symbolic links are followed.

    Args:
        path: where to write; its extension names the container.
        source: the file that is being read, which must be another.

    Raises:
        OutputError: the extension is unknown; the folder is missing or not writable; there is a
            folder or a device in the way; or `path` is `source`. For a pattern as out/%04d.png:
            there are files of that kind already.
    """
    pattern = split_pattern(os.fspath(path))
    path = Path(path)
    if pattern is not None and path.suffix.lower() in SEQUENCES:
        return _check_sequence(path, pattern)
    if path.suffix.lower() not in CONTAINERS:
        known = ", ".join(CONTAINERS)
        sequences = ", ".join(f"%04d{suffix}" for suffix in SEQUENCES)
        raise OutputError(
            f"{path} has no known video extension; known are {known}, and {sequences} for pictures"
        )
    target = check_file(path)
    if source is not None and os.path.exists(target) and os.path.samefile(source, target):
        raise OutputError(f"{path} is the video being read; choose another output")
    return target


def _check_sequence(path: Path, pattern: Pattern) -> Path:
    """The real path of a pattern, whose folder may be missing, but not the one around it."""
    folder = Path(os.path.realpath(pattern.folder))
    around = folder if folder.is_dir() else folder.parent
    _check_folder(path, around)
    if folder.exists():
        if not folder.is_dir():
            raise OutputError(f"{path} cannot be written: {folder} is not a folder")
        there = sum(pattern.matches(name) for name in os.listdir(folder))
        if there:
            raise OutputError(
                f"{path} would mix with {there} pictures of that kind in {folder}; "
                "choose another folder"
            )
    return folder / path.name


class SequenceTarget:
    """Numbered pictures that grow in a hidden folder beside their final places.

    Args:
        path: as out/%04d.png; numbers begin at 1. Its folder is made if need be.

    Attributes: as of `FileTarget`.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._final = check_output(path)
        self.container = SEQUENCES[path.suffix.lower()]
        self._made: Path | None = None

    def open(self) -> str:
        """Create the hidden folder; returns the pattern in it."""
        folder = self._final.parent
        if not folder.is_dir():
            folder.mkdir()
            self._made = folder
        self._part = own_folder(folder)
        # what is no pattern must not become one
        return os.path.join(str(self._part).replace("%", "%%"), self._final.name)

    def publish(self) -> None:
        """Move the pictures to their places."""
        for name in sorted(os.listdir(self._part)):
            os.replace(self._part / name, self._final.parent / name)
        self._part.rmdir()

    def discard(self) -> None:
        """Delete what there is."""
        shutil.rmtree(self._part, ignore_errors=True)
        if self._made is not None:
            with contextlib.suppress(OSError):
                self._made.rmdir()

    def explain(self, error: Exception) -> OutputError:
        """An error of the system or of FFmpeg as a sentence."""
        return _failed(self.name, error)


class FileTarget:
    """A file that grows in a hidden folder beside its final place, see `WholeFile`.

    Args:
        path: its name in the end.
        source: the file that is being read, if any.

    Attributes:
        name: what to call it.
        container: how it is written.

    Raises:
        OutputError: see `check_output`.
    """

    def __init__(self, path: Path, source: Path | None) -> None:
        self.name = str(path)
        self._file = WholeFile(check_output(path, source=source))
        self.container = CONTAINERS[path.suffix.lower()]

    def open(self) -> str:
        """The path at which the file is to grow."""
        return str(self._file.open())

    def publish(self) -> None:
        """Give the complete file its name."""
        self._file.publish()

    def discard(self) -> None:
        """Delete what there is."""
        self._file.discard()

    def explain(self, error: Exception) -> OutputError:
        """An error of the system or of FFmpeg as a sentence."""
        return _failed(self.name, error)


class StreamTarget:
    """Standard output or an address on the network: nothing to rename and nothing to delete.

    Attributes: as of `FileTarget`.
    """

    def __init__(self, sink: Sink) -> None:
        assert sink.format is not None
        self.name = sink.name
        self.container = STREAMS[sink.format]
        self._sink = sink
        self._descriptor: int | None = None
        self._program: SrtProgram | None = None

    def open(self) -> str:
        """What FFmpeg is to open.

        Raises:
            OSError: nobody is there.
        """
        if self._sink.kind == "pipe":
            # its own, so that it is closed when the video ends and not before
            self._descriptor = os.dup(self._sink.descriptor)
            return f"pipe:{self._descriptor}"
        address = urlsplit(self._sink.text)
        query = "&" if address.query else "?"
        if address.scheme == "srt" and not has_srt():
            self._program = SrtProgram.sending(self._sink.text)
            self._descriptor = os.dup(self._program.descriptor)
            return f"pipe:{self._descriptor}"
        if address.scheme == "rtmp":
            _wait_for_rtmp(address.hostname or "", address.port or _RTMP_PORT)
        if address.scheme == "udp" and "pkt_size" not in address.query:
            return f"{self._sink.text}{query}pkt_size={_UDP_PACKET_BYTES}"
        if address.scheme == "tcp" and "timeout" not in address.query:
            return f"{self._sink.text}{query}timeout={_CONNECT_S * 1e6:.0f}"
        return self._sink.text

    def publish(self) -> None:
        """Hang up."""
        self.discard()

    def discard(self) -> None:
        """Hang up. Idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        program, self._program = self._program, None
        if program is not None:
            program.close()

    def explain(self, error: Exception) -> OutputError:
        """The same; an `OutputClosedError` if nobody reads any more."""
        if getattr(error, "errno", None) in _GONE:
            closed = OutputClosedError(f"{self.name} was closed by its reader")
            closed.__cause__ = error
            return closed
        return _failed(self.name, error)


def find_target(sink: Sink, source: Path | None) -> FileTarget | SequenceTarget | StreamTarget:
    """What stands for a sink; `source` is the file that is being read, if any.

    Raises:
        OutputError: nothing can be written there.
    """
    if sink.kind == "file" and split_pattern(sink.text) is not None:
        path = Path(sink.text)
        if path.suffix.lower() in SEQUENCES:
            return SequenceTarget(path)
    if sink.kind == "file":
        return FileTarget(Path(sink.text), source)
    return StreamTarget(sink)


def _failed(name: str, error: Exception) -> OutputError:
    is_full = getattr(error, "errno", None) == errno.ENOSPC
    reason = "the disk is full" if is_full else getattr(error, "strerror", None) or str(error)
    explained = OutputError(f"{name} could not be written: {reason}")
    explained.__cause__ = error
    return explained


def _wait_for_rtmp(host: str, port: int) -> None:
    """Return when a server answers the first bytes of an RTMP handshake.

    FFmpeg's own opening cannot be given a time limit here, and while it waits no signal gets
    through. Source: Adobe, "RTMP specification 1.0", 5.2.

    Raises:
        OSError: nobody answers within 10 seconds, or not with RTMP.
    """
    with socket.create_connection((host, port), timeout=_CONNECT_S) as connection:
        connection.sendall(_RTMP_VERSION + bytes(_RTMP_HANDSHAKE_BYTES))
        if connection.recv(1) != _RTMP_VERSION:
            raise OSError(errno.EPROTO, "what answers is no RTMP server")
