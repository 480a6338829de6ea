"""The command line: arguments in, exit codes out.

torch is imported by commands that need it, so that ``--help`` answers at once. Exit codes: 0 done
(perhaps with a warning), 2 refused with one sentence, 3 a batch came to its end and some of its
files could not be edited, 130 interrupted (143 by SIGTERM), 141 stopped because nobody reads the
output any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stillframe.cli.batch import batch
from stillframe.cli.bench import bench
from stillframe.cli.demo import demo
from stillframe.cli.edit import edit
from stillframe.cli.eval import evaluate
from stillframe.cli.generate import generate
from stillframe.cli.live import live
from stillframe.cli.methods import methods
from stillframe.cli.models import models_app
from stillframe.cli.plan_cluster import plan_cluster
from stillframe.cli.reproduce import reproduce
from stillframe.cli.screen import REFUSED, complain, say
from stillframe.cli.serve import serve
from stillframe.cli.study import study
from stillframe.cli.styles import styles
from stillframe.cli.warm import warm
from stillframe.untrusted.printable import printable

__all__ = ["app"]


class _Commands(TyperGroup):
    """Commands that refuse a wrong value in one sentence, and show what was typed as text."""

    def make_context(self, *args: Any, **given: Any) -> Any:
        """See click."""
        with _printable_complaints():
            return super().make_context(*args, **given)

    def invoke(self, ctx: Any) -> Any:
        """See click."""
        with _printable_complaints():
            return super().invoke(ctx)


@contextmanager
def _printable_complaints() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # click's, which newer releases of typer have a copy of
        told: Any = error
        if hasattr(told, "format_message"):
            told.message = printable(told.message)
        # one that is missing is a kind of these, and there usage helps
        if type(error) is typer.BadParameter:
            complain(error.format_message())
            raise typer.Exit(REFUSED) from error
        raise


app = typer.Typer(
    cls=_Commands,
    help="Restyle video, recomputing only what moves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"stillframe {version('stillframe')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Restyle video, recomputing only what moves."""


for command in (
    edit, batch, generate, live, serve, warm, bench, styles, methods, demo, reproduce, study,
):  # fmt: skip
    app.command()(command)
app.command("eval")(evaluate)
app.command("plan-cluster")(plan_cluster)
app.add_typer(models_app, name="models")
