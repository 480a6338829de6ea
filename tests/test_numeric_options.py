"""Every number that a command takes has bounds: found by looking at the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from stillframe.cli.app import app

# made once: that takes longer than all that follows
COMMAND: Any = get_command(app)
HUGE = 10**30
ABSURD = {
    "int": (str(HUGE), str(-HUGE), "nan", "inf", "-inf", "1" * 5000, "1e30"),
    "float": (str(HUGE), str(-HUGE), "nan", "inf", "-inf", "1e400", "1" * 5000),
}


def commands(found: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(found, "commands"):
        for name, inner in found.commands.items():
            yield from commands(inner, (*names, name))
    else:
        yield names, found


def numeric() -> Iterator[Any]:
    for names, command in commands(COMMAND):
        for parameter in command.params:
            kind = parameter.bare_type()
            if kind in ABSURD:
                yield pytest.param(names, command, parameter, kind, id=f"{names}{parameter.name}")


def run(arguments: list[str]) -> Any:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})


def needed(command: Any) -> list[str]:
    """What the command cannot do without, as far as it matters to a parser."""
    given = []
    for parameter in command.params:
        if parameter.required:
            is_option = parameter.param_type_name == "option"
            given += [parameter.opts[0], "x"] if is_option else ["x"]
    return given


def test_there_are_numbers() -> None:
    names = {names for names, _ in commands(COMMAND)}
    assert {("edit",), ("serve",), ("models", "plan")} <= names
    assert len(list(numeric())) > 40


@pytest.mark.parametrize(("names", "command", "parameter", "kind"), list(numeric()))
def test_numbers_out_of_all_bounds_are_refused_in_one_sentence(
    names: tuple[str, ...], command: Any, parameter: Any, kind: str
) -> None:
    for value in ABSURD[kind]:
        arguments = [*names, *needed(command), f"{parameter.opts[-1]}={value}"]
        result = run(arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        told = " ".join(result.output.replace("│", " ").split())
        assert told.count("Invalid value for") == 1, result.output
        assert parameter.opts[0] in told or parameter.opts[-1] in told


@pytest.mark.parametrize(("names", "command", "parameter", "kind"), list(numeric()))
def test_defaults_are_within_the_bounds(
    names: tuple[str, ...], command: Any, parameter: Any, kind: str
) -> None:
    assert parameter.min is not None
    assert parameter.max is not None
    if parameter.default is not None:
        assert parameter.min <= parameter.default <= parameter.max


@pytest.mark.parametrize("value", [str(HUGE), str(-HUGE), "nan", "inf", "-inf", "1e400", "x"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "x", "-o", "y.mp4", "--prompt", "p", "--sigmas=1.0,{0}"],
        ["edit", "x", "-o", "y.mp4", "--prompt", "p", "--roi=0,0,1,{0}"],
        ["edit", "x", "-o", "y.mp4", "--prompt", "p", "--lora=x:{0}"],
        ["generate", "-o", "y.mp4", "--prompt", "p", "--sigmas={0}"],
        ["bench", "--kept={0}"],
        ["bench", "--sigmas={0}"],
        ["eval", "x", "-o", "y", "--rates={0}"],
        ["eval", "x", "-o", "y", "--seeds={0}"],
        ["reproduce", "curve", "--clips", "x", "-o", "y", "--rates={0}"],
    ],
)
def test_numbers_in_lists_are_refused_in_one_sentence(arguments: list[str], value: str) -> None:
    """These are texts to the parser."""
    result = run([part.format(value) for part in arguments])
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1
    assert result.output.startswith("Error: ")
