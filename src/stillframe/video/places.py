"""Where video comes from and goes to: a file, a pipe, an address on the network, a camera.

Reads what people type, and which container that means. Opens nothing and waits for nobody.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

from av.format import ContainerFormat

from stillframe.errors import InputError, OutputError
from stillframe.video.containers import STREAMS
from stillframe.video.formats import MAX_PIXELS

__all__ = ["BACKGROUNDS", "Pattern", "Sink", "Source", "split_pattern"]

#: Grey levels of what transparent pictures are shown on.
BACKGROUNDS = {"black": 0, "white": 255}

Kind = Literal["file", "images", "pipe", "network", "device"]

#: Seconds without an answer or data after which a network source counts as dead.
_PATIENCE_S = 10.0
#: Of the smallest picture that can be edited, 16x16.
_FEWEST_PIXELS = 256
_NUMBER = re.compile(r"%0?(\d*)d")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_READABLE = ("http", "https", "rtmp", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
_LISTENABLE = ("rtmp", "rtsp", "srt", "tcp")
# What listeners of each protocol expect.
_WRITABLE = {"rtmp": "flv", "srt": "mpegts", "tcp": "mpegts", "udp": "mpegts"}
_SHORT_NAMES = {"y4m": "yuv4mpegpipe", "ts": "mpegts", "mkv": "matroska"}
# FFmpeg's formats that are no formats but ways to a camera, a screen or a generator.
_DEVICE_FORMATS = frozenset(
    {"android_camera", "avfoundation", "dshow", "gdigrab", "lavfi", "v4l2", "video4linux2"}
    | {"vfwcap", "x11grab"}
)
_CAMERA_NAMES = (
    (re.compile(r"\d+(:\d+)?|default"), "avfoundation"),
    (re.compile(r"(video|audio)=.*"), "dshow"),
)


class Pattern(NamedTuple):
    """Names of numbered files in one folder, as frames/%04d.png stands for.

    Attributes:
        folder: where they are.
        before, after: what stands around the number; `after` with the extension.
        digits: how many a number has at least.
    """

    folder: Path
    before: str
    digits: int
    after: str

    def matches(self, name: str) -> bool:
        """Whether a file of the folder is one of them."""
        number = name[len(self.before) : len(name) - len(self.after)]
        is_number = number.isascii() and number.isdigit() and len(number) >= self.digits
        is_padded = len(number) == self.digits or number[:1] != "0" or number == "0"
        return is_number and is_padded and name == self.before + number + self.after


def split_pattern(text: str) -> Pattern | None:
    """What a name with a %d or %04d in it stands for; None for others, and for what is there."""
    folder, name = os.path.split(text)
    found = _NUMBER.findall(name)
    if len(found) != 1 or os.path.exists(text):
        return None
    before, after = _NUMBER.sub("%d", name).split("%d")
    return Pattern(Path(folder or "."), before, int(found[0] or 1), after)


@dataclass(frozen=True)
class Source:
    """Where video is read.

    Attributes:
        text: a path, a URL, a device's name, or "-" for standard input.
        kind: which of these it is; a named pipe is a "pipe"; a folder and a pattern as
            frames/%04d.png are "images".
        format: FFmpeg's name of the container or device; None: found out by looking.
        timeout: seconds of silence after which a network source counts as dead.
        descriptor: of the file to read if ``text`` is "-".
        background: what transparent pictures are shown on, black or white.
        max_pixels: a larger picture is not decoded.
        listens: whether a network source is waited for at its address, and not called.
    """

    text: str
    kind: Kind = "file"
    format: str | None = None
    timeout: float = _PATIENCE_S
    descriptor: int = 0
    background: str = "black"
    max_pixels: int = MAX_PIXELS
    listens: bool = False

    @classmethod
    def of(
        cls,
        place: str | PathLike[str] | Source,
        format: str | None = None,
        timeout: float | None = None,
        background: str = "black",
        max_pixels: int = MAX_PIXELS,
    ) -> Source:
        """What somebody typed.

        Args:
            place: a path, a URL, a device's name, or "-"; a `Source` is returned as it is.
            format: FFmpeg's name of the container or device, or y4m, ts, mkv; None to find out.
            timeout: seconds; None for 10.
            background: black or white, for transparent pictures.
            max_pixels: refuse larger pictures, see `formats.MAX_PIXELS`.

        Raises:
            InputError: nothing can be read there, whatever answers.
            ValueError: there is no such format or background, or the timeout is not positive.
        """
        if isinstance(place, Source):
            return place
        if timeout is not None and timeout <= 0:
            raise ValueError(f"a source must be given more than 0 seconds to answer, got {timeout}")
        if background not in BACKGROUNDS:
            known = " or ".join(BACKGROUNDS)
            raise ValueError(f"a background is {known}, not {background!r}")
        if not _FEWEST_PIXELS <= max_pixels < 2**31:
            raise ValueError(
                f"pictures may have from {_FEWEST_PIXELS} to {2**31 - 1} pixels, not {max_pixels}"
            )
        text = os.fspath(place)
        asked = None if format is None else _input_format(format)
        kind = "device" if asked in _DEVICE_FORMATS else _kind(text)
        if kind == "device" and asked is None:
            asked = "v4l2"
        if kind == "network" and _scheme(text) not in _READABLE:
            known = ", ".join(_READABLE)
            raise InputError(f"{_hidden(text)} cannot be read; known are files, - and {known} URLs")
        if text == "-":
            _check_stdin()
        if kind == "file" and asked is None and not os.path.exists(text):
            _refuse_camera_name(text)
        patience = _PATIENCE_S if timeout is None else timeout
        return cls(text, kind, asked, patience, background=background, max_pixels=max_pixels)

    @property
    def listening(self) -> Source:
        """The same, waiting at its address for a sender that calls.

        Raises:
            InputError: nobody can call there.
        """
        if self.kind != "network" or _scheme(self.text) not in _LISTENABLE:
            known = ", ".join(_LISTENABLE)
            raise InputError(f"{self.name} cannot be listened at; known are {known} URLs")
        return replace(self, listens=True)

    @property
    def scheme(self) -> str:
        """Of a URL, in small letters; "" of anything else."""
        return _scheme(self.text) if self.kind == "network" else ""

    @property
    def name(self) -> str:
        """What to call it in sentences and reports; without passwords."""
        return "standard input" if self.text == "-" else _hidden(self.text)

    @property
    def is_live(self) -> bool:
        """Whether it can be read only once, as it comes."""
        return self.kind not in ("file", "images")


@dataclass(frozen=True)
class Sink:
    """Where video is written.

    Attributes:
        text: a path, a URL, or "-" for standard output.
        kind: which of these it is.
        format: one of `containers.STREAMS`; None for files, whose extension says it.
        descriptor: of the file to write if ``text`` is "-".
    """

    text: str
    kind: Kind = "file"
    format: str | None = None
    descriptor: int = 1

    @classmethod
    def of(cls, place: str | PathLike[str] | Sink, format: str | None = None) -> Sink:
        """What somebody typed.

        Args:
            place: a path, a URL, or "-"; a `Sink` is returned as it is.
            format: y4m, mpegts, matroska or flv, for streams; None for the usual one: y4m on
                standard output, flv for rtmp://, mpegts for other URLs.

        Raises:
            OutputError: nothing can be written there, whoever listens.
            ValueError: there is no such format, or a file is given one.
        """
        if isinstance(place, Sink):
            return place
        text = os.fspath(place)
        if format is not None and format not in STREAMS:
            raise ValueError(f"unknown output format {format!r}; known: {', '.join(STREAMS)}")
        if text == "-":
            _check_stdout()
            return cls(text, "pipe", format or "y4m")
        if _URL.match(text):
            usual = _WRITABLE.get(_scheme(text))
            if usual is None:
                known = ", ".join(_WRITABLE)
                raise OutputError(
                    f"{_hidden(text)} cannot be written; known are files, - and {known} URLs"
                )
            return cls(text, "network", format or usual)
        if format is not None:
            raise ValueError(
                f"an output format is for streams; the extension of {text} names its container"
            )
        return cls(text)

    @property
    def name(self) -> str:
        """What to call it in sentences and reports; without passwords and stream keys."""
        return "standard output" if self.text == "-" else _hidden(self.text)


def _check_stdin() -> None:
    if sys.stdin is None:
        # its descriptor may be some other file by now
        raise InputError("standard input is closed; a video has to be piped into it")
    if os.isatty(0):
        raise InputError("standard input is a terminal; a video has to be piped into it")


def _check_stdout() -> None:
    if sys.stdout is None:
        raise OutputError("standard output is closed; pipe it into a program")
    if os.isatty(1):
        raise OutputError("standard output is a terminal; pipe it into a program")


def _scheme(text: str) -> str:
    found = _URL.match(text)
    return "" if found is None else found.group(1).lower()


def _kind(text: str) -> Kind:
    if text == "-":
        return "pipe"
    if _URL.match(text):
        return "network"
    try:
        mode = os.stat(text).st_mode
    except (OSError, ValueError):
        return "file" if split_pattern(text) is None else "images"
    if stat.S_ISDIR(mode):
        return "images"
    if stat.S_ISFIFO(mode):
        return "pipe"
    is_camera = stat.S_ISCHR(mode) and os.path.realpath(text).startswith("/dev/video")
    return "device" if is_camera else "file"


def _input_format(name: str) -> str:
    full = _SHORT_NAMES.get(name, name)
    try:
        ContainerFormat(full, "r")
    except ValueError:
        raise ValueError(f"this FFmpeg has no input format {name!r}") from None
    return full


def _refuse_camera_name(text: str) -> None:
    for pattern, format in _CAMERA_NAMES:
        if pattern.fullmatch(text):
            raise InputError(
                f"{text} does not exist; if a camera is meant, give the input format {format}"
            )


def _hidden(text: str) -> str:
    """`text` without the password of a URL, and without the key at the end of an RTMP one."""
    scheme = _scheme(text)
    if not scheme:
        return text
    head, slashes, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    user, at, address = host.rpartition("@")
    if at:
        host = f"{user.partition(':')[0]}:***@{address}" if ":" in user else host
    if scheme == "rtmp" and "/" in path:
        path = path[: path.rindex("/")] + "/***"
    return head + slashes + host + slash + path
