"""Controls from plain values of options: of a command line, of a message, of a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stillframe.controls.base import Controls, control_kinds
from stillframe.controls.given import ControlFiles, Given
from stillframe.methods import Method

__all__ = ["build"]


def build(
    values: Mapping[str, Any],
    method: Method,
    *,
    named: Callable[[str], str] = str,
    files: ControlFiles | None = None,
) -> Controls | None:
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
        given.check(kind.options, kind.needs or tuple(kind.options)[:1], kind.alone)
    found = [control for kind in kinds if (control := kind.from_options(given)) is not None]
    if not found:
        return None
    controls = Controls(*found)
    controls.check(method)
    return controls
