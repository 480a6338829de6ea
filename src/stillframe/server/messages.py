"""The live protocol, version 1: bytes and JSON in, checked values out, and back.

Binary messages begin with 16 bytes, little endian: a kind, seven zero bytes, a timestamp. Text
messages are JSON objects with a type. Pure functions; they know no sockets, pictures or sessions.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from stillframe.live import BlockTelemetry
from stillframe.server.fields import (
    CHANGEABLE,
    CONTROLS,
    FIRST,
    UNREADABLE,
    ProtocolError,
    checked,
)

__all__ = [
    "FRAME",
    "MAP",
    "STAGES",
    "VERSION",
    "Command",
    "Hello",
    "Incoming",
    "ProtocolError",
    "Update",
    "UpdateError",
    "encode",
    "hello_of",
    "pack_frame",
    "pack_map",
    "parse_frame",
    "parse_object",
    "parse_text",
    "telemetry",
]

VERSION = 1
FRAME, MAP = 1, 2
#: What is told of a block's time; fitting counts as encoding, delivering as decoding.
STAGES = ("encode", "mask", "denoise", "context", "decode")

_HEADER = struct.Struct("<B7sd")
_MAP_SIZE = struct.Struct("<3H")
_TOO_LARGE = 1009


class UpdateError(ProtocolError):
    """An update that cannot be used: it changes nothing, and its session goes on."""


class Incoming(NamedTuple):
    """A frame from a client.

    Attributes:
        timestamp: by the client's clock, in seconds.
        picture: JPEG or WebP, not looked at yet.
    """

    timestamp: float
    picture: bytes


@dataclass(frozen=True)
class Update:
    """What is to change; None stays.

    Attributes:
        controls: those of ``fields.CONTROLS`` that are named, None for what goes.
    """

    prompt: str | None = None
    method: str | None = None
    recovery: str | None = None
    tolerance: float | None = None
    strength: float | None = None
    controls: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def what(self) -> list[str]:
        """Names of what is given."""
        return [*(name for name in CHANGEABLE if getattr(self, name) is not None), *self.controls]


@dataclass(frozen=True)
class Hello(Update):
    """A client's first message; None is for the server to choose.

    Attributes:
        prompt: always given.
        width, height: of the edited frames, in pixels.
        policy: "latest" or "all".
        quality: of the JPEG pictures sent back, 1 to 100.
    """

    token: str | None = None
    width: int | None = None
    height: int | None = None
    policy: str | None = None
    quality: int | None = None


@dataclass(frozen=True)
class Command:
    """A message without content: pause, resume, reset or bye."""

    name: str


# text


def parse_text(text: str, limit: int) -> Hello | Update | Command:
    """What a client says.

    Args:
        limit: bytes that it may have.

    Raises:
        UpdateError: an update has a field that is unknown, of a wrong type or out of range.
        ProtocolError: the same of another message; or it is too long, no JSON object, or of an
            unknown type.
    """
    if len(text) > limit or len(text.encode("utf-8", "replace")) > limit:
        raise ProtocolError(f"a text message may have {limit} bytes, this one has more", _TOO_LARGE)
    message = parse_object(text, "a text message")
    kind = message.pop("type", None)
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ProtocolError(f"a message has one of the types {', '.join(_TYPES)}")
    return _TYPES[kind](kind, message)


def parse_object(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        what: it is, for the refusal.

    Raises:
        ProtocolError: it is something else, or holds numbers that are not finite.
    """
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{what} is a JSON object, and this is none", UNREADABLE) from error
    if not isinstance(message, dict):
        raise ProtocolError(f"{what} is a JSON object, and this is none", UNREADABLE)
    return message


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def hello_of(message: Mapping[str, Any]) -> Hello:
    """A first message from its fields, without a type.

    Raises:
        ProtocolError: a field is unknown, of a wrong type or out of range, or there is no prompt.
    """
    return _hello("hello", message)


def _hello(kind: str, message: Mapping[str, Any]) -> Hello:
    hello = Hello(**checked(kind, message, FIRST, controls=True))
    if hello.prompt is None:
        raise ProtocolError("hello needs a prompt")
    return hello


def _update(kind: str, message: Mapping[str, Any]) -> Update:
    try:
        update = Update(**checked(kind, message, CHANGEABLE, controls=True))
    except ProtocolError as error:
        raise UpdateError(str(error)) from error
    if not update.what:
        raise UpdateError(f"update needs one of {', '.join([*CHANGEABLE, *CONTROLS])}")
    return update


def _command(kind: str, message: Mapping[str, Any]) -> Command:
    checked(kind, message, {})
    return Command(kind)


_TYPES: dict[str, Callable[[str, Mapping[str, Any]], Hello | Update | Command]] = {
    "hello": _hello,
    "update": _update,
    "pause": _command,
    "resume": _command,
    "reset": _command,
    "bye": _command,
}


def encode(kind: str, **fields: Any) -> str:
    """A text message.

    Raises:
        ValueError: a number in it is not finite.
    """
    return json.dumps({"type": kind, **fields}, allow_nan=False)


def telemetry(
    block: BlockTelemetry,
    percentiles: Sequence[float | None],
    memory: Mapping[str, int],
    unsent: int,
    unusable: int = 0,
) -> str:
    """A block's record as a text message.

    Args:
        percentiles: median and 95th percentile of latency, in seconds.
        memory: bytes of ``cache`` and ``recovery``.
        unsent: edited frames dropped because the client read too slowly.
        unusable: the client's frames that could not be used.
    """
    spent = block.milliseconds
    stages = {name: spent.get(name, 0.0) for name in STAGES}
    stages["encode"] += spent.get("fit", 0.0)
    stages["decode"] += spent.get("deliver", 0.0)
    latency, p50, p95 = (
        None if seconds is None else round(1000 * seconds, 3)
        for seconds in (block.latency, *percentiles)
    )
    held = {"rate": block.rate, "guard": block.guard}
    return encode(
        "telemetry",
        block=block.block,
        kept_share=block.kept_share,
        tokens=block.tokens,
        ms={name: round(value, 3) for name, value in stages.items()},
        fps=block.fps,
        latency_ms=latency,
        p50_ms=p50,
        p95_ms=p95,
        queue=block.waiting,
        dropped=block.dropped + unsent + unusable,
        unusable=unusable,
        cache_bytes=memory["cache"],
        recovery_bytes=memory["recovery"],
        **{name: told for name, told in held.items() if told is not None},
    )


# binary


def parse_frame(data: bytes, limit: int) -> Incoming:
    """A client's binary message.

    Args:
        limit: bytes that it may have.

    Raises:
        ProtocolError: it is too large, or not a frame.
    """
    if len(data) > limit:
        raise ProtocolError(
            f"a binary message may have {limit} bytes, this one has {len(data)}", _TOO_LARGE
        )
    if len(data) <= _HEADER.size:
        raise ProtocolError(
            f"a frame has {_HEADER.size} bytes and a picture, this message has {len(data)} bytes",
            UNREADABLE,
        )
    kind, zeros, timestamp = _HEADER.unpack_from(data)
    if kind != FRAME or any(zeros):
        raise ProtocolError(f"a frame begins with {FRAME} and seven zero bytes", UNREADABLE)
    if not math.isfinite(timestamp):
        raise ProtocolError(f"a timestamp is a finite number, got {timestamp}", UNREADABLE)
    return Incoming(timestamp, data[_HEADER.size :])


def _header(kind: int, timestamp: float) -> bytes:
    return _HEADER.pack(kind, bytes(7), timestamp)


def pack_frame(timestamp: float, picture: bytes) -> bytes:
    """An edited frame.

    Args:
        timestamp: of the frame that it was made from.
        picture: JPEG.
    """
    return _header(FRAME, timestamp) + picture


def pack_map(timestamp: float, keep: NDArray[np.bool_]) -> bytes:
    """What was recomputed in a block.

    Args:
        timestamp: of the first frame that came out with it.
        keep: (S, h, w), true = recomputed.
    """
    bits = np.packbits(keep, axis=None, bitorder="big").tobytes()
    return _header(MAP, timestamp) + _MAP_SIZE.pack(*keep.shape) + bits
