"""Commands whose options are made from data: signature, checks, and errors in one sentence.

A command is a function of its arguments and of ``given``, the checked values of its options by
name. `takes` gives it the signature that typer reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from stillframe.cli.screen import one_sentence_errors
from stillframe.options import Option

__all__ = ["Command", "Given", "Options", "flag", "takes"]

#: Values of options, by name; None where nothing was given and there is no default.
Given = dict[str, Any]

#: Options of a command: data, or what gives it when it is needed.
Options = Mapping[str, Option] | Callable[[], Mapping[str, Option]]

# what typer reads from the command line; numbers in a row are a text that is checked here
_TYPES: dict[str, Any] = {
    "int": int, "ints": str, "float": float, "floats": str, "str": str, "bool": bool, "path": Path,
}  # fmt: skip


def flag(name: str) -> str:
    """An option's name on the command line: ``--rate-mode`` for "rate_mode".

    A name that is a word of Python's has an underscore behind it: ``--in`` is "in_".
    """
    return f"--{name.rstrip('_').replace('_', '-')}"


class Command:
    """A command for typer.

    Options are looked up whenever they are asked for, so that those of a control which a user
    registers are there.

    Args:
        run: the function; its last parameter is ``given``.
        options: of the command, by name.
    """

    def __init__(self, run: Callable[..., None], options: Options) -> None:
        self.__name__, self.__doc__, self.__module__ = run.__name__, run.__doc__, run.__module__
        # typer evaluates them where they are texts, which needs the function's own names
        self.__annotations__: dict[str, Any] = {}
        self._run, self._options = run, options

    @property
    def options(self) -> Mapping[str, Option]:
        """The options by name, in the order of the help."""
        return self._options() if callable(self._options) else self._options

    @property
    def __signature__(self) -> inspect.Signature:
        hints = get_type_hints(self._run, include_extras=True)
        *arguments, _ = inspect.signature(self._run).parameters.values()
        parameters = [each.replace(annotation=hints[each.name]) for each in arguments]
        # typer wants keywords as parameters' names, and takes any name that is an identifier
        parameters += [_parameter(name, option) for name, option in self.options.items()]
        return inspect.Signature(parameters)

    def __call__(self, **values: Any) -> None:
        options = self.options
        with one_sentence_errors():
            # a control may have been registered since the command line was read
            given = {
                name: option.checked(flag(name), values.pop(name))
                for name, option in options.items()
                if name in values
            }
            self._run(**values, given=given)


def takes(options: Options) -> Callable[[Callable[..., None]], Command]:
    """Decorator: a function of arguments and ``given`` as a command that takes options."""
    return lambda run: Command(run, options)


def _parameter(name: str, option: Option) -> inspect.Parameter:
    """An option as typer reads it."""
    kind: Any = list[str] if option.repeats else _TYPES[option.kind]
    if option.default is None and not option.required:
        kind = kind | None
    spellings = [flag(name)] + [f"-{option.short}"] * (option.short is not None)
    if option.kind == "bool" and option.live:
        spellings[0] += f"/--no-{name.replace('_', '-')}"
    metavar = option.metavar or "|".join(option.choices) or None
    number = option.kind in ("int", "float")
    shown = typer.Option(
        *spellings,
        help=option.help,
        metavar=metavar,
        rich_help_panel=option.group or None,
        envvar=option.variable,
        show_envvar=False,
        min=_first(option.least, option.above) if number else None,
        max=_first(option.most, option.below) if number else None,
        callback=_checker(option) if number else None,
    )
    default = ... if option.required else option.default
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown]
    )


def _first(*bounds: float | None) -> float | None:
    return next((bound for bound in bounds if bound is not None), None)


def _checker(option: Option) -> Callable[[Any], Any]:
    """Refuses nan and bounds that are not allowed themselves, of which typer knows nothing."""

    def check(value: Any) -> Any:
        try:
            return option.checked("it", value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return check
