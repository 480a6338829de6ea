"""The live protocol, version 1: bytes and JSON in, checked values out, and back.

Binary messages begin with 16 bytes, little endian: a kind, seven zero bytes, a timestamp. Text
messages are JSON objects with a type. Pure functions; they know no sockets, pictures or sessions.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from stillframe.errors import StillframeError
from stillframe.live import BlockTelemetry

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
    "encode",
    "pack_frame",
    "pack_map",
    "parse_frame",
    "parse_text",
    "telemetry",
]

VERSION = 1
FRAME, MAP = 1, 2
#: What is told of a block's time; fitting counts as encoding, delivering as decoding.
STAGES = ("encode", "mask", "denoise", "context", "decode")

_HEADER = struct.Struct("<B7sd")
_MAP_SIZE = struct.Struct("<3H")
_PROMPT_LENGTH = 1000
_NAME_LENGTH = 200
_SIDE = 8192
_JSON, _RULES, _SIZE = 1007, 1008, 1009


class ProtocolError(StillframeError):
    """A client's message that cannot be used.

    Attributes:
        code: what its socket is closed with: 1007 unreadable, 1008 not allowed, 1009 too large.
    """

    def __init__(self, message: str, code: int = _RULES) -> None:
        super().__init__(message)
        self.code = code


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
    """What is to change; None stays."""

    prompt: str | None = None
    method: str | None = None
    recovery: str | None = None
    tau1: float | None = None
    tau2: float | None = None
    strength: float | None = None

    @property
    def what(self) -> list[str]:
        """Names of what is given."""
        names = ("prompt", "method", "recovery", "tau1", "tau2", "strength")
        return [name for name in names if getattr(self, name) is not None]


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
        ProtocolError: it is too long, no JSON object, of an unknown type, or a field is unknown, of
            a wrong type or out of range.
    """
    if len(text) > limit or len(text.encode("utf-8", "replace")) > limit:
        raise ProtocolError(f"a text message may have {limit} bytes, this one has more", _SIZE)
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a text message is a JSON object, and this is none", _JSON) from error
    if not isinstance(message, dict):
        raise ProtocolError("a text message is a JSON object, and this is none", _JSON)
    kind = message.pop("type", None)
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ProtocolError(f"a message has one of the types {', '.join(_TYPES)}")
    return _TYPES[kind](kind, message)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _text(most: int, least: int = 1) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise ProtocolError(f"{name} is a text of {least} to {most} characters")
        if not value.isprintable() and not value.replace("\n", " ").isprintable():
            raise ProtocolError(f"{name} holds characters that cannot be printed")
        return value

    return check


def _number(least: float, most: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not least <= value <= most:
            raise ProtocolError(f"{name} is a number from {least} to {most}")
        return float(value)

    return check


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        good = isinstance(value, int) and not isinstance(value, bool)
        if not good or not least <= value <= most:
            raise ProtocolError(f"{name} is a whole number from {least} to {most}")
        return int(value)

    return check


def _one_of(*names: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ProtocolError(f"{name} is {' or '.join(names)}")
        return value

    return check


_CHANGEABLE: dict[str, Callable[[str, Any], Any]] = {
    "prompt": _text(_PROMPT_LENGTH, 0),
    "method": _text(_NAME_LENGTH),
    "recovery": _text(_NAME_LENGTH),
    "tau1": _number(0, 100),
    "tau2": _number(0, 100),
    "strength": _number(0.01, 1),
}
_FIRST: dict[str, Callable[[str, Any], Any]] = {
    **_CHANGEABLE,
    "token": _text(_NAME_LENGTH, 0),
    "width": _whole(16, _SIDE),
    "height": _whole(16, _SIDE),
    "policy": _one_of("latest", "all"),
    "quality": _whole(1, 100),
}


def _fields(
    kind: str, message: Mapping[str, Any], known: Mapping[str, Callable[[str, Any], Any]]
) -> dict[str, Any]:
    """A message's fields, checked; a null is as if it were not there."""
    for name in message:
        if name not in known:
            allowed = ", ".join(known) or "no fields"
            raise ProtocolError(f"{kind} has an unknown field; it may have {allowed}")
    given = {name: value for name, value in message.items() if value is not None}
    return {name: known[name](name, value) for name, value in given.items()}


def _hello(kind: str, message: Mapping[str, Any]) -> Hello:
    hello = Hello(**_fields(kind, message, _FIRST))
    if hello.prompt is None:
        raise ProtocolError("hello needs a prompt")
    return hello


def _update(kind: str, message: Mapping[str, Any]) -> Update:
    update = Update(**_fields(kind, message, _CHANGEABLE))
    if not update.what:
        raise ProtocolError(f"update needs one of {', '.join(_CHANGEABLE)}")
    return update


def _command(kind: str, message: Mapping[str, Any]) -> Command:
    _fields(kind, message, {})
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
) -> str:
    """A block's record as a text message.

    Args:
        percentiles: median and 95th percentile of latency, in seconds.
        memory: bytes of ``cache`` and ``recovery``.
        unsent: edited frames dropped because the client read too slowly.
    """
    spent = block.milliseconds
    stages = {name: spent.get(name, 0.0) for name in STAGES}
    stages["encode"] += spent.get("fit", 0.0)
    stages["decode"] += spent.get("deliver", 0.0)
    latency, p50, p95 = (
        None if seconds is None else round(1000 * seconds, 3)
        for seconds in (block.latency, *percentiles)
    )
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
        dropped=block.dropped + unsent,
        cache_bytes=memory["cache"],
        recovery_bytes=memory["recovery"],
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
            f"a binary message may have {limit} bytes, this one has {len(data)}", _SIZE
        )
    if len(data) <= _HEADER.size:
        raise ProtocolError(
            f"a frame has {_HEADER.size} bytes and a picture, this message has {len(data)} bytes",
            _JSON,
        )
    kind, zeros, timestamp = _HEADER.unpack_from(data)
    if kind != FRAME or any(zeros):
        raise ProtocolError(f"a frame begins with {FRAME} and seven zero bytes", _JSON)
    if not math.isfinite(timestamp):
        raise ProtocolError(f"a timestamp is a finite number, got {timestamp}", _JSON)
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
