"""The live protocol, version 1: bytes and JSON in, checked values out, and back.

A text message of a client is a JSON object with a ``type``: a class here, which is all there is to
add for another one. What an edit can be told (`Update`) is made of the options that are ``live``.
Binary messages begin with 16 bytes, little endian: a kind, seven zero bytes, a timestamp.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)

from stillframe.config import OPTIONS, edit_options
from stillframe.controls.base import control_kinds
from stillframe.errors import StillframeError
from stillframe.live import BlockTelemetry, Session
from stillframe.loading.prompts import clean_prompt
from stillframe.options import Option

__all__ = [
    "FRAME",
    "MAP",
    "STAGES",
    "VERSION",
    "Bye",
    "Command",
    "Hello",
    "Incoming",
    "ProtocolError",
    "Update",
    "UpdateError",
    "encode",
    "live_options",
    "pack_frame",
    "pack_map",
    "parse_frame",
    "parse_message",
    "parse_offer",
    "parse_text",
    "telemetry",
]

VERSION = 1
FRAME, MAP = 1, 2
#: What is told of a block's time; fitting counts as encoding, delivering as decoding.
STAGES = ("encode", "mask", "denoise", "context", "decode")

_UNREADABLE, _RULES, _TOO_LARGE = 1007, 1008, 1009
_HEADER = struct.Struct("<B7sd")
_MAP_SIZE = struct.Struct("<3H")
_PROMPT_LENGTH = 1000
_NAME_LENGTH = 200
_SIDE = 8192
_SANE = 1e9
"""A number beyond it is not repeated to whoever sent it."""

_M = TypeVar("_M", bound="_Message")

# classes below by the type of their messages
_TYPES: dict[str, type[Hello | Update | Command]] = {}


class ProtocolError(StillframeError):
    """A client's message that cannot be used.

    Attributes:
        code: what its socket is closed with: 1007 unreadable, 1008 not allowed, 1009 too large.
    """

    def __init__(self, message: str, code: int = _RULES) -> None:
        super().__init__(message)
        self.code = code


class UpdateError(ProtocolError):
    """An update that cannot be used: it changes nothing, and its session goes on."""


# the messages of clients


def _prompt(value: str) -> str:
    value = clean_prompt(value)
    if len(value) > _PROMPT_LENGTH:
        raise ValueError(f"prompt is a text of 0 to {_PROMPT_LENGTH} characters")
    return value


def _printable(value: str) -> str:
    if not value.replace("\n", " ").isprintable():
        raise ValueError("a text holds characters that cannot be printed")
    return value


_Name = Annotated[str, Field(max_length=_NAME_LENGTH), AfterValidator(_printable)]
_Side = Annotated[int, Field(ge=16, le=_SIDE)]


class _Message(BaseModel):
    """A message of a client; null for a field is as if it were not there."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    type: ClassVar[str]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "type" in vars(cls):
            _TYPES[cls.type] = cls  # type: ignore[assignment]


class Command(_Message):
    """A message without content."""

    def run(self, session: Session) -> None:
        """Do what it says; called on a thread."""


class Pause(Command):
    """Turn frames away."""

    type = "pause"

    def run(self, session: Session) -> None:
        session.pause()


class Resume(Command):
    """Take frames again."""

    type = "resume"

    def run(self, session: Session) -> None:
        session.resume()


class Reset(Command):
    """Forget the past."""

    type = "reset"

    def run(self, session: Session) -> None:
        session.reset()


class Bye(Command):
    """The client goes."""

    type = "bye"


class Update(_Message):
    """What is to change; what is not given stays. Its other fields are the live options."""

    type = "update"
    prompt: Annotated[str, AfterValidator(_prompt)] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Values of the options that are given, by name; None for a control that goes."""
        given = {name: getattr(self, name) for name in live_options() if self._has(name)}
        return {n: value for n, value in given.items() if value is not None or n not in OPTIONS}

    @property
    def what(self) -> list[str]:
        """Names of what is given."""
        return ["prompt"] * (self.prompt is not None) + list(self.options)

    def _has(self, name: str) -> bool:
        return name in self.model_fields_set


class Hello(Update):
    """A client's first message; None is for the server to choose.

    Attributes:
        width, height: of the edited frames, in pixels.
        quality: of the JPEG pictures sent back, 1 to 100.
    """

    type = "hello"
    prompt: Annotated[str, AfterValidator(_prompt)]
    token: _Name | None = None
    width: _Side | None = None
    height: _Side | None = None
    policy: Literal["latest", "all"] | None = None
    quality: Annotated[int, Field(ge=1, le=100)] | None = None


# their fields that are options


def live_options() -> dict[str, Option]:
    """Options that a client may set, and change while its session runs."""
    return {name: option for name, option in edit_options().items() if option.live}


def _usual(name: str) -> Any:
    """What ``true`` stands for with a control's option: the value of its field by default."""
    for kind in control_kinds().values():
        own = dict(zip(kind.options, fields(kind), strict=False))  # type: ignore[arg-type]
        if name in own and own[name].default not in (MISSING, None):
            return own[name].default
    return True


def _annotation(name: str, option: Option) -> Any:
    """The type of a field that an option is given by."""
    kind: Any = {"int": int, "float": float, "bool": bool, "str": _Name}[option.kind]
    if option.choices:
        kind = Literal[option.choices]
    annotation: Any = kind
    if option.kind in ("int", "float"):
        bounds = Field(ge=option.least, gt=option.above, le=option.most, lt=option.below)
        annotation = Annotated[kind, bounds]
    if name in OPTIONS:
        return annotation | None

    def control(value: Any) -> Any:
        """False and null say that a control goes; true that it is to be as it usually is."""
        if value is False:
            return None
        return _usual(name) if value is True and option.kind != "bool" else value

    return Annotated[annotation | None, BeforeValidator(control)]


@cache
def _with_options(kind: type[_M], names: tuple[str, ...]) -> type[_M]:
    options = edit_options()
    types: dict[str, Any] = {name: (_annotation(name, options[name]), None) for name in names}
    return create_model(kind.__name__, __base__=kind, **types)


def _model(kind: type[_M]) -> type[_M]:
    return _with_options(kind, tuple(live_options())) if issubclass(kind, Update) else kind


# reading them


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
    message = _object(text, "a text message")
    kind = message.pop("type", None)
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ProtocolError(f"a message has one of the types {', '.join(_TYPES)}")
    return parse_message(_TYPES[kind], message)


def parse_message(kind: type[_M], values: Mapping[str, Any]) -> _M:
    """A message from its fields, without the type.

    Raises:
        UpdateError, ProtocolError: see `parse_text`.
    """
    failure = UpdateError if kind is Update else ProtocolError
    model = _model(kind)
    if not set(values) <= set(model.model_fields):
        names = ", ".join(model.model_fields) or "no fields"
        raise failure(f"{kind.type} has an unknown field; it may have {names}")
    try:
        message = model.model_validate(dict(values))
    except ValidationError as error:
        raise failure(_sentence(kind.type, error)) from error
    if isinstance(message, Update):
        _check_targets(message, failure)
        if not message.what:
            raise failure(f"update needs one of {', '.join(model.model_fields)}")
    return message


def _check_targets(message: Update, failure: type[ProtocolError]) -> None:
    given = message.options
    targets = [name for name in given if name.startswith("target_") and given[name] is not None]
    if len(targets) > 1:
        raise failure(f"one of {', '.join(targets)} may be given, got {len(targets)} of them")


def _sentence(kind: str, failure: ValidationError) -> str:
    """What is wrong with a message, in words of the protocol."""
    error = failure.errors(include_url=False)[0]
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return f"{kind} needs a {name}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    value, option = error["input"], live_options().get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    got = f", got {value}" if number and abs(value) < _SANE else ""
    if option is not None:
        return f"{name} is {option.described}{got}"
    return re.sub("^(Input|String)", name, str(error["msg"])) + got


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        what: it is, for the refusal.

    Raises:
        ProtocolError: it is something else, or holds numbers that are not finite.
    """
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{what} is a JSON object, and this is none", _UNREADABLE) from error
    if not isinstance(message, dict):
        raise ProtocolError(f"{what} is a JSON object, and this is none", _UNREADABLE)
    return message


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse_offer(data: bytes) -> tuple[str, Hello]:
    """A WebRTC offer: the session description, not looked at, and the settings as in ``hello``.

    Args:
        data: JSON with ``sdp``, ``type`` and the settings.

    Raises:
        ProtocolError: it cannot be read, or a setting is wrong.
    """
    message = _object(data, "an offer")
    sdp, kind = message.pop("sdp", None), message.pop("type", None)
    if not isinstance(sdp, str) or kind != "offer":
        raise ProtocolError("an offer has the type offer, and a text named sdp")
    hello = parse_message(Hello, message)
    if hello.policy == "all":
        raise ProtocolError("WebRTC cannot hold a client back: policy is latest")
    return sdp, hello


# the messages of the server


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
            f"a binary message may have {limit} bytes, this one has {len(data)}", _TOO_LARGE
        )
    if len(data) <= _HEADER.size:
        raise ProtocolError(
            f"a frame has {_HEADER.size} bytes and a picture, this message has {len(data)} bytes",
            _UNREADABLE,
        )
    kind, zeros, timestamp = _HEADER.unpack_from(data)
    if kind != FRAME or any(zeros):
        raise ProtocolError(f"a frame begins with {FRAME} and seven zero bytes", _UNREADABLE)
    if not math.isfinite(timestamp):
        raise ProtocolError(f"a timestamp is a finite number, got {timestamp}", _UNREADABLE)
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
