"""Inputs of nodes from stillframe's options, and a configuration from what the inputs hold.

A widget always has a value, so "not given" needs one: 0 where an option does not allow 0, an empty
text, or `USUAL` among choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillframe.config import EditConfig, edit_options
from stillframe.options import Option

__all__ = ["EDIT", "USUAL", "config_of", "edit_widgets"]

#: Stands for what the model or the method has by default.
USUAL = "default"

#: Options of an edit that are inputs of their own; the others go into the text "more".
EDIT = ("seed", "tolerance", "motion", "strength", "steps", "method", "gop", "refresh", "cuts")

# what an input shows where an option has no default and its 0 means something
_SHOWN = {"tolerance": 3.0}
# a widget of a program in JavaScript holds no larger whole number exactly
_LARGEST = 2**53 - 1


def edit_widgets() -> dict[str, Any]:
    """Inputs of `EDIT` and "more", as ``INPUT_TYPES`` has them."""
    known = edit_options()
    more = {
        "default": "",
        "multiline": True,
        "tooltip": "Other options of an edit, one a line: recovery = clean",
    }
    return {**{name: widget(name, known[name]) for name in EDIT}, "more": ("STRING", more)}


def widget(name: str, option: Option) -> tuple[Any, dict[str, Any]]:
    """The input of one option."""
    hints: dict[str, Any] = {"tooltip": option.help}
    if option.choices:
        choices = list(option.choices)
        return (choices if option.default else [USUAL, *choices]), hints
    if option.kind == "bool":
        return "BOOLEAN", hints | {"default": bool(option.default)}
    if option.kind in ("int", "float"):
        default = _SHOWN.get(name, option.default or 0)
        least, most = option.least or 0, option.most if option.most is not None else _LARGEST
        hints |= {"default": default, "min": min(least, default), "max": min(most, _LARGEST)}
        if option.kind == "float":
            return "FLOAT", hints | {"step": 0.5 if most > 1 else 0.01}
        return "INT", hints
    return "STRING", hints | {"default": option.default or ""}


def config_of(values: Mapping[str, Any], more: str = "") -> EditConfig:
    """The configuration that inputs ask for.

    Args:
        values: of inputs of `edit_widgets`, by name.
        more: lines ``name = value``; empty ones and those that begin with # do not count.

    Raises:
        ValueError: for an unknown option, or a value out of range.
    """
    known = edit_options()
    given = {name: value for name, value in values.items() if _is_given(known[name], name, value)}
    for line in more.splitlines():
        name, separator, text = (part.strip() for part in line.partition("="))
        if not line.strip() or line.strip().startswith("#"):
            continue
        if not separator or name not in known:
            raise ValueError(f"a line of 'more' is NAME = VALUE with a known name, got {line!r}")
        given[name] = _value(known[name], text)
    return EditConfig.from_options(given)


def _is_given(option: Option, name: str, value: Any) -> bool:
    if value in ("", USUAL) or (option.kind == "bool" and not value):
        return False
    if name in _SHOWN:
        # what is shown is the usual, which a method without a tolerance does not have
        return bool(value != _SHOWN[name])
    return bool(value) or option.default is not None


def _value(option: Option, text: str) -> Any:
    """A text as a value of an option; what is none stays a text, and is refused with its name."""
    try:
        match option.kind:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError):
        return text
    return text
