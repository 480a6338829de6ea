"""Fields of the messages that clients send: which there are, and what each may hold.

A check takes a field's name and value, and returns the value or raises. Where the control that a
field is for has a range and a sentence of its own, as at the command line, those hold. It does not
know what becomes of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stillframe.controls import Gop, Guard, Rate, Refresh
from stillframe.controls.rate import MODES
from stillframe.errors import StillframeError
from stillframe.loading.prompts import clean_prompt

__all__ = ["CHANGEABLE", "CONTROLS", "FIRST", "UNREADABLE", "Check", "ProtocolError", "checked"]

Check = Callable[[str, Any], Any]

UNREADABLE = 1007
_RULES = 1008
_PROMPT_LENGTH = 1000
_NAME_LENGTH = 200
_SIDE = 8192
_BLOCKS = 65_536
_LEAST, _MOST = 0.001, 1000.0
# beyond it a number is not even repeated, and no arithmetic is done with it
_SANE = 1e9


class ProtocolError(StillframeError):
    """A client's message that cannot be used.

    Attributes:
        code: what its socket is closed with: 1007 unreadable, 1008 not allowed, 1009 too large.
    """

    def __init__(self, message: str, code: int = _RULES) -> None:
        super().__init__(message)
        self.code = code


def _text(most: int, least: int = 1) -> Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise ProtocolError(f"{name} is a text of {least} to {most} characters")
        if not value.isprintable() and not value.replace("\n", " ").isprintable():
            raise ProtocolError(f"{name} holds characters that cannot be printed")
        return value

    return check


def _prompt(name: str, value: Any) -> str:
    if isinstance(value, str):
        try:
            value = clean_prompt(value)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
    if not isinstance(value, str) or len(value) > _PROMPT_LENGTH:
        raise ProtocolError(f"{name} is a text of 0 to {_PROMPT_LENGTH} characters")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(least: float, most: float) -> Check:
    def check(name: str, value: Any) -> float:
        if not _is_number(value) or not least <= value <= most:
            raise ProtocolError(f"{name} is a number from {least} to {most}")
        return float(value)

    return check


def _whole(least: int, most: int) -> Check:
    def check(name: str, value: Any) -> int:
        good = isinstance(value, int) and not isinstance(value, bool)
        if not good or not least <= value <= most:
            raise ProtocolError(f"{name} is a whole number from {least} to {most}")
        return int(value)

    return check


def _one_of(*names: str) -> Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ProtocolError(f"{name} is {' or '.join(names)}")
        return value

    return check


def _of(make: Callable[[Any], object], check: Check) -> Check:
    """A control's own range and sentence for a number, before the bounds of a message."""

    def checked(name: str, value: Any) -> Any:
        if _is_number(value) and abs(value) < _SANE:
            try:
                make(value)
            except ValueError as error:
                raise ProtocolError(str(error)) from error
        return check(name, value)

    return checked


def _or_away(check: Check) -> Check:
    """A check that lets null and false pass, as None: away with it."""

    def checked(name: str, value: Any) -> Any:
        return None if value is None or value is False else check(name, value)

    return checked


def _guard(name: str, value: Any) -> float:
    return float(Guard().share if value is True else _SHARE(name, value))


def _yes(name: str, value: Any) -> bool:
    if value is not True:
        raise ProtocolError(f"{name} is true or false")
    return True


_SHARE = _of(lambda share: Guard(share), _number(0, 0.5))
_WHOLE_BLOCKS = _whole(1, _BLOCKS)

#: Fields of which null and false say something: the control of that name goes.
CONTROLS: Mapping[str, Check] = {
    "target_fps": _or_away(_of(lambda fps: Rate(fps=fps), _number(_LEAST, _MOST))),
    "target_latency": _or_away(_of(lambda s: Rate(latency=s), _number(_LEAST, _MOST))),
    "target_kept": _or_away(_of(lambda kept: Rate(kept=kept), _number(0, 1))),
    "rate_mode": _or_away(_one_of(*MODES)),
    "refresh": _or_away(_of(lambda blocks: Refresh(blocks), _WHOLE_BLOCKS)),
    "gop": _or_away(_of(lambda blocks: Gop(blocks), _WHOLE_BLOCKS)),
    "cuts": _or_away(_yes),
    "guard": _or_away(_guard),
}
#: What may change while a session runs, controls apart.
CHANGEABLE: Mapping[str, Check] = {
    "prompt": _prompt,
    "method": _text(_NAME_LENGTH),
    "recovery": _text(_NAME_LENGTH),
    "tolerance": _number(0, 255),
    "strength": _number(0.01, 1),
}
#: What a first message may have, controls apart.
FIRST: Mapping[str, Check] = {
    **CHANGEABLE,
    "token": _text(_NAME_LENGTH, 0),
    "width": _whole(16, _SIDE),
    "height": _whole(16, _SIDE),
    "policy": _one_of("latest", "all"),
    "quality": _whole(1, 100),
}


def checked(
    kind: str, message: Mapping[str, Any], known: Mapping[str, Check], controls: bool = False
) -> dict[str, Any]:
    """A message's fields; of those that are no controls, a null is as if it were not there.

    Args:
        kind: of the message.
        known: its fields.
        controls: whether it may have those as well; they are in ``controls``, None for what goes.

    Raises:
        ProtocolError: a field is unknown, of a wrong type or out of range, or there are two
            targets.
    """
    allowed = {**known, **(CONTROLS if controls else {})}
    for name in message:
        if name not in allowed:
            names = ", ".join(allowed) or "no fields"
            raise ProtocolError(f"{kind} has an unknown field; it may have {names}")
    given = {
        name: allowed[name](name, value)
        for name, value in message.items()
        if name in CONTROLS or value is not None
    }
    held = {name: given.pop(name) for name in CONTROLS if name in given}
    targets = [held.get(f"target_{name}") is not None for name in ("fps", "latency", "kept")]
    if sum(targets) > 1:
        raise ProtocolError(f"one of fps, latency and kept is held, got {sum(targets)} of them")
    return {**given, "controls": held} if controls else given
