"""Controls from plain values of options: of a command line, of a message, of a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stillframe.controls.base import ControlFiles, Given, control_kinds
from stillframe.controls.stream import Control
from stillframe.methods import Method

__all__ = ["build"]

# until controls are a list, what they are called in it
_FIELDS = {"roi": "region", "codec": "detector"}


def build(
    values: Mapping[str, Any],
    method: Method,
    *,
    named: Callable[[str], str] = str,
    files: ControlFiles | None = None,
) -> Control | None:
    """The controls that options ask for, None if they ask for none.

    Args:
        values: of the options that registered controls declare, by name; others are ignored. None
            and a missing one are not given.
        method: that they must go with.
        named: how the caller knows an option, for messages: ``--gop`` for "gop".
        files: reads what options name, only when it is needed; None where no files may be read.

    Raises:
        ValueError: a value is out of range, an option lacks another, or the method cannot be
            controlled like this.
        InputError: a file cannot be read, or scenes not be looked for.
    """
    kinds = control_kinds().values()
    options = {name: option for kind in kinds for name, option in kind.options.items()}
    checked = {
        name: option.checked(named(name), values.get(name)) for name, option in options.items()
    }
    given = Given(checked, named, files)
    for kind in kinds:
        given.check(kind)
    found = {kind.name: kind.from_options(given) for kind in kinds}
    parts: dict[str, Any] = {
        _FIELDS.get(name, name): each for name, each in found.items() if each is not None
    }
    if not parts:
        return None
    control = Control(**parts)
    control.check(method)
    return control
