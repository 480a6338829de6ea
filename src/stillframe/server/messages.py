"""Text messages of clients: JSON in, checked values out.

A message is a JSON object with a ``type``: a class here, which is all there is to add for another
one. What an edit can be told (`Update`) is made of the options that are ``live``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

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
from stillframe.live import Session
from stillframe.live.blend import MOST_BLOCKS
from stillframe.loading.prompts import clean_prompt
from stillframe.options import Option
from stillframe.server.protocol import TOO_LARGE, UNREADABLE, ProtocolError

__all__ = [
    "Bye",
    "Command",
    "Hello",
    "Update",
    "UpdateError",
    "Watch",
    "live_options",
    "parse_message",
    "parse_offer",
    "parse_text",
    "parse_watch",
]

_PROMPT_LENGTH = 1000
_NAME_LENGTH = 200
_SIDE = 8192
_SANE = 1e9
"""A number beyond it is not repeated to whoever sent it."""

_M = TypeVar("_M", bound="_Message")

# classes below by the type of their messages
_TYPES: dict[str, type[Hello | Update | Command]] = {}


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
    in_sessions: ClassVar[bool] = True

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "type" in vars(cls) and cls.in_sessions:
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
    blend: Annotated[int, Field(ge=0, le=MOST_BLOCKS)] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Values of the options that are given, by name; None for a control that goes."""
        given = {name: getattr(self, name) for name in live_options() if self._has(name)}
        return {n: value for n, value in given.items() if value is not None or n not in OPTIONS}

    @property
    def what(self) -> list[str]:
        """Names of what is given."""
        own = [name for name in ("prompt", "blend") if getattr(self, name) is not None]
        return own + list(self.options)

    def _has(self, name: str) -> bool:
        return name in self.model_fields_set


class Hello(Update):
    """A client's first message; None is for the server to choose.

    Attributes:
        width, height: of the edited frames, in pixels.
        quality: of the JPEG pictures sent back, 1 to 100.
        seed: of the noise; numbers that JavaScript has, too.
    """

    type = "hello"
    prompt: Annotated[str, AfterValidator(_prompt)]
    token: _Name | None = None
    width: _Side | None = None
    height: _Side | None = None
    policy: Literal["latest", "all"] | None = None
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None

    @property
    def fixed(self) -> dict[str, Any]:
        """Values of options that hold for the whole session."""
        return {} if self.seed is None else {"seed": self.seed}


class Watch(_Message):
    """The only message of who only watches, on a socket of its own.

    Attributes:
        session: what is watched; None for the newest session, whichever that is.
    """

    type = "watch"
    in_sessions = False
    token: _Name | None = None
    session: _Name | None = None


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
        raise ProtocolError(f"a text message may have {limit} bytes, this one has more", TOO_LARGE)
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
        raise ProtocolError(f"{what} is a JSON object, and this is none", UNREADABLE) from error
    if not isinstance(message, dict):
        raise ProtocolError(f"{what} is a JSON object, and this is none", UNREADABLE)
    return message


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse_watch(text: str, limit: int) -> Watch:
    """What a watcher says first.

    Args:
        limit: bytes that it may have.

    Raises:
        ProtocolError: it is something else, or too long.
    """
    if len(text) > limit:
        raise ProtocolError(f"a text message may have {limit} bytes, this one has more", TOO_LARGE)
    message = _object(text, "a text message")
    if message.pop("type", None) != Watch.type:
        raise ProtocolError("the first message is watch")
    return parse_message(Watch, message)


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
