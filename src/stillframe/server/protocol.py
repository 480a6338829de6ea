"""The live protocol, version 1: what server and clients send each other, but for clients' texts.

Binary messages begin with 16 bytes, little endian: a kind, seven zero bytes, a timestamp. Text
messages are JSON objects with a ``type``; those of clients are in ``messages``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillframe.errors import StillframeError
from stillframe.live import BlockTelemetry

__all__ = [
    "FRAME",
    "MAP",
    "NOT_ALLOWED",
    "STAGES",
    "TOO_LARGE",
    "UNREADABLE",
    "VERSION",
    "Incoming",
    "ProtocolError",
    "encode",
    "pack_frame",
    "pack_map",
    "parse_frame",
    "telemetry",
]

VERSION = 1
FRAME, MAP = 1, 2
#: What is told of a block's time; fitting counts as encoding, delivering as decoding.
STAGES = ("encode", "mask", "denoise", "context", "decode")
#: What a socket is closed with (RFC 6455, 7.4.1).
UNREADABLE, NOT_ALLOWED, TOO_LARGE = 1007, 1008, 1009

_HEADER = struct.Struct("<B7sd")
_MAP_SIZE = struct.Struct("<3H")


class ProtocolError(StillframeError):
    """A client's message that cannot be used.

    Attributes:
        code: what its socket is closed with: 1007 unreadable, 1008 not allowed, 1009 too large.
    """

    def __init__(self, message: str, code: int = NOT_ALLOWED) -> None:
        super().__init__(message)
        self.code = code


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
    told = {"rate": block.rate, "guard": block.guard}
    return encode(
        "telemetry",
        block=block.block,
        kept_share=block.kept_share,
        moved_share=block.moved_share,
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
        **{name: value for name, value in told.items() if value is not None},
    )


# binary messages


class Incoming(NamedTuple):
    """A frame from a client.

    Attributes:
        timestamp: by the client's clock, in seconds.
        picture: JPEG or WebP, not looked at yet.
    """

    timestamp: float
    picture: bytes


def parse_frame(data: bytes, limit: int) -> Incoming:
    """A client's binary message.

    Args:
        limit: bytes that it may have.

    Raises:
        ProtocolError: it is too large, or not a frame.
    """
    if len(data) > limit:
        raise ProtocolError(
            f"a binary message may have {limit} bytes, this one has {len(data)}", TOO_LARGE
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


def pack_map(
    timestamp: float, keep: NDArray[np.bool_], moved: NDArray[np.bool_] | None = None
) -> bytes:
    """What was recomputed in a block, and what was reused from another place.

    Args:
        timestamp: of the first frame that came out with it.
        keep: (S, h, w), true = recomputed.
        moved: (S, h, w), true = reused from another place; None where nothing was.
    """
    bits = b"".join(
        np.packbits(each, axis=None, bitorder="big").tobytes()
        for each in (keep, moved)
        if each is not None
    )
    return _header(MAP, timestamp) + _MAP_SIZE.pack(*keep.shape) + bits
